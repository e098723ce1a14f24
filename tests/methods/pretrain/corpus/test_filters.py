from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.crawl import RawDocument, Reading, list_parts, read_part
from polyloom.data.scripts import normalise
from polyloom.methods.pretrain.corpus.cleaning import Clean, Cleaner, Dropped
from polyloom.methods.pretrain.corpus.filters import num_sentences, refuse, trim_lines
from polyloom.methods.pretrain.corpus.private_data import replace_private
from polyloom.methods.pretrain.corpus.quality import fit_quality
from polyloom.methods.pretrain.corpus.rules import Rules, check_rules, rules_for
from polyloom.methods.pretrain.corpus.tally import Tally, merge
from polyloom.methods.pretrain.data_config import CorpusConfig

RULES = Rules()
WORDS = [f"{a}{b}{c}" for a in ("lo", "ram", "sti") for b in ("bel", "no", "dig") for c in ("a", "er", "isk")]


def prose(num_words: int = 240, seed: int = 0) -> str:
    """Return English-like sentences: the words differ enough to repeat no long run."""
    rng = random.Random(seed)
    words = [rng.choice(WORDS) + rng.choice("bcdfgk") for _ in range(num_words)]
    sentences = [
        "The " + " ".join(words[i : i + 8]) + " and " + " ".join(words[i + 8 : i + 12]) + "."
        for i in range(0, num_words, 12)
    ]
    return "\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4))


def broken(text: str, language: str = "en", rules: Rules = RULES) -> str:
    return (refuse(text, language, rules) or "").partition(" ")[0]


def test_good_prose_passes() -> None:
    assert refuse(prose(), "en", RULES) is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The cat and the dog. " * 3, "words"),
        (prose().replace("The", "# # # The"), "symbols_per_word"),
        ("\n".join("- " + line for line in prose().split("\n")), "bullet_lines"),
        ("\n".join(line + "..." for line in prose().split("\n")), "ellipsis_lines"),
        (prose() + " 12" * 90, "alphabetic_words"),
        ("\n".join("of to be " + "a " * 60 + "." for _ in range(6)), "mean_word_length"),
        (prose().replace("The", "Ze").replace("and", "und"), "stop_words"),
        ("\n".join(line.rstrip(".") + " x" for line in prose().split("\n")), "punctuated_lines"),
        (prose(60).replace("\n", " ").replace(".", ","), "punctuated_lines"),
        (prose(48).replace("\n", " "), "sentences"),
        (prose() + "\n" + "\n".join(f"Short line {i}." for i in range(40)), "short_lines"),
        (prose() + "\n" + prose().split("\n")[0], "repeated_line_characters"),
        (prose() + " Lorem ipsum.", "filler_text"),
        (prose().replace("and", "and androgynously theorematical offerings"), "top_3_gram"),
        (prose() + " " + (" ".join(prose(seed=3).split()[:80]) + " ") * 2, "duplicate_5_gram"),
    ],
)
def test_each_rule_refuses_what_it_is_for(text: str, rule: str) -> None:
    assert broken(text) == rule


def test_duplicate_paragraphs_and_lines_by_share() -> None:
    loose = RULES.model_copy(update={"max_repeated_line_characters": 1.0})
    parts = prose().split("\n")
    assert broken("\n\n".join([*parts, *parts]), rules=loose) == "duplicate_paragraphs"
    assert broken("\n".join([*parts, *parts]), rules=loose) == "duplicate_lines"


def test_line_rules() -> None:
    text = "Home\nAbout us\nPlease enable javascript now to see.\nA line of words.\n\n\nNo full stop here"
    assert trim_lines(text, RULES) == "A line of words.\n\nNo full stop here"
    strict = RULES.model_copy(update={"terminal_punctuation": True})
    assert trim_lines(text, strict) == "A line of words."


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One. Two! Three?", 3),
        ("一。二！三？", 3),
        ("他说：“好。”然后走了。", 2),
        ("एक। दो।", 2),
        ("Title\nA.", 2),
        ("e.g.", 1),
        ("", 0),
    ],
)
def test_sentences_of_many_scripts(text: str, number: int) -> None:
    assert num_sentences(text) == number


def test_chinese_is_not_judged_by_english_words(real_data: Callable[[str], Path]) -> None:
    part = list_parts([str(real_data("udhr/udhr_cmn_hans.xml"))])[0]
    document = next(iter(read_part(part, Reading())))
    assert isinstance(document, RawDocument)
    text = trim_lines(normalise(document.text), RULES)
    assert refuse(text, "zh", RULES) is None
    # The trap: a rule that counts what stands between spaces sees a handful of words, each very long.
    assert len(text.split()) < 120
    assert sum(map(len, text.split())) / len(text.split()) > RULES.max_mean_word_length


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.sampled_from(["en", "zh", "th", "und"]))
def test_the_rules_answer_for_any_text(text: str, language: str) -> None:
    clean = normalise(text)
    trimmed = trim_lines(clean, RULES)
    assert trimmed == trim_lines(trimmed, RULES)
    assert isinstance(refuse(trimmed, language, RULES), str)


def test_thresholds_by_language() -> None:
    overrides = {"*": {"min_words": 10}, "vi": {"min_words": 5}}
    assert rules_for("en", overrides).min_words == 10
    assert (rules_for("vi", overrides).min_words, rules_for("vi", overrides).min_mean_word_length) == (5, 2)
    assert rules_for("fi", {}).max_mean_word_length == 12
    for wrong, message in (({"en": {"min_wrds": 1}}, "min_words"), ({"*": {"min_words": "x"}}, "min_words")):
        with pytest.raises(UserError, match=message):
            check_rules(wrong)


def test_personal_data_become_placeholders() -> None:
    text = (
        "Mail a.b+c@mail.example.org, 4111 1111 1111 1111, 10.2.3.4, 123-45-6789, 11010519491231002X, 12345678Z, "
        "44051401359, RSSMRA85T10A562S."
    )
    found, counts = replace_private(text)
    assert found == "Mail <EMAIL>, <CARD>, <IP>, <ID>, <ID>, <ID>, <ID>, <ID>."
    assert counts == {"email": 1, "card": 1, "ip": 1, "id": 5}


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "version 1.2.3.4.5",
        "256.1.1.1",
        "000-12-3456",
        "110105194912310021",
        "12345678A",
        "44051401358",
        "a@b",
        "2024-01-02",
        "+81 3-1234-5678",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert replace_private(text)[0] == text


def test_a_long_run_of_letters_is_no_trap_for_the_patterns() -> None:
    text = "a" * 200_000 + "@"
    assert replace_private(text)[0] == text


def test_the_quality_model_tells_kinds_apart() -> None:
    good = [prose(60, seed) for seed in range(60)]
    rng = random.Random(0)
    bad = ["".join(rng.choices("xqzjw 0123", k=300)) for _ in range(60)]
    fitted = fit_quality(good, bad)
    assert fitted.auc > 0.95
    assert (fitted.num_train + fitted.num_held_out) == 120
    assert fitted.model.score(prose(60, 999)) > 0.5 > fitted.model.score("xq zj w0 19 qq zz " * 20)
    with pytest.raises(UserError, match="too few"):
        fit_quality(good, bad[:5])


def test_labels_without_a_pattern_give_half() -> None:
    texts = [prose(40, seed) for seed in range(200)]
    assert fit_quality(texts[::2], texts[1::2]).auc == pytest.approx(0.5, abs=0.25)


def clean(document: RawDocument, **options: object) -> Clean | Dropped:
    return Cleaner(CorpusConfig.model_validate({"heuristics": False, **options})).clean(document, Tally())


def test_bad_encoding_is_dropped_at_one_percent() -> None:
    pytest.importorskip("py3langid")
    text = "All human beings are born free and equal in dignity and rights. " * 4
    found = clean(RawDocument(text + "\ufffd" * 9, "1", "s", replaced=9))
    assert isinstance(found, Dropped)
    assert found.reason == "encoding"
    assert isinstance(clean(RawDocument(text + "\ufffd", "1", "s", replaced=1)), Clean)


def test_language_is_found_trusted_or_left_open() -> None:
    pytest.importorskip("py3langid")
    german = "Alle Menschen sind frei und gleich an Würde und Rechten geboren, sie sind mit Vernunft begabt."
    found = clean(RawDocument(german, "1", "s"))
    assert isinstance(found, Clean)
    assert found.language == "de"
    trusted = clean(RawDocument(german, "1", "s", language="nds-DE"))
    assert isinstance(trusted, Clean)
    assert trusted.language == "nds"
    short = clean(RawDocument("Hallo Welt", "1", "s"))
    assert isinstance(short, Clean)
    assert short.language == "und"
    other = clean(RawDocument(german, "1", "s"), languages=["en"])
    assert isinstance(other, Dropped)
    assert other.reason == "other_language"
    unsure = clean(RawDocument("ab cde fgh ijk lmn opq rstu vwx yz " * 2, "1", "s"), min_language_probability=1.0)
    assert isinstance(unsure, Dropped)
    assert unsure.reason == "language_uncertain"


def test_lingua_is_another_identifier() -> None:
    pytest.importorskip("lingua")
    from polyloom.methods.pretrain.corpus.language import identify

    assert identify("Alle Menschen sind frei und gleich an Würde geboren.", "lingua")[0] == "de"


def test_tallies_add_up_in_any_order() -> None:
    tallies = []
    for i in range(3):
        tally = Tally()
        for j in range(30):
            tally.keep("read", "d/en", "a b")
            tally.drop("rule:words", "d/en", f"text {i} {j}", f"{i}-{j}")
        tally.count("licenses", "CC0", 2)
        tallies.append(tally.as_json())
    one, other = merge(tallies), merge(reversed(tallies))
    assert (one.kept, one.dropped, one.samples, one.counts) == (other.kept, other.dropped, other.samples, other.counts)
    assert one.kept["read"]["d/en"] == [90, 270, 180.0]
    assert len(one.samples["rule:words"]) == 20
