"""Text metrics: equality with sacrebleu, LaSE's own arithmetic, language rates, real parallel text."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import MissingExtra, UserError
from polyloom.metrics import text as metrics

VOCABULARY = ("the", "cat", "sat", "on", "a", "mat", ",", "and", "dog's", "3.5", "!", "Haus", "")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=20)


@given(PAIRS)
def test_bleu_and_chrf_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    outputs, references = (list(side) for side in zip(*pairs, strict=True))
    score = sacrebleu.corpus_bleu(outputs, [references], force=True).score
    assert metrics.bleu(outputs, references) == pytest.approx(score, abs=1e-9)
    sums = metrics.bleu_statistics(outputs, references).sum(axis=0)
    assert float(metrics.bleu_of(sums)) == pytest.approx(score, abs=1e-9)
    assert metrics.chrf(outputs, references) == sacrebleu.corpus_chrf(outputs, [references]).score
    plus = sacrebleu.corpus_chrf(outputs, [references], word_order=2).score
    assert metrics.chrf(outputs, references, word_order=2) == plus


def test_short_sentences_need_effective_order() -> None:
    assert metrics.sentence_bleu("der Hund", "der Hund") == pytest.approx(100)
    assert metrics.bleu(["der Hund"], ["der Hund"]) == 0


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="1 outputs and 2 references"):
        metrics.bleu(["a"], ["a", "b"])
    with pytest.raises(UserError, match="0 outputs"):
        metrics.chrf([], [])


def test_characters_are_tokens_where_no_blanks_are_written() -> None:
    assert (metrics.bleu_tokenizer("zh"), metrics.bleu_tokenizer("ja-JP"), metrics.bleu_tokenizer("de")) == (
        "zh",
        "char",
        "13a",
    )


def test_spbleu_needs_its_library_or_its_file(tmp_path: Path) -> None:
    with pytest.raises((MissingExtra, UserError)):
        metrics.spbleu(["a"], ["a"], tmp_path / "none.model")


def test_spbleu_is_bleu_over_the_models_pieces(tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    lines = [f"{word}s Haus steht {number} Jahre am See" for word in ("da", "die", "jene") for number in range(40)]
    stem = tmp_path / "pieces"
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(stem), vocab_size=48, minloglevel=2, hard_vocab_limit=False
    )
    outputs, references = ["das Haus steht 8 Jahre", "dies am See"], ["das Haus steht 9 Jahre", "jenes am See"]
    model = library.SentencePieceProcessor(model_file=f"{stem}.model")
    pieces = [[" ".join(model.encode(text, out_type=str)) for text in side] for side in (outputs, references)]
    score = sacrebleu.corpus_bleu(pieces[0], [pieces[1]], tokenize="none", force=True).score
    assert 0 < metrics.spbleu(outputs, references, Path(f"{stem}.model")) == score < 100


def test_lase_is_its_repositorys_example() -> None:
    assert metrics.lase(0.89, 0.92, 0.98) == pytest.approx(0.802424)
    assert metrics.length_penalty(16, 10) == 1
    assert metrics.length_penalty(32, 10) == pytest.approx(math.exp(-1))
    assert metrics.language_confidence({"de": 0.3, "en": 0.7}, "de") == 0.3
    assert metrics.language_confidence({"de": 0.7, "en": 0.3}, "de") == 1
    assert metrics.language_confidence({}, "de") == 0


def test_rates() -> None:
    assert metrics.copy_rate([" a ", "b"], ["a", "c"]) == 0.5
    assert metrics.empty_rate([" ", "b", ""]) == pytest.approx(2 / 3)
    texts = [
        "Das ist ein schönes Haus am See.",
        "This is a fine house by the lake.",
        "…",
        "Wir gehen morgen nach Hause.",
    ]
    assert metrics.off_target_rate(texts, "de", ["en", "fr"]) == 0.5
    with pytest.raises(UserError, match="does not know 'xxq'"):
        metrics.identify(["a"], ["xxq"])


def test_real_parallel_text_is_identified_and_scored(real_data: Callable[[str], Path]) -> None:
    rows = [json.loads(line) for line in (real_data("ud") / "pud_parallel_200.jsonl").read_text("utf-8").splitlines()]
    for code in ("de", "fr", "es", "ja", "zh", "sv"):
        if code in rows[0]:
            given_texts = [row[code] for row in rows]
            assert metrics.off_target_rate(given_texts, code, ["en", "de", "fr", "es", "ja", "zh", "sv"]) < 0.05
            tokenizer = metrics.bleu_tokenizer(code)
            assert metrics.bleu(given_texts, given_texts, tokenizer) == pytest.approx(100)
            assert metrics.bleu([row["en"] for row in rows], given_texts, tokenizer) < 15
            assert metrics.chrf(given_texts, given_texts) == pytest.approx(100)


def test_profiles_tell_the_languages_that_they_were_made_from() -> None:
    texts = {"de": ["fünf Kilogramm und Deutschland"] * 5, "en": ["five kilograms and Germany"] * 5}
    profiles = metrics.language_profiles(texts)
    assert profiles.identify("Deutschland und fünf") == "de"
    assert profiles.identify("Germany and five") == "en"
    assert profiles.identify("123") == ""
