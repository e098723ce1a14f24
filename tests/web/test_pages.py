"""The pages over run folders: what they show, how large they are, and what they do with damage."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile

import pytest

from polyloom.core.result import Scalar, Series, Table
from polyloom.runs.index import reindex
from polyloom.web.pages.files import Listed
from tests.web.runs_for_tests import make_run

MAX_FIRST_PAGE_BYTES = 150_000
NUM_RUNS = 1000


def assets(html: str) -> list[str]:
    return re.findall(r'(?:src|href)="(/static/[^"]+)"', html)


def test_the_first_page_with_a_thousand_runs_is_light(client, tmp_path):
    root = tmp_path / "runs"
    first = make_run(root, "run-0", verdicts=["a verdict of the length that a verdict has, " * 3])
    for number in range(1, NUM_RUNS):
        folder = root / f"run-{number}"
        shutil.copytree(first.path, folder)
        manifest = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**manifest, "id": folder.name}))
    assert reindex(root) == NUM_RUNS
    for path in ("/", "/runs"):
        html = client.get(path).text
        size = len(html.encode()) + sum(len(client.get(asset).content) for asset in assets(html))
        assert len(assets(html)) >= 4
        assert size <= MAX_FIRST_PAGE_BYTES
        assert "1000" in html


def test_an_empty_folder_says_where_to_start(client):
    text = client.get("/").text
    assert "Nothing has run yet" in text
    assert client.get("/runs").text.count("<tr") == 0
    assert client.get("/compare").status_code == 200


def test_filters_find_and_pages_follow(client, tmp_path):
    root = tmp_path / "runs"
    for number in range(45):
        make_run(
            root, f"a-{number}", status="failed" if number % 9 == 0 else "done", error="broke" if number == 9 else None
        )
    make_run(root, "step", parent="a-1", room="commons", verb="study")
    text = client.get("/runs").text
    assert "45 runs" in text
    assert "Page 1 of 2" in text
    assert client.get("/runs?page=2").text.count('scope="row"') == 5
    assert client.get("/runs?page=99").text.count('scope="row"') == 5
    assert "5 runs" in client.get("/runs?status=failed").text
    assert "1 run<" in client.get("/runs?q=BROKE").text
    assert "No run fits" in client.get("/runs?room=commons").text
    assert "1 run<" in client.get("/runs?room=commons&steps=true").text
    assert client.get("/runs?page=0").status_code == 422


def test_a_done_run_shows_what_its_report_shows(client, tmp_path):
    run = make_run(
        tmp_path / "runs",
        "a",
        report=True,
        verdicts=["first verdict", "second verdict"],
        limitations=["a limit"],
        scalars={"accuracy": Scalar(value=0.5, low=0.4, high=0.6, unit="share")},
        tables={"rows": Table(columns=["name", "n"], rows=[["x", 1]], title="A table")},
        series={"curve": Series(x=[0, 1, 2], y=[1, 2, 3], x_label="step", y_label="loss")},
    )
    text, report = client.get("/runs/a").text, (run.path / "report.html").read_text()
    for part in ("first verdict", "a limit", "A table", "0.40 to 0.60", "polyloom rerun a"):
        assert part in text
        assert part in report
    drawn = [re.search(r"<svg[^>]*role=\"img\".*?</svg>", page, re.DOTALL) for page in (text, report)]
    assert drawn[0]
    assert drawn[1]
    assert drawn[0][0] == drawn[1][0]
    assert client.get("/runs/a/tables/rows.csv").content == b"name,n\r\nx,1\r\n"
    record = zipfile.ZipFile(io.BytesIO(client.get("/runs/a/record.zip").content))
    assert {"a/config.yaml", "a/result.json", "a/report.html"} <= set(record.namelist())
    framed = client.get("/files/a/report.html")
    assert framed.text == report
    assert "sandbox" in client.get("/runs/a/report").text
    assert client.get("/files/a/report.html?download=true").headers["content-disposition"].startswith("attachment")


def test_an_unfinished_run_says_why_and_offers_to_go_on(client, tmp_path):
    make_run(tmp_path / "runs", "a", status="failed", error="the disk is full.")
    text = client.get("/runs/a").text
    assert "the disk is full." in text
    assert 'action="/runs/a/resume"' in text
    make_run(tmp_path / "runs", "b", status="running")
    text = client.get("/runs/b").text
    assert "interrupted" in text
    assert "was killed" in text


def test_damage_in_a_run_folder_is_an_answer_and_no_defect(client, tmp_path):
    root = tmp_path / "runs"
    for name in ("no-manifest", "torn-manifest", "torn-result", "no-config", "other-room"):
        make_run(root, name)
    (root / "no-manifest" / "run.json").unlink()
    (root / "torn-manifest" / "run.json").write_text("{")
    (root / "torn-result" / "result.json").write_text('{"room": ')
    (root / "no-config" / "config.yaml").unlink()
    manifest = json.loads((root / "other-room" / "run.json").read_text())
    (root / "other-room" / "run.json").write_text(json.dumps({**manifest, "room": "gone", "verb": "gone"}))
    (root / "other-room" / "result.json").unlink()
    expected = {"no-manifest": 404, "torn-manifest": 409, "torn-result": 200, "no-config": 200, "other-room": 200}
    for name, status in expected.items():
        assert client.get(f"/runs/{name}").status_code == status, name
    assert client.get("/").status_code == 200
    assert client.get("/runs").status_code == 200


def test_actions_on_what_cannot_be_done_are_refused_in_a_page(client, post, tmp_path):
    make_run(tmp_path / "runs", "a")
    assert post("/runs/a/resume").status_code == 409
    assert post("/runs/a/dance").status_code == 404
    assert post("/runs/b/stop").status_code == 404
    assert client.get("/runs/a/delete").status_code in (404, 405)


def test_two_runs_are_compared_side_by_side(client, tmp_path):
    root = tmp_path / "runs"
    for number, name in enumerate(("a", "b")):
        rows = [[seed, "arm", 1.0 * seed + number] for seed in range(8)]
        table = Table(columns=["seed", "name", "loss"], rows=rows, title="Losses")
        make_run(
            root,
            name,
            scalars={"x": Scalar(value=1.0 + number, low=0.5 + number, high=1.5 + number)},
            tables={"t": table},
        )
    text = client.get("/compare?run=a&run=b").text
    for part in ("No option differs", "Losses", "seed, name", "1 <span", "differs", "0.29, 1.71"):
        assert part in text, part
    assert "Choose two runs" in client.get("/compare?run=a").text
    assert "3 runs were chosen" in client.get("/compare?run=a&run=b&run=a").text
    assert client.get("/compare?run=a&run=zzz").status_code == 404


def test_a_form_is_filled_from_a_run_and_its_errors_start_nothing(client, post, tmp_path):
    make_run(tmp_path / "runs", "a", verb="study")
    assert "Filled in from a" in client.get("/start/silu/study?like=a").text
    before = {path.name for path in (tmp_path / "runs").glob("*/run.json")}
    response = post("/start/silu/study", profile="quick", seed="minus one")
    assert response.status_code == 422
    assert 'aria-invalid="true"' in response.text
    assert 'value="minus one"' in response.text
    assert {path.name for path in (tmp_path / "runs").glob("*/run.json")} == before


def test_every_room_and_every_verb_has_its_page(client):
    from polyloom.core.registry import card, rooms

    for room in (card("tour"), *rooms().values()):
        text = client.get(f"/rooms/{room.name}").text
        for verb in room.verbs:
            assert f"/start/{room.name}/{verb.name}" in text
            form = client.get(f"/start/{room.name}/{verb.name}")
            assert form.status_code == 200
            for name in verb.load_config().model_fields:
                assert f'name="{name}"' in form.text, (room.name, verb.name, name)
        for equation in room.equations:
            assert equation.function.rpartition(".")[2].rpartition(":")[2] in text


def test_the_pages_speak_chinese(client):
    response = client.get("/language/zh?next=/runs")
    assert response.headers["location"] == "/runs"
    text = client.get("/runs").text
    assert '<html lang="zh">' in text
    assert "没有符合条件的运行" in text
    assert client.get("/language/xx").status_code == 404


@pytest.mark.parametrize(
    ("num_bytes", "size"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (15_000, "15 kB"), (3e6, "3.0 MB"), (5e9, "5.0 GB")],
)
def test_sizes_in_words(num_bytes, size):
    assert Listed("", "", int(num_bytes)).size == size
