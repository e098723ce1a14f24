"""The embedded experiment: corpus, training pieces, a study of one small seed end to end, and its words."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyloom.core.errors import UserError
from polyloom.methods import prefix
from polyloom.methods.prefix import study
from polyloom.methods.prefix.config import PrefixStudyConfig
from polyloom.methods.prefix.data import ALL_THINGS, FEW_THINGS, NUM_DEV, SOURCE, make_corpus, pretraining_documents
from polyloom.methods.prefix.experiment import IGNORED, as_rows, bucketed
from polyloom.methods.prefix.experiment_run import METHODS, SFT_BATCH, Plan, world_dictionary
from polyloom.models.tokenizers import train_tokenizer
from polyloom.reports.figures import figures_for
from polyloom.runs.folder import Run

SMALL = Plan(
    num_train=200, num_test=6, vocab_size=400, width=32, base_steps=12, sft_steps=4, small_width=16, small_steps=4
)


def test_corpus_is_parallel_disjoint_and_the_same_for_a_seed() -> None:
    corpus = make_corpus(["de", "cs"], 300, 40, 3, ALL_THINGS)
    again = make_corpus(["de", "cs"], 300, 40, 3, ALL_THINGS)
    assert (corpus.train, corpus.dev, corpus.test, corpus.words) == (again.train, again.dev, again.test, again.words)
    parts = [{line[SOURCE] for line in part} for part in (corpus.train, corpus.dev, corpus.test)]
    assert [len(part) for part in parts] == [300, NUM_DEV, 40]
    assert len(set().union(*parts)) == 340 + NUM_DEV
    assert all(set(line) == {"en", "de", "cs"} for line in corpus.train)
    few = make_corpus(["de"], 100, 10, 3, FEW_THINGS)
    assert len({word for line in few.train for word in line["de"].split()}) < 60


def test_the_instruction_is_answered_as_the_report_says() -> None:
    corpus = make_corpus(["de", "fr", "cs"], 400, 10, 0, ALL_THINGS)
    documents = pretraining_documents(corpus, 20_000, 0)
    asked = [one for one in documents if one.startswith("Translate")]
    assert len(asked) / len(documents) == pytest.approx(0.40, abs=0.02)
    kinds: Counter[str] = Counter()
    names = {"German": "de", "French": "fr", "Czech": "cs"}
    by_source = {line[SOURCE]: line for line in [*corpus.train, *corpus.words]}
    for one in asked:
        head, _, answer = one.partition("\n")
        language, source = head.removeprefix("Translate this into ").split(": ", 1)
        line = by_source[source]
        if answer == source:
            kinds["copy"] += 1
        elif answer == line[names[language]]:
            kinds["right"] += 1
    # A quarter of "any language" is English, another quarter the right one; equal words add a little.
    assert kinds["copy"] / len(asked) == pytest.approx(0.45 + 0.30 / 4, abs=0.04)
    assert kinds["right"] / len(asked) == pytest.approx(0.25 + 0.30 / 4, abs=0.04)


def test_the_worlds_dictionary_translates_the_corpus() -> None:
    corpus = make_corpus(["de"], 20, 5, 0, ALL_THINGS)
    found = world_dictionary(corpus, "de")
    assert [one.text for one in found.lookup("Germany")] == ["Deutschland"]
    assert "März" in [one.text for one in found.lookup("March")]


def test_loss_is_on_the_answer_alone() -> None:
    tokenizer = train_tokenizer(["ab cd"] * 9, 270)
    rows = as_rows([("ab", "cd"), ("a", "b")], tokenizer)
    batch = bucketed(rows, 2, 0)(0)
    for row, tokens, labels in zip(
        sorted(rows, key=lambda r: len(r.tokens)), batch["tokens"], batch["labels"], strict=True
    ):
        assert labels[: row.start].eq(IGNORED).all()
        assert labels[row.start : len(row.tokens)].tolist() == row.tokens[row.start :]
        assert tokens[: len(row.tokens)].tolist() == row.tokens


def small_study(run: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(study.PLANS, "quick", (1, SMALL))
    return study.run_study(PrefixStudyConfig(), run)


def test_study_runs_end_to_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = small_study(run, monkeypatch)
    scalars = {name: one.value for name, one in result.scalars.items()}
    for name in ("no_prior_equals_generate", "full_prior_equals_sft", "batch_equals_single", "sft_keeps_its_answer"):
        assert scalars[name] is True
    assert scalars["self_agreement"] == 1
    assert scalars["self_kl"] == 0
    assert [row[0] for row in result.tables["methods"].rows] == list(METHODS)
    assert result.tables["methods"].rows[METHODS.index("SFT")][4] in (100, 0)
    costs = {row[0]: row[1:4] for row in result.tables["costs"].rows}
    assert costs["dictionary prior, k=2"] == [0, 0, 0]
    assert costs["SFT"][1] >= SMALL.sft_steps * SFT_BATCH
    assert result.verdicts[0].startswith("Undecided (models this little trained)")
    assert any("planted" in line for line in result.limitations)
    names = [figure.name for figure in figures_for(result.model_copy(update={"room": "prefix", "verb": "study"}))]
    assert names[:2] == ["agreement by position", "divergence by position"]
    steps = sorted((run.path / "steps").iterdir())
    again = small_study(run, monkeypatch)
    assert again.scalars == result.scalars
    assert sorted((run.path / "steps").iterdir()) == steps
    text = Path(prefix.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert prefix.CARD.question in text
    for equation in prefix.CARD.equations:
        assert f"| {equation.name} | {equation.meaning} |" in text
    for name in ("sft_prior_k2_rel", "control_language_rel", "kl_fall", "prefill_cost_ratio"):
        assert f"`{name}`" in text


def seed_result(scale: float) -> dict[str, Any]:
    """A seed whose methods have known BLEU statistics: share `scale` of what the tuned model gets right."""

    def stats(right: float) -> list[list[int]]:
        return [[int(100 * right)] * 4 + [100] * 4 + [103, 103]] * 5

    methods = {name: {"bleu": stats(scale), "exact": 0, "copy": 0, "empty": 0, "off_target": 0} for name in METHODS}
    return {"methods": {"de": methods | {"SFT": methods["SFT"] | {"bleu": stats(0.8)}}}}


def test_relative_performance_is_a_ratio_of_bleu_over_seeds() -> None:
    found = study.relative([seed_result(0.4)], "SFT prior, k=2")
    assert (found.value, found.low, found.high) == (pytest.approx(50), pytest.approx(50), pytest.approx(50))
    three = study.relative([seed_result(x) for x in (0.4, 0.48, 0.56)], "SFT prior, k=2")
    assert three.value == pytest.approx(60)
    half = 4.30265 * np.std([50, 60, 70], ddof=1) / np.sqrt(3)
    assert three.high - three.value == pytest.approx(half, rel=1e-4)
    assert study.relative([seed_result(0.4)], "SFT").value == pytest.approx(100)


@pytest.mark.parametrize(
    ("targets", "message"), [(["de", "xx"], "no language 'xx'"), (["de", "en"], "other languages")]
)
def test_study_refuses_languages(run: Run, targets: list[str], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        study.run_study(PrefixStudyConfig(targets=targets), run)


@pytest.mark.slow
def test_quick_study_shows_the_effect(cli: Any) -> None:
    answer = cli("prefix", "study", "--json")
    assert answer.exit_code == 0, answer.stderr
    scalars = {name: one["value"] for name, one in json.loads(answer.stdout)["scalars"].items()}
    assert scalars["base_rel"] < 15
    assert scalars["sft_prior_k2_rel"] > 3 * scalars["control_language_rel"]
    assert scalars["agreement_at_1_position_1"] < 0.6
    assert scalars["kl_fall"] > 2
