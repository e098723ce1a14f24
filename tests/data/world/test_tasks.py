"""Tasks: oracles of each kind of record, shortcuts that must not work, splits that never leak, formats and refusals."""

import collections
import json
import random
import re
import subprocess
import sys

import pytest

from polyloom.core.errors import UserError
from polyloom.data.world import (
    LANGUAGES,
    NOTICE,
    SPLITS,
    TASKS,
    World,
    describe,
    export,
    fingerprint,
    instruction_tasks,
    records,
    relatedness,
    text_corpus,
    wordings,
)
from polyloom.data.world.locale_data import versions
from polyloom.data.world.nli import label_of
from polyloom.data.world.world import fact_frame

ALL = list(LANGUAGES)
WORLD = World(ALL)
FIVE = ["en", "ja", "de", "ar", "ko"]


def languages_for(name: str, codes=("en", "ja")) -> tuple[str, ...]:
    return codes if TASKS[name].num_languages[0] == 2 else codes[:1]


# ---- identity

PRINT = """
import hashlib, json, sys
from polyloom.data.world import TASKS, World, fingerprint
world = World(["en", "ja"], seed=3)
digest = hashlib.sha256()
for name, task in TASKS.items():
    for index in (5, 2):
        chosen = ("en", "ja") if task.num_languages[0] == 2 else ("ja",)
        digest.update(json.dumps(task.make(world, chosen, index, "train")).encode())
print(digest.hexdigest(), fingerprint(world), "torch" in sys.modules)
"""


def test_two_processes_make_the_same_records_without_torch():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PRINT],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "77")
    }
    assert len(outputs) == 1
    assert outputs.pop().split()[-1] == "False"


def test_records_do_not_need_the_ones_before():
    for name, task in TASKS.items():
        chosen = languages_for(name)
        whole = list(records(WORLD, name, chosen, 3, "test"))
        fresh = World(ALL)
        assert task.make(fresh, chosen, 2, "test") == whole[2], name


def test_the_fingerprint_follows_seed_and_facts():
    found = {fingerprint(World(["en", "ja"], seed)) for seed in (0, 1)}
    assert len(found | {fingerprint(World(["en", "ja"], 0, "invented"))}) == 3


@pytest.mark.skipif(versions() != {"babel": "2.18.0", "cldr": "47"}, reason="pinned for Babel 2.18.0 with CLDR 47")
def test_pinned_fingerprint():
    assert fingerprint(World(["en", "ja"])) == PINNED


PINNED = "c08dbc685146d6387c7b61e919511f829243a095c1ccfeed99019907d036d514"

# ---- splits


@pytest.mark.parametrize("mode", ["random", "entities", "composition"])
def test_no_meaning_is_in_two_splits(mode):
    seen: dict[str, str] = {}
    for split in SPLITS:
        for i in range(120):
            draw = WORLD.draw("leak", i, split, mode)
            for kind in ("date", "money", "measure", "relative", "name", "list", "interval"):
                frame = draw.phrase(kind)
                assert WORLD.split_of(frame, mode) == split
                assert seen.setdefault(frame.kind + frame.iso(), split) == split
            for frame in (draw.fact(), draw.diary()):
                assert seen.setdefault(frame.iso(), split) == split


@pytest.mark.parametrize("mode", ["random", "entities", "composition"])
@pytest.mark.parametrize("pair", [("en", "de"), ("ja", "ar")])
def test_pairs_of_two_splits_share_no_meaning_in_any_pair_of_languages(mode, pair):
    texts = {
        split: {
            tuple(r["translation"].values())
            for r in records(WORLD, "parallel", pair, 250, split, mode, kinds=["date", "diary", "mixed"])
        }
        for split in SPLITS
    }
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["valid"]


def test_entity_splits_share_no_held_out_code():
    groups = {split: set(WORLD.draw("g", 0, split, "entities").territories()) for split in SPLITS}
    assert not groups["train"] & groups["test"]
    assert sum(len(codes) for codes in groups.values()) == len(WORLD.facts.territories)
    for split in ("train", "test"):
        for record in records(WORLD, "chat", ["en"], 80, split, "entities"):
            assert record["territory"] in groups[split]
        for record in records(WORLD, "documents", ["en"], 40, split, "entities"):
            item = WORLD.lexicons["en"]
            held = {item.name("territory", code) for code in groups[split]}
            heads = {record["vertexSet"][label["h"]][0]["name"] for label in record["labels"] if label["r"] == "P37"}
            assert heads <= held


def test_composition_splits_hold_pairs_out_whose_parts_are_known():
    def pairs(split):
        frames = [WORLD.draw("c", i, split, "composition").phrase("date") for i in range(600)]
        from polyloom.data.world.frames import python_date

        return {(frame.args[1], python_date(frame).weekday()) for frame in frames}

    train, test = pairs("train"), pairs("test")
    assert not train & test
    assert {month for month, _ in test} <= {month for month, _ in train}
    assert {day for _, day in test} <= {day for _, day in train}


def test_every_task_makes_every_split():
    world = World(["en", "ja"])
    for name, task in TASKS.items():
        for split in SPLITS:
            for mode in ("random", "entities", "composition"):
                options = {"num_instances": 1} if name == "instructions" else {}
                for i in range(6):
                    assert task.make(world, languages_for(name), i, split, mode, **options)


# ---- documents


def test_documents_have_one_graph_in_all_languages():
    for i in range(40):
        made = {code: TASKS["documents"].make(WORLD, (code,), i) for code in ("en", "ja", "ko", "ar", "tr")}
        assert len({json.dumps(record["labels"]) for record in made.values()}) == 1
        assert len({len(record["vertexSet"]) for record in made.values()}) == 1


@pytest.mark.parametrize("language", ALL)
def test_mentions_are_their_tokens_and_evidence_holds_its_entities(language):
    for record in records(WORLD, "documents", [language], 25):
        for mentions in record["vertexSet"]:
            assert mentions
            for mention in mentions:
                start, end = mention["pos"]
                joined = "".join(record["sents"][mention["sent_id"]][start:end])
                assert joined == "".join(mention["name"].split())
        for label in record["labels"]:
            assert label["h"] != label["t"]
            assert label["evidence"] == sorted(set(label["evidence"]))
            for entity in (label["h"], label["t"]):
                assert {m["sent_id"] for m in record["vertexSet"][entity]} & set(label["evidence"]), (
                    record["text"],
                    label,
                )


def test_documents_are_about_as_hard_as_docred():
    made = list(records(WORLD, "documents", ["en"], 300))
    labels = [label for record in made for label in record["labels"]]
    assert 8 <= sum(len(r["sents"]) for r in made) / 300 <= 13
    assert 14 <= sum(len(r["vertexSet"]) for r in made) / 300 <= 20
    assert 12 <= len(labels) / 300 <= 25
    assert 0.33 <= sum(len(label["evidence"]) > 1 for label in labels) / len(labels) <= 0.47
    triples = [(label["h"], label["r"], label["t"]) for label in made[0]["labels"]]
    assert len(triples) == len(set(triples))


def test_noise_keeps_the_truth_beside_it():
    clean = [TASKS["documents"].make(WORLD, ("ja",), i) for i in range(60)]
    noisy = [
        TASKS["documents"].make(WORLD, ("ja",), i, missing=0.5, own_names=0.5, foreign_order=0.5) for i in range(60)
    ]
    kept = sum(len(record["labels"]) for record in noisy) / sum(len(record["true_labels"]) for record in noisy)
    assert 0.4 < kept < 0.6
    for a, b in zip(clean, noisy, strict=True):
        assert a["labels"] == b["true_labels"]
    assert sum(a["text"] != b["text"] for a, b in zip(clean, noisy, strict=True)) > 50


# ---- labels


def test_nli_labels_follow_from_the_sets():
    for record in records(WORLD, "nli", ["de", "en"], 600):
        assert record["label"] == label_of(record["meaning"]["premise"], record["meaning"]["hypothesis"]), record


def naive_bayes(texts, labels, share=0.8) -> float:
    """Return the test accuracy of a unigram and bigram naive Bayes."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    cut = int(len(texts) * share)
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+").fit(texts[:cut])
    model = MultinomialNB().fit(counts.transform(texts[:cut]), labels[:cut])
    return float(model.score(counts.transform(texts[cut:]), labels[cut:]))


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_hypothesis_alone_does_not_give_the_label(language):
    made = list(records(WORLD, "nli", [language], 6000))
    random.Random(0).shuffle(made)
    assert naive_bayes([record["hypothesis"] for record in made], [record["label"] for record in made]) <= 0.40


def test_a_bag_of_words_does_not_match_at_hardness_three():
    from sklearn.linear_model import LogisticRegression

    made = list(records(WORLD, "matching", ["en"], 3000, hardness=3))
    rows, labels = [], [record["label"] for record in made]
    for record in made:
        a, b = (
            collections.Counter(record[key].replace(":", "").replace(";", "").split())
            for key in ("sentence1", "sentence2")
        )
        common, all_ = (a & b).total(), (a | b).total()
        rows.append([common, all_ - common, common / all_, a.total(), b.total(), abs(a.total() - b.total())])
    score = LogisticRegression(max_iter=2000).fit(rows[:2400], labels[:2400]).score(rows[2400:], labels[2400:])
    assert score <= 0.65
    texts = [record["sentence1"] + " " + record["sentence2"] for record in made]
    assert naive_bayes(texts, labels) <= 0.65


@pytest.mark.parametrize(("hardness", "limit"), [(2, 0.63), (3, 0.55)])
def test_length_alone_does_not_match(hardness, limit):
    from sklearn.tree import DecisionTreeClassifier

    made = list(records(WORLD, "matching", ["en"], 4000, hardness=hardness))
    random.Random(0).shuffle(made)
    rows = [[len(record["sentence1"]), len(record["sentence2"])] for record in made]
    labels = [record["label"] for record in made]
    model = DecisionTreeClassifier(max_depth=3, random_state=0).fit(rows[:3000], labels[:3000])
    assert model.score(rows[3000:], labels[3000:]) <= limit


def test_matching_labels_are_balanced_and_texts_differ():
    for hardness in range(4):
        made = list(records(WORLD, "matching", ["fr"], 200, hardness=hardness))
        assert sum(record["label"] for record in made) == 100
        assert all(record["sentence1"] != record["sentence2"] for record in made)


def test_a_text_never_matches_and_mismatches_itself():
    seen: dict[tuple[str, str], int] = {}
    for record in records(WORLD, "matching", ["en"], 3000):
        pair = (record["sentence1"], record["sentence2"])
        assert seen.setdefault(pair, record["label"]) == record["label"]


def test_parses_and_brackets():
    for record in records(WORLD, "top", FIVE, 300):
        parse = record["semantic_parse"]
        assert parse.count("[") == parse.count("]")
        assert parse.startswith("[IN:")
        depth = 0
        for char in parse:
            depth += (char == "[") - (char == "]")
            assert depth >= 0
    parses = {record["domain"] for record in records(WORLD, "parse", ["sw"], 300)}
    assert len(parses) == 10


def test_an_utterance_has_one_parse():
    for code in ("en", "ru", "zh"):
        seen: dict[tuple[str, str], str] = {}
        for record in records(WORLD, "parse", [code], 1500):
            key = record["domain"], record["utterance"]
            assert seen.setdefault(key, record["semantic_parse"]) == record["semantic_parse"]


# ---- instructions


def test_the_meta_dataset():
    tasks = instruction_tasks(["en", "de", "ja", "sw"])
    assert len(tasks) == len({task.name for task in tasks}) >= 200
    assert len(instruction_tasks(["en", "ja"])) >= 100
    for task in tasks:
        said = wordings(task)
        assert len(set(said)) == len(said) >= 20
        assert not any("{" in text for text in said)


def test_relatedness_is_shared_structure():
    tasks = instruction_tasks(["en", "de"])
    matrix = relatedness(tasks)
    by_name = {task.name: i for i, task in enumerate(tasks)}
    a, b, c = by_name["normalise_date_en"], by_name["normalise_date_de"], by_name["translate_list_de_en"]
    assert matrix[a][a] == 1
    assert matrix[a][b] == pytest.approx(2 / 3)
    assert matrix[a][c] == pytest.approx(0.5 / 3)
    assert all(matrix[i][j] == matrix[j][i] for i in range(0, len(tasks), 9) for j in range(0, len(tasks), 7))


def test_instances_are_right():
    world = World(["en", "de"])
    found = {
        record["name"]: record
        for record in records(world, "instructions", ["en", "de"], len(instruction_tasks(["en", "de"])))
    }
    for one in found["count_list_en"]["Instances"]:
        assert 2 <= int(one["output"][0]) <= 5
    weekday = found["weekday_date_en"]["Instances"][0]
    assert weekday["output"][0] in {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}
    for name in ("extract_city_en", "extract_money_de"):
        assert all(one["output"][0] in one["input"] for one in found[name]["Instances"])
    for one in found["fill_gap_date_de"]["Instances"]:
        assert "___" in one["input"]
        assert one["output"][0] not in one["input"]
    wrong = found["translate_date_en_de"]["Negative Examples"][0]
    assert wrong["output"]


# ---- chat, text, summaries, dictionaries


def test_chat_refuses_the_sealed_alone():
    refusals = {WORLD.text(frame, "en").text for frame in [_refusal(i) for i in range(3)]}
    sealed = 0
    for record in records(WORLD, "chat", ["en"], 300, "all"):
        said = record["messages"][-1]["content"]
        assert (said in refusals) == record["sealed"]
        assert record["answer_text"].casefold() in said.casefold() or record["sealed"]
        assert record["answer"] == WORLD.facts.currency[record["territory"]]
        sealed += record["sealed"]
    assert 40 < sealed < 120


def _refusal(i):
    from polyloom.data.world import Frame

    return Frame("refusal", (i,))


def test_refusals_can_be_kept_to_some_languages():
    made = list(records(WORLD, "chat", ["en", "sw"], 100, "all", sealed="only", refuse_in=["en"]))
    assert {(record["language"], record["refused"]) for record in made} == {("en", True), ("sw", False)}


def test_all_facts_are_in_the_whole_text():
    corpus = "".join(text_corpus(["en"], 200_000, split="all")["en"])
    world = World(["en"])
    for fact in world.facts.all():
        if fact.relation in ("P38", "P37"):
            kind = "currency" if fact.relation == "P38" else "language"
            place, value = (
                world.lexicons["en"].name("territory", fact.subject),
                world.lexicons["en"].name(kind, fact.object),
            )
            label = "currency" if fact.relation == "P38" else "official language"
            full = [world.text(fact_frame(fact), "en", variant=variant).text for variant in (0, 1)]
            assert any(text in corpus for text in full), (place, label, value)


SENTENCE = {"de": re.compile(r"(?<=[a-z)])\. "), "ja": re.compile("。")}


def test_the_corpus_is_large_enough_and_splits_share_no_sentence():
    train = text_corpus(["de", "ja"], 30_000)
    test = text_corpus(["de", "ja"], 30_000, split="test")
    for code in ("de", "ja"):
        assert sum(map(len, train[code])) >= 30_000
        # No sentence: the days, prices, diary entries and facts of a document are all of its split.
        first, second = ({part for text in made[code] for part in SENTENCE[code].split(text)} for made in (train, test))
        assert not {part for part in first & second if len(part) > 12}
    assert all(len(text) >= 3 for text in train["ja"])


def test_documents_have_three_to_twelve_sentences():
    for record in records(WORLD, "text", ["sv"], 200):
        assert 3 <= record["meta"]["sentences"] <= 13


def test_summaries_add_up():
    for record in records(WORLD, "summary", ["ru", "ja"], 40):
        assert str(record["slots"]["kilometers"]) in record["summary"].replace(",", "")
        for city in record["slots"]["cities"]:
            assert WORLD.lexicons["ja"].name("city", city) in record["summary"]
            assert WORLD.lexicons["ru"].name("city", city) in record["text"]
    short = next(records(WORLD, "summary", ["en"], 1, no_sum=True))
    assert short["slots"]["kilometers"] is None


def test_dictionaries_are_large_and_two_forms_of_slavic_months_are_kept():
    world = World(["ru", "en"])
    with pytest.warns(UserWarning, match="distinct records"):
        made = list(records(world, "dictionary", ["ru", "en"], 2000, "all"))
    entries = {(record["kind"], record["code"]): record["source"] for record in made}
    assert len(entries) >= 694
    assert entries["month", "03"] == "март"
    assert entries["month in a date", "03"] == "марта"


# ---- formats and refusals


def test_every_format_is_written():
    world = World(["en", "ja"])
    for name, task in TASKS.items():
        for form in task.formats:
            lines = list(export(records(world, name, languages_for(name), 4), name, form))
            assert lines
            assert not any("\n" in line for line in lines)
            if form == "jsonl":
                assert all(json.loads(line) for line in lines)
            if form == "json":
                assert len(json.loads("\n".join(lines))) == 4


def test_conllu_lines():
    lines = list(export(records(WORLD, "trees", ["en"], 2), "trees"))
    assert lines[0].startswith("# sent_id = en-train-0")
    assert lines[-1] == ""
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    assert all(len(row) == 10 for row in rows)


def test_muse_lines():
    assert all(
        line.count("\t") == 1 for line in export(records(WORLD, "dictionary", ["de", "ja"], 50), "dictionary", "muse")
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: World(["xx"]), "no language 'xx'"),
        (lambda: World([]), "No language"),
        (lambda: World(["de", "de"]), "twice"),
        (lambda: World(["de"], facts="made up"), "facts"),
        (lambda: World(["de"], digits="roman"), "digits"),
        (lambda: records(WORLD, "chat", ["de"], 0), "at least 1"),
        (lambda: records(WORLD, "paralel", ["de", "en"], 1), "Did you mean 'parallel'"),
        (lambda: records(WORLD, "parallel", ["de"], 1), "2 or more"),
        (lambda: records(WORLD, "dictionary", ["de", "en", "fr"], 1), "takes 2"),
        (lambda: records(WORLD, "summary", ["de", "de"], 1), "same language"),
        (lambda: records(World(["de"]), "chat", ["en"], 1), "does not speak"),
        (lambda: list(records(WORLD, "chat", ["en"], 1, "tset")), "no split"),
        (lambda: list(records(WORLD, "chat", ["en"], 1, "test", "randon")), "split mode"),
        (lambda: list(records(WORLD, "chat", ["en"], 1, sealed="maybe")), "sealed"),
        (lambda: list(records(WORLD, "chat", ["en"], 1, colour="red")), "no such option"),
        (lambda: list(records(WORLD, "matching", ["en"], 1, hardness=7)), "hardness 7"),
        (lambda: list(records(WORLD, "documents", ["en"], 1, missing=2.0)), "between 0 and 1"),
        (lambda: list(records(WORLD, "parse", ["en"], 1, kinds=["dates"])), "dates"),
        (lambda: list(records(WORLD, "parse", ["en"], 1, kinds=[])), "kinds is empty"),
        (lambda: list(records(WORLD, "parallel", ["en", "de"], 1, kinds=[])), "kinds is empty"),
        (lambda: export([], "chat", "tsv"), "not exported"),
        (lambda: text_corpus(["en"], 0), "at least 1"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_another_cldr_is_warned_of_and_an_old_babel_refused(monkeypatch):
    from polyloom.data.world import locale_data

    monkeypatch.setattr(locale_data, "versions", lambda: {"babel": "2.19.0", "cldr": "48"})
    with pytest.warns(UserWarning, match="fingerprint differs"):
        World(["en"])
    monkeypatch.setattr(locale_data.babel, "__version__", "2.16.0")
    with pytest.raises(UserError, match="too old"):
        World(["en"])


def test_native_digits_match_latin_ones():
    made = list(records(WORLD, "matching", ["hi"], 400, hardness=2))
    assert any(any("०" <= char <= "९" for char in record["sentence1"] + record["sentence2"]) for record in made)


def test_describe():
    found = describe(World(["en", "ja"]))
    assert found["languages"] == ["en", "ja"]
    assert found["facts_total"] > 1500
    assert found["fingerprint"]
    assert NOTICE == "CLDR world (synthetic sentences)"


def test_invented_facts_serve_every_task():
    world = World(["en", "ja", "hi"], facts="invented")
    for name, task in TASKS.items():
        record = task.make(world, languages_for(name), 1, "train")
        assert record
        text = json.dumps(record, ensure_ascii=False)
        assert "Euro" not in text
