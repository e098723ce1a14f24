"""The study at a small size: same text, named scalars, resume; and the server over HTTP."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from polyloom.methods.layerskip import lab
from polyloom.methods.layerskip.config import LayerSkipStudyConfig, ServeConfig
from polyloom.methods.layerskip.serve import make_app, open_engine, run_serve
from polyloom.reports.figures import figures_for
from polyloom.runs.folder import Run


def test_study_shows_exits_pair_and_equal_texts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS", 12), ("NUM_PROMPTS", 2), ("ROUNDS", 3)):
        monkeypatch.setattr(lab, name, {"quick": value, "full": value})
    monkeypatch.setattr("polyloom.methods.layerskip.embedded.NUM_TRAIN", 200)
    result = lab.run_study(LayerSkipStudyConfig(languages=["en", "tr"]), run)
    assert result.scalars["same_tokens"].value is True
    assert result.scalars["same_tokens_as_hf"].value is True
    assert {row[3] for row in result.tables["texts"].rows} == {"yes"}
    assert [row[0] for row in result.tables["languages"].rows] == ["en", "tr"]
    assert len(result.verdicts) <= 6
    assert any("too few" in line for line in result.limitations)
    again = lab.run_study(LayerSkipStudyConfig(languages=["en", "tr"]), run)
    assert again.scalars == result.scalars
    drawn = figures_for(result.model_copy(update={"room": "layerskip", "verb": "study"}))
    assert [figure.name for figure in drawn] == ["perplexity by exit", "agreement by exit", "Predicted speed"]


def test_server_completes_streams_and_refuses(run: Run, trained: Path) -> None:
    pytest.importorskip("aiohttp")
    from aiohttp.test_utils import TestClient, TestServer

    config = ServeConfig(model=str(trained), languages=["en"], num_prompts=2, max_new_tokens=16)
    engine = open_engine(config, run)
    body = {"prompt": "weekday: June 2, 2016? =>", "max_tokens": 20}

    async def talk() -> tuple[Any, str, list[Any]]:
        async with TestClient(TestServer(make_app(engine))) as client:
            models = await (await client.get("/v1/models")).json()
            assert models["data"][0]["id"] == "polyloom"
            whole = await (await client.post("/v1/completions", json=body)).json()
            response = await client.post("/v1/completions", json={**body, "stream": True})
            streamed = (await response.read()).decode()
            bad = []
            for wrong in ({}, {**body, "n": 2}, {**body, "max_tokens": 5000}, {**body, "top_p": 7}):
                answer = await client.post("/v1/completions", json=wrong)
                bad.append((answer.status, (await answer.json())["error"]["message"]))
            answer = await client.post("/v1/completions", data=b"{")
            bad.append((answer.status, (await answer.json())["error"]["message"]))
            return whole, streamed, bad

    whole, streamed, bad = asyncio.run(talk())
    events = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert whole["choices"][0]["text"].startswith(" [IN:")
    assert pieces[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert whole["usage"]["completion_tokens"] <= 20
    assert [status for status, _ in bad] == [400] * 5
    assert "exceed the 1024 positions" in bad[2][1]


def test_serve_listens_on_loopback_and_stops_when_asked(run: Run, trained: Path) -> None:
    pytest.importorskip("aiohttp")
    run.request_stop()
    config = ServeConfig(model=str(trained), port=0, mode="plain", languages=["en"])
    assert config.host == "127.0.0.1"
    assert run_serve(config, run).scalars["num_requests"].value == 0
