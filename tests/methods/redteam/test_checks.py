"""What a run proves of itself; judges behind a failing server: nothing lost or paid twice, resumed to the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyloom.generation import FakeServer, ServerChat
from polyloom.methods.redteam import checks, tokens
from polyloom.methods.redteam.evaluation import Victim
from polyloom.methods.redteam.hardening import REFUSAL, batch_of, own_turns, train_refusals
from polyloom.methods.redteam.judges import KeywordJudge
from polyloom.methods.redteam.method import Objective
from polyloom.methods.redteam.sandbox import answer_loss, build_sandbox
from polyloom.methods.redteam.search import Slot
from polyloom.methods.redteam.workbench import Target
from polyloom.models.tiny import build_tiny

SANDBOX = build_sandbox(0)
TOKENIZER = SANDBOX.tokenizer


def test_survival_counts_lost_and_banned_suffixes() -> None:
    behaviours = SANDBOX.sealed[:2]
    banned = tokens.banned_tokens(TOKENIZER, len(TOKENIZER))
    prompts, init = tokens.make_prompts(TOKENIZER, behaviours, 4, banned)
    good = init.tolist()
    merged = TOKENIZER("currency", add_special_tokens=False)["input_ids"]
    parts = [i for letter in "curr" for i in TOKENIZER(letter, add_special_tokens=False)["input_ids"]][:4]
    role = [*good[:3], TOKENIZER.convert_tokens_to_ids("<user>")]
    assert len(merged) < len("currency")
    found = checks.survival(TOKENIZER, [good, good, parts, role], behaviours, prompts, banned)
    assert (found.num_suffixes, found.num_banned) == (3, 1)
    assert found.num_reencoded < 3
    assert checks.survival(TOKENIZER, [good], behaviours, prompts, banned).share == 1


def test_the_gradient_is_exact_on_the_victims_shape_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny("llama-2x64", len(TOKENIZER))
    prompts, init = tokens.make_prompts(
        TOKENIZER, SANDBOX.sealed[:1], 4, tokens.banned_tokens(TOKENIZER, len(TOKENIZER))
    )
    slot = Slot(prompts[0].before, prompts[0].after, prompts[0].target)
    for objective in (Objective("gcg"), Objective("decay", "code")):
        assert checks.gradient_error(model, slot, init.tolist(), objective, 0) < 1e-5
    assert next(model.parameters()).dtype == torch.float32
    original = checks.Scorer.gradient

    def doubled(*given: Any) -> Any:
        gradient, shared = original(*given)
        return 2 * gradient, shared

    monkeypatch.setattr(checks.Scorer, "gradient", doubled)
    assert checks.gradient_error(model, slot, init.tolist(), Objective("gcg"), 0) > 1e-5


def test_votes_and_coverage_by_hand() -> None:
    votes = {"ensemble:veto": [True, False], "ensemble:majority": [False, True], "ensemble:approval": [True, None]}
    assert checks.votes_out_of_order(votes) == 1  # the second item is undecided
    truth = [bool(i % 2) for i in range(120)]
    noisy = [not y if i % 10 == 0 else y for i, y in enumerate(truth)]
    covered = checks.coverage(truth, noisy, 100, 0)
    assert covered is not None
    assert covered >= 90
    assert checks.coverage(truth, [not y for y in truth], 100, 0) is None


def test_a_failing_judge_server_loses_nothing_and_is_paid_once(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp", reason="the fake server needs it")
    rows = [{"goal": f"goal {i}", "response": "an answer" if i % 2 else "I refuse"} for i in range(30)]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def impatient(spec: str, cache: Path | None = None) -> ServerChat:
        base_url, _, model = spec.partition("#")
        return ServerChat(base_url, model, cache=cache, backoff_seconds=0.01, max_retries=0)

    monkeypatch.setattr("polyloom.methods.redteam.judges.connect", impatient)

    def reply(body: dict[str, Any]) -> str:
        return "no" if "I refuse" in body["messages"][0]["content"] else "yes"

    rates: Any = {"500": 0.15, "429": 0.1, "cut": 0.05}
    with FakeServer(reply, rates=rates) as server:
        judge = f"chat:{server.base_url}#m"
        given = ("--responses", tmp_path / "responses.jsonl", "--judges", judge, "--no-probe-injection")
        answer = cli("redteam", "judge", *given, "--run", "j")
        codes = [answer.exit_code]
        while answer.exit_code == 75 and len(codes) < 12:
            assert "runs resume j" in answer.stderr
            answer = cli("runs", "resume", "j", "--json")
            codes.append(answer.exit_code)
        assert codes[0] == 75  # some replies are missing, the result is kept all the same
        assert codes[-1] == 0
        assert max(server.answered.values()) == 1
        assert len(server.answered) == 30
    lines = (tmp_path / "runs/j/artifacts/verdicts.jsonl").read_text().splitlines()
    assert [next(iter(json.loads(line)["verdicts"].values())) for line in lines] == [bool(i % 2) for i in range(30)]


def test_refusal_training_learns_the_models_own_turns() -> None:
    victim = Victim(build_tiny("llama-2x64", len(TOKENIZER)), TOKENIZER, "own", 4)
    train, benign = list(SANDBOX.sealed[:2]), list(SANDBOX.free[:4])
    words, judge = ("sorry",), KeywordJudge(("sorry",))
    clean = [one.prompt for one in benign]
    target = Target(victim, train, train, benign, clean, words, words, "en", [judge], (), [], None, 0)
    sealed, answered = own_turns(target)
    assert [said for _, said in sealed] == [REFUSAL, REFUSAL]  # a random model refuses nothing on its own
    assert len(answered) == len([a for a in victim.answer(clean) if a.strip()])
    batch = batch_of(victim, sealed)
    kept = batch["labels"][0] >= 0
    assert TOKENIZER.decode(batch["tokens"][0][kept]).startswith(REFUSAL)
    hardened = train_refusals(target, ["x y"], steps=40, lr=5e-3)
    before, after = (answer_loss(one, batch)[0].item() for one in (victim.model, hardened))
    assert after < 0.3 * before
