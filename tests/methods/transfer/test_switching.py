from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.core.seeding import python_random
from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.data.records import Example, Sentence
from polyloom.methods.transfer.switching import (
    Aids,
    Replacement,
    Stream,
    SwitchPlan,
    count_switches,
    eligible,
    is_protected,
    nearest_sense,
    paper_plan,
    switch,
    switch_all,
    switch_example,
    switch_sentences,
)


def lexicon(**entries: str | tuple[str, ...]) -> Dictionary:
    return Dictionary(
        {
            head: tuple(Translation(one, place="line 1") for one in ((own,) if isinstance(own, str) else own))
            for head, own in entries.items()
        }
    )


DE = lexicon(dog="Hund", cat=("Katze", "Kater"), big="groß", us=("uns",))
ES = lexicon(dog="perro", run="correr")
WORDS = st.sampled_from(("dog", "cat", "Dog", "big", "run", "us", "zzz", "7", "."))


@st.composite
def sentences(draw: st.DrawFn) -> Sentence:
    words = tuple(draw(st.lists(WORDS, min_size=1, max_size=12)))
    labels = tuple(draw(st.sampled_from(("O", "O", "B-X"))) for _ in words)
    heads = tuple(draw(st.integers(0, i)) if i else 0 for i in range(len(words)))
    return Sentence(words, ("NOUN",) * len(words), heads, ("dep",) * len(words), labels)


@st.composite
def plans(draw: st.DrawFn) -> SwitchPlan:
    return SwitchPlan(
        rate=draw(st.floats(0, 1)),
        mode=draw(st.sampled_from(("count", "cosda"))),
        per=draw(st.sampled_from(("word", "sentence"))),
        choose=draw(st.sampled_from(("first", "uniform", "pos"))),
        among=draw(st.sampled_from(("all", "covered", "outside"))),
        mix=draw(st.sampled_from((0.5, 1.0))),
        sync_pairs=draw(st.booleans()),
        protect=draw(st.sampled_from(((), ("numbers",), ("labels", "signs"), ("ca.",)))),
    )


@given(sentences(), sentences(), plans(), st.integers(0, 99))
def test_what_a_switch_may_change(first: Sentence, second: Sentence, plan: SwitchPlan, seed: int) -> None:
    lexicons = {"de": DE, "es": ES}
    made = switch_sentences((first, second), plan, lexicons, Stream(seed, "a"), Aids())
    assert made == switch_sentences((first, second), plan, lexicons, Stream(seed, "a"), Aids())
    for before, after, number in zip((first, second), made.sentences, (0, 1), strict=True):
        # Labels, heads and parts of speech are byte-identical, and every word has its place.
        assert replace(after, words=before.words) == before
        own = {one.position: one for one in made.replacements if one.sentence == number}
        may = {position for _, position, _ in eligible(before, plan)}
        assert set(own) <= may
        for i, (old, new) in enumerate(zip(before.words, after.words, strict=True)):
            if i not in own:
                assert old == new
            else:
                one = own[i]
                assert (one.word, one.translation) == (old, new)
                assert new in {t.text for t in lexicons[one.language].lookup(old)}
            assert not (old in ("zzz", "7", ".") and old != new)
            assert not (plan.among == "outside" and before.labels[i] != "O" and old != new)
            assert not ("labels" in plan.protect and before.labels[i] != "O" and old != new)


@given(sentences(), st.sampled_from(("count", "cosda")), st.integers(0, 99))
def test_rate_zero_is_the_identity_and_rate_one_covers_all(sentence: Sentence, mode: str, seed: int) -> None:
    both = {"de": DE, "es": ES}
    same = switch(sentence, rate=0, languages=both, rng=Stream(seed), mode=mode)  # type: ignore[arg-type]
    assert same == ((sentence,), ())
    made = switch(sentence, rate=1, languages=both, rng=Stream(seed), mode=mode, among="covered")  # type: ignore[arg-type]
    covered = [i for i, word in enumerate(sentence.words) if DE.lookup(word) or ES.lookup(word)]
    assert [one.position for one in made.replacements] == covered
    assert all(made.sentences[0].words[i] != sentence.words[i] for i in covered)


@given(sentences(), st.floats(0, 1), st.integers(0, 99))
def test_an_identity_dictionary_changes_nothing(sentence: Sentence, rate: float, seed: int) -> None:
    """Oracle 15: with t = w every arm lex is base."""
    identity = Dictionary({word: (Translation(word),) for word in sentence.words})
    for plan in (SwitchPlan(rate), paper_plan(rate), SwitchPlan(rate, "cosda", choose="uniform")):
        assert switch_sentences((sentence,), plan, {"de": identity}, Stream(seed), Aids()).sentences == (sentence,)


@given(st.lists(WORDS, min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 999))
def test_the_paper_mode_is_a_simulation_by_hand(words: list[str], rate: float, seed: int) -> None:
    """Oracle 12: one language and one translation."""
    rng = python_random(seed, "switch", "e1", 0)
    wanted = list(words)
    for i in rng.sample(range(len(words)), math.floor(len(words) * rate)):
        key = words[i] if words[i] in DE.entries else words[i].lower()
        if key in DE.entries:
            wanted[i] = DE.entries[key][0].text
    made = switch(words, rate=rate, languages={"de": DE}, rng=Stream(seed, "e1", 5), mode="paper", dynamic=False)
    assert list(made.sentences[0].words) == wanted


def test_the_number_of_changes_is_that_of_the_formula() -> None:
    """Oracle 11: E[#changed] = floor(n r) * coverage, over 10,000 draws; the languages are uniform."""
    words = ["dog", "zzz", "cat", "zzz", "dog", "big", "zzz", "dog", "cat", "zzz"]
    plan, codes = paper_plan(0.5), {"de": DE, "es": lexicon(dog="perro", cat="gato", big="grande")}
    changed: Counter[int] = Counter()
    languages: Counter[str] = Counter()
    for i in range(10_000):
        made = switch_sentences((Sentence(tuple(words)),), plan, codes, Stream(3, str(i)), Aids())
        changed[len(made.replacements)] += 1
        languages.update(one.language for one in made.replacements)
    total = sum(number * count for number, count in changed.items())
    # 5 of 10 are drawn without replacement, 6 of 10 are covered: hypergeometric, mean 3, variance 2/3.
    assert abs(total / 10_000 - 3) < 4 * math.sqrt(2 / 3 / 10_000)
    half = languages.total() / 2
    chi_square = sum((count - half) ** 2 / half for count in languages.values())
    assert chi_square < 10.8  # 0.1 % of one degree of freedom


def test_weights_are_the_shares_of_languages() -> None:
    both = {"de": lexicon(a="b"), "es": lexicon(a="c"), "fr": lexicon(a="d")}
    plan = SwitchPlan(1, weights={"de": 3, "fr": 0})
    found: Counter[str] = Counter()
    for i in range(4000):
        made = switch_sentences((Sentence(("a",)),), plan, both, Stream(0, str(i)), Aids())
        found.update(one.language for one in made.replacements)
    assert found["fr"] == 0
    assert abs(found["de"] / 4000 - 0.75) < 0.03


def test_entities_by_the_paper_rule_are_looked_up_as_written() -> None:
    sentence = Sentence(("Dog", "dog", "cat", "big"), labels=("O", "O", "B-X", "O"))
    made = switch_sentences((sentence,), paper_plan(1, entities=True), {"de": DE}, Stream(0), Aids())
    assert made.sentences[0].words == ("Dog", "Hund", "cat", "groß")
    text = switch_sentences((sentence,), paper_plan(1), {"de": DE}, Stream(0), Aids())
    assert text.sentences[0].words == ("Hund", "Hund", "Katze", "groß")


def test_one_language_a_sentence() -> None:
    both = {"de": lexicon(a="x", b="x"), "es": lexicon(a="y", b="y")}
    for seed in range(30):
        made = switch(["a", "b", "a"], rate=1, languages=both, rng=Stream(seed), per="sentence")
        assert len(set(made.sentences[0].words)) == 1


def test_static_draws_ignore_the_epoch_and_dynamic_ones_do_not() -> None:
    words = ["dog", "cat", "big", "us"] * 4
    for dynamic in (False, True):
        made = {
            switch(words, rate=0.5, languages={"de": DE}, rng=Stream(0, "x", epoch), dynamic=dynamic).sentences
            for epoch in range(6)
        }
        assert (len(made) > 1) == dynamic


def test_translations_are_chosen_by_part_of_speech_frequency_and_sense() -> None:
    run = {"de": Dictionary({"run": (Translation("Lauf", "n"), Translation("laufen", "v"))})}
    verb = Sentence(("run",), ("VERB",))
    assert switch(verb, rate=1, languages=run, rng=Stream(0)).sentences[0].words == ("Lauf",)
    assert switch(verb, rate=1, languages=run, rng=Stream(0), choose="pos").sentences[0].words == ("laufen",)
    adverb = Sentence(("run",), ("ADV",))
    assert switch(adverb, rate=1, languages=run, rng=Stream(0), choose="pos").sentences[0].words == ("Lauf",)
    aids = Aids({"laufen": 7.0})
    assert switch(verb, rate=1, languages=run, rng=Stream(0), choose="freq", aids=aids).sentences[0].words == (
        "laufen",
    )
    found = {
        switch(verb, rate=1, languages=run, rng=Stream(seed), choose="uniform").sentences[0].words for seed in range(20)
    }
    assert found == {("Lauf",), ("laufen",)}


def test_the_sense_is_the_nearest_to_the_context() -> None:
    table = {"river": [1.0, 0.1], "bank": [0.5, 0.5], "Ufer": [0.9, 0.0], "Bank": [0.0, 1.0], "money": [0.0, 1.0]}

    def embed(word: str) -> np.ndarray:
        return np.array(table[word], dtype=np.float32)

    assert nearest_sense(("river", "bank"), 1, ("Bank", "Ufer"), embed) == 1
    assert nearest_sense(("money", "bank"), 1, ("Bank", "Ufer"), embed) == 0
    dictionary = {"de": lexicon(bank=("Bank", "Ufer"))}
    made = switch(
        ["river", "bank"], rate=1, languages=dictionary, rng=Stream(0), choose="sense", aids=Aids(embed=embed)
    )
    assert made.sentences[0].words == ("river", "Ufer")


def test_a_pair_is_switched_alike() -> None:
    dictionary = {"de": lexicon(dog=("Hund", "Köter"), cat=("Katze", "Kater")), "es": lexicon(dog="perro")}
    for seed in range(60):
        made = switch(
            ["dog", "cat", "zzz"],
            ["Dog", "dog", "cat"],
            rate=0.5,
            languages=dictionary,
            rng=Stream(seed),
            choose="uniform",
            sync_pairs=True,
        )
        first, second = (one.words for one in made.sentences)
        assert len({first[0].lower(), second[0].lower(), second[1].lower()}) == 1
        assert first[1] == second[2]
        assert len(made.replacements) <= 3


def test_several_words_stay_one_node() -> None:
    sentence = Sentence(("go", "away"), ("VERB", "ADV"), (0, 1), ("root", "advmod"), ("O", "B-X"))
    made = switch(sentence, rate=1, languages={"de": lexicon(go="gehe jetzt")}, rng=Stream(0)).sentences[0]
    assert made.words == ("gehe jetzt", "away")
    assert (made.heads, made.labels) == (sentence.heads, sentence.labels)


def test_mix_leaves_whole_examples() -> None:
    untouched = sum(
        not switch(["dog"] * 9, rate=1, languages={"de": DE}, rng=Stream(0, str(i)), mix=0.8).replacements
        for i in range(3000)
    )
    assert abs(untouched / 3000 - 0.2) < 0.03


@pytest.mark.parametrize(
    ("word", "kind", "yes"),
    [
        ("1,000.5", "numbers", True),
        ("$7", "numbers", True),
        ("7pm", "numbers", False),
        ("https://a.b/c", "urls", True),
        ("a.b@c.de", "urls", True),
        ("a.b", "urls", False),
        ("{name}", "placeholders", True),
        ("<x>", "placeholders", True),
        ("@user", "placeholders", True),
        ("name", "placeholders", False),
        ("...", "signs", True),
        ("dog", "d.g", True),
        ("dogs", "d.g", False),
    ],
)
def test_protected_kinds(word: str, kind: str, yes: bool) -> None:
    assert is_protected(word, (kind,)) == yes


def test_the_log_names_the_place() -> None:
    made = switch(["a", "dog"], rate=1, languages={"de": DE}, rng=Stream(0, "e7"))
    assert made.replacements == (Replacement("e7", 0, 1, "dog", "Hund", "de", "line 1"),)


def examples(number: int = 60) -> list[Example]:
    rng = random.Random(1)
    words = ("dog", "cat", "big", "run", "zzz", "7")
    return [
        Example(str(i), (Sentence(tuple(rng.choices(words, k=rng.randint(1, 12)))),), "label") for i in range(number)
    ]


def test_any_number_of_workers_and_any_order_gives_the_same() -> None:
    data, plan, both = examples(), SwitchPlan(0.6, "cosda", choose="uniform", mix=0.9), {"de": DE, "es": ES}
    wanted = switch_all(data, plan, both, seed=5, epoch=2)
    for number in (2, 3):
        assert switch_all(data, plan, both, seed=5, epoch=2, num_workers=number) == wanted
    assert switch_all(data[::-1], plan, both, seed=5, epoch=2) == wanted[::-1]
    assert switch_all(data, plan, both, seed=6, epoch=2) != wanted
    assert switch_example(data[3], plan, both, 5, 2, Aids()).sentences == wanted[3].sentences


def test_counts() -> None:
    data = [Example("a", (Sentence(("dog", "zzz", "7")),)), Example("b", (Sentence(("zzz",)),))]
    plan = SwitchPlan(1, protect=("numbers",))
    counts = count_switches(data, switch_all(data, plan, {"de": DE}, seed=0), plan, {"de": DE})
    assert (counts.words, counts.eligible, counts.covered, counts.replaced, counts.touched) == (4, 3, 1, 1, 1)
    assert counts.realised_rate == 0.25
    assert counts.out_of_dictionary_share == pytest.approx(2 / 3)
    assert counts.languages == {"de": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "paper", "dynamic": False, "choose": "uniform"}, "the paper's rule has choose first, not uniform"),
        ({"mode": "paper"}, "the paper's rule has dynamic False"),
        ({"mode": "paper", "dynamic": False, "among": "covered"}, "the paper draws among all words"),
        ({"among": "outside"}, "has no labels to be outside of"),
        ({"choose": "freq"}, "needs frequencies"),
        ({"choose": "sense"}, "needs an encoder"),
        ({"protect": ["("]}, "is no kind and no expression"),
        ({"weights": {"de": -1}}, "weight is negative"),
        ({"mix": 2}, "are shares"),
    ],
)
def test_settings_that_contradict_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        switch(["dog"], rate=1, languages={"de": DE}, rng=Stream(0), **options)


def test_without_dictionaries_nothing_happens() -> None:
    assert switch(["dog"], rate=1, languages={}, rng=Stream(0)).sentences[0].words == ("dog",)
    only = SwitchPlan(1, weights={"de": 0})
    assert switch_sentences((Sentence(("dog",)),), only, {"de": DE}, Stream(0), Aids()).replacements == ()
