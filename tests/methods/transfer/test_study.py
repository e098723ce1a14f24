"""The protocol and the verbs, end to end: arms that must be equal, refusals, files, selection, resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyloom.core.errors import Stopped, UserError
from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.data.records import Example, Sentence
from polyloom.methods.transfer.arms import ARMS, check_leak, find_arms, plan_of, random_heads, syntax_of
from polyloom.methods.transfer.config import TransferEvaluateConfig, TransferTrainConfig
from polyloom.methods.transfer.data import (
    Data,
    read_data,
    split_dev,
    tree_index,
    with_trees,
    world_data,
    world_example,
)
from polyloom.methods.transfer.encoders import known_words, make_start
from polyloom.methods.transfer.method import tree_distances
from polyloom.methods.transfer.models import Predictions
from polyloom.methods.transfer.protocol import Outcome, measure, run_protocol, unknown_labels
from polyloom.methods.transfer.results import compare_arms, scalars_of, verdicts_of
from polyloom.methods.transfer.sequences import Targets, gold_heads
from polyloom.methods.transfer.study import xtreme_lines
from polyloom.methods.transfer.training import batch_rows, default_average, load_snapshot
from polyloom.runs.execute import resume, run_verb
from polyloom.runs.folder import Run

Cli = Callable[..., Any]
COLOURS = {"red": "rot", "blue": "blau", "green": "gruen"}
ANIMALS = {"dog": "hund", "cat": "katze", "cow": "kuh"}


def example(index: int, language: str = "en", pair: bool = False) -> Example:
    """Say "the COLOUR ANIMAL sleeps": the colour is the class, the animal an entity."""
    colour, animal = list(COLOURS)[index % 3], list(ANIMALS)[index // 3 % 3]
    filler = ["now", "here", "there", "today"][index % 4]
    words = ["the", colour, animal, "sleeps", filler]
    if language == "de":
        words = ["das", COLOURS[colour], ANIMALS[animal], "schlaeft", filler]
    sentence = Sentence(
        tuple(words),
        ("DET", "ADJ", "NOUN", "VERB", "ADV"),
        (3, 3, 4, 0, 4),
        ("det", "amod", "nsubj", "root", "advmod"),
        ("O", "O", "B-ANIMAL", "O", "O"),
        id=f"{index}",
        source=f"hand:{index}",
    )
    return Example(f"{index}", (sentence, sentence) if pair else (sentence,), colour, language)


def lexicon(entries: dict[str, str]) -> Dictionary:
    return Dictionary({word: (Translation(other),) for word, other in entries.items()})


FULL = {"the": "das", "sleeps": "schlaeft", **COLOURS, **ANIMALS}


def hand_data(dictionary: dict[str, str] = FULL, size: int = 36) -> Data:
    examples = [example(i) for i in range(size)]
    tests = {code: [example(i, code) for i in range(18)] for code in ("en", "de")}
    texts = [one.sentences[0].words for one in [*examples, *tests["de"]]]
    return Data("en", examples, examples[:9], tests, lexicons={"de": lexicon(dictionary)}, texts=texts, has_trees=True)


SMALL = {
    "encoder": "words",
    "width": 16,
    "epochs": 6,
    "batch_size": 8,
    "learning_rate": 0.02,
    "num_seeds": 1,
    "save": "none",
    "rate": 1.0,
    "mix": 0.7,
    "device": "cpu",
}
TINY = SMALL | {"encoder": "tiny", "vocabulary": 320, "learning_rate": 3e-3, "graph_layers": 1, "epochs": 2}


def protocol(run: Run, data: Data, **changes: Any) -> dict[str, Outcome]:
    config = TransferTrainConfig(**(SMALL | changes))
    return {f"{one.arm} {one.seed}": one for one in run_protocol(config, data, run)[1]}


# ---- the protocol


def test_relations_come_with_gold_trees_alone() -> None:
    found = {name: syntax_of(arm, TransferTrainConfig(deprel=True)) for name, arm in ARMS.items()}
    assert {name for name, syntax in found.items() if syntax and syntax.deprel} == {"syn", "lexsyn", "syn-tree"}
    assert {name for name, syntax in found.items() if syntax} > {"syn-upos", "syn-random", "syn-chain", "lexsyn-random"}


def test_a_dictionary_carries_labels_to_words_that_were_never_seen(run: Run):
    found = protocol(run, hand_data(), arms=["base", "lex", "lex-static"], task="intent")
    assert found["base 0"].value("en", "intent accuracy") == 100
    assert found["base 0"].value("de", "intent accuracy") < 60
    assert found["lex 0"].value("de", "intent accuracy") == 100
    assert found["lex 0"].value("de", "slot F1") > 90
    assert found["lex 0"].realised_rate > 0.4
    assert found["base 0"].num_parameters == found["lex 0"].num_parameters


def test_an_identity_dictionary_gives_the_base_exactly(run: Run):
    data = hand_data({word: word for word in FULL})
    found = protocol(run, data, arms=["base", "lex", "lex-all", "lex-static"])
    for arm in ("lex", "lex-all", "lex-static"):
        for code in data.tests:
            for metric, counts in found["base 0"].counts[code].items():
                assert np.array_equal(found[f"{arm} 0"].counts[code][metric], counts)


def test_zero_fusion_without_structure_and_without_learning_is_the_base(run: Run):
    settings = TINY | {"arms": ["base", "syn"], "zero_init": True, "learning_rate": 1e-12, "pretrain_epochs": 0}
    found = protocol(run, hand_data(), **settings)
    for code in ("en", "de"):
        for metric, counts in found["base 0"].counts[code].items():
            assert np.array_equal(found["syn 0"].counts[code][metric], counts)
    assert found["syn 0"].num_parameters > found["base 0"].num_parameters


def test_every_arm_trains(run: Run):
    data = hand_data(size=16)
    data.translations = {"de": [example(i, "de") for i in range(16)]}
    found = protocol(run, data, **TINY | {"arms": list(ARMS), "consistency": 1.0, "epochs": 1})
    assert len(found) == len(ARMS)
    assert all(np.isfinite(one.value("de", "exact match")) for one in found.values())


@pytest.mark.parametrize("select", ["dev", "switched-dev", "average"])
def test_checkpoints_are_chosen_on_the_source_and_the_oracle_is_printed_beside(run: Run, select: str):
    data = hand_data()
    data.oracles = {"de": data.tests["de"]}
    found = protocol(run, data, arms=["lex"], select=select, target_dev=["de=x"], epochs=3)["lex 0"]
    assert len(found.oracle["de"]) == 3
    assert found.chosen in ((0,) if select == "average" else (1, 2, 3))
    if found.chosen:
        assert found.value("de", "intent accuracy") == pytest.approx(found.oracle["de"][found.chosen - 1], abs=1e-3)


def test_averaged_snapshots_are_means(tmp_path: Path):
    from safetensors.torch import save_file

    from polyloom.methods.transfer.models import TransferModel, WordEncoder

    model = TransferModel(WordEncoder(5, 4, 0.0), Targets(("a", "b")), seed=0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "1")
    save_file({name: value + 2 for name, value in state.items()}, tmp_path / "2")
    load_snapshot(model, [tmp_path / "1", tmp_path / "2"])
    assert all(torch.allclose(value, state[name] + 1) for name, value in model.state_dict().items())
    assert default_average([Path("1"), Path("2"), Path("3")]) == [Path("2"), Path("3")]


def test_batches_are_the_same_for_all_and_hold_every_example_once_an_epoch():
    sizes = [(7 * i) % 13 for i in range(53)]
    rows_at = batch_rows(sizes, 8, seed=4)
    epoch = [row for step in range(7) for row in rows_at(step)]
    assert set(epoch) == set(range(53))
    assert len(epoch) == 56
    assert [batch_rows(sizes, 8, seed=4)(step) for step in range(14)] == [rows_at(step) for step in range(14)]
    assert rows_at(7) != rows_at(0)
    assert batch_rows([1, 2], 5, seed=0)(0) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


def test_random_trees_are_trees_and_repeat():
    sentence = example(0).sentences[0]
    draw = random_heads(3)
    heads = draw(sentence, "0/0")
    assert heads == random_heads(3)(sentence, "0/0")
    tree_distances(list(heads))
    assert len({tuple(draw(sentence, f"{i}/0")) for i in range(20)}) > 10


# ---- data


def test_trees_are_matched_by_words_also_by_those_of_the_written_text():
    from polyloom.data.records import Range

    bank = Sentence(
        ("an", "dem", "Montag"), ("ADP", "DET", "NOUN"), (3, 3, 0), ("case", "det", "root"), ranges=(Range(1, 2, "am"),)
    )
    plain = [Example("a", (Sentence(("an", "dem", "Montag"), labels=("O", "O", "O")),))]
    written = [Example("b", (Sentence(("am", "Montag"), labels=("O", "O")),))]
    other = [Example("c", (Sentence(("nie",), labels=("O",)),))]
    found, missing = with_trees([*plain, *written, *other], tree_index([bank]))
    assert [one.sentences[0].heads for one in found] == [(3, 3, 0), (2, 0), ()]
    assert missing == 1
    assert list(gold_heads(found[2].sentences[0], "")) == [0]
    assert found[0].sentences[0].labels == ("O", "O", "O")


def test_the_held_out_tenth_depends_on_the_words_alone():
    examples = [example(i) for i in range(36)]
    train, dev = split_dev(examples)
    assert len(train) + len(dev) == 36
    texts = {one.sentences[0].words for one in dev}
    assert not any(one.sentences[0].words in texts for one in train)
    assert split_dev(examples[::-1])[1] == dev[::-1]


def test_the_world_says_the_same_meanings_in_all_languages():
    data = world_data("en", ["de", "es"], 0, 20, 20)
    assert [one.label for one in data.tests["en"]] == [one.label for one in data.tests["de"]]
    for examples in data.tests.values():
        for one in examples:
            tree_distances([0, *(head + 1 for head in one.sentences[0].heads)])
    assert set(data.lexicons) == {"de", "es"}
    kinds = [sorted({tag for one in data.tests[code] for tag in one.sentences[0].labels}) for code in ("en", "de")]
    assert kinds[0] == kinds[1]
    assert not {one.sentences[0].words for one in data.train} & {one.sentences[0].words for one in data.tests["en"]}


def test_known_words_hold_the_translations_of_the_training_words():
    assert {"red", "rot", "hund"} <= set(known_words(hand_data()))


# ---- arms


def test_unknown_and_doubled_arms_are_refused():
    with pytest.raises(UserError, match="Did you mean 'lexsyn'"):
        find_arms(["lexsin"])
    with pytest.raises(UserError, match="named twice"):
        find_arms(["base", "base"])


def test_the_papers_rule_spares_entities_and_is_static():
    config = TransferTrainConfig(rate=0.5)
    plan = plan_of(ARMS["lex-static"], config, Targets((), ("O", "B-x")))
    assert plan is not None
    assert (plan.mode, plan.among, plan.per, plan.dynamic) == ("paper", "outside", "sentence", False)
    assert plan_of(ARMS["base"], config, Targets()) is None


def test_weights_and_protected_words_reach_the_switching():
    plan = plan_of(ARMS["lex"], TransferTrainConfig(weights=["es=2", "de=0"], protect=["labels"]), Targets())
    assert plan is not None
    assert plan.weights == {"es": 2.0, "de": 0.0}
    assert plan.protect == ("labels",)


def test_parts_of_speech_as_input_are_refused_where_they_are_the_task():
    targets, arms = Targets((), ("NOUN", "VERB")), list(find_arms(["base", "syn"]).values())
    with pytest.raises(UserError, match="given the answers"):
        check_leak(arms, TransferTrainConfig(), targets)
    check_leak(arms, TransferTrainConfig(upos=False), targets)
    check_leak(list(find_arms(["syn-tree"]).values()), TransferTrainConfig(), targets)


# ---- results


def outcome(arm: str, seed: int, right: Sequence[int]) -> Outcome:
    counts = {code: {"accuracy": np.asarray([[r, 1, 1] for r in right])} for code in ("en", "de")}
    return Outcome(arm, seed, counts, 1.0, 10, 0, 0.0, 1, {})


def test_scalars_and_words_of_a_certain_gain():
    groups = {
        "base": [outcome("base", s, [0, 1] * 20) for s in range(8)],
        "lex": [outcome("lex", s, [1, 1] * 20) for s in range(8)],
    }
    scalars = scalars_of(groups, "en", ["en", "de"], ["accuracy"], 0)
    assert scalars["lex_gain_accuracy"].value == 50
    assert scalars["lex_source_loss_accuracy"].value == -50
    assert scalars["base_target_accuracy"].value == 50
    assert scalars["base_gap_accuracy"].value == 0
    assert scalars["cpu_seconds_per_seed"].value == 2
    compared = compare_arms(groups, ["de"], "accuracy", 1.0, 0)
    assert [(one.first, one.second, one.seeds.word) for one in compared if one.seeds] == [("lex", "base", "better")]
    assert "+50.0 points of accuracy" in verdicts_of(compared, "accuracy", 8)[0]
    few = {name: outcomes[:3] for name, outcomes in groups.items()}
    assert compare_arms(few, ["de"], "accuracy", 1.0, 0)[0].seeds.word == "undecided"


def test_measures_of_a_task():
    examples = [example(0), example(1)]
    said = Predictions(("red", "red"), (("O", "O", "B-ANIMAL", "O", "O"), ("O", "O", "O", "O", "O")))
    counts = measure(said, examples, Targets(("blue", "red"), ("O", "B-ANIMAL")))
    assert {name: rows.tolist() for name, rows in counts.items()} == {
        "intent accuracy": [[1, 1, 1], [0, 1, 1]],
        "slot F1": [[1, 1, 1], [0, 0, 1]],
        "exact match": [[1, 1, 1], [0, 1, 1]],
    }
    assert list(measure(said, examples, Targets((), ("O", "B-ANIMAL")))) == ["span F1"]
    assert list(measure(said, examples, Targets(("a", "b")))) == ["accuracy"]


def test_xtreme_lines():
    assert xtreme_lines(Predictions(("a", "b"), ((), ()))) == "a\nb\n"
    assert xtreme_lines(Predictions(("", ""), (("O",), ("O", "B-x")))) == "O\n\nO\nB-x\n\n"


# ---- files and the command line


def write_iob(path: Path, examples: Sequence[Example]) -> Path:
    blocks = [
        "\n".join(
            f"{i}\t{w}\t{t}\t-\t-"
            for i, (w, t) in enumerate(zip(e.sentences[0].words, e.sentences[0].labels, strict=True), 1)
        )
        for e in examples
    ]
    path.write_text("\n\n".join(blocks) + "\n")
    return path


def write_trees(path: Path, examples: Sequence[Example]) -> Path:
    from polyloom.data.treebanks import conllu

    path.write_text(conllu(e.sentences[0] for e in examples))
    return path


def write_pairs(path: Path, examples: Sequence[Example]) -> Path:
    rows = [f"{' '.join(e.sentences[0].words)}\t{' '.join(e.sentences[1].words)}\t{e.label}" for e in examples]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    english, german = [example(i) for i in range(36)], [example(i, "de") for i in range(12)]
    (tmp_path / "en-de.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in FULL.items()))
    return {
        "en": write_iob(tmp_path / "en.iob2", english),
        "de": write_iob(tmp_path / "de.iob2", german),
        "en trees": write_trees(tmp_path / "en.conllu", english),
        "de trees": write_trees(tmp_path / "de.conllu", german),
        "dictionary": tmp_path / "en-de.tsv",
    }


def words_of(settings: dict[str, Any]) -> list[object]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]


def test_train_and_evaluate_on_files(cli: Cli, files: dict[str, Path], tmp_path: Path):
    settings = words_of(TINY | {"save": "first", "epochs": 1})
    trees = ["--trees", f"en={files['en trees']}", "--trees", f"de={files['de trees']}"]
    arms = ["--arms", "base", "--arms", "lexsyn"]
    tests = ["--test", f"de={files['de']}", "--test", f"en={files['en']}"]
    dictionary = ["--dictionaries", f"de={files['dictionary']}"]
    found = cli(
        "transfer",
        "train",
        "--data",
        files["en"],
        *tests,
        *trees,
        *arms,
        *dictionary,
        *settings,
        "--run",
        "t",
        "--json",
    )
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert {"lexsyn_de_span_f1", "lexsyn_gain_span_f1", "base_gap_span_f1"} <= set(result["scalars"])
    assert result["tables"]["differences"]["rows"][0][0] == "lexsyn - base"
    model = tmp_path / "runs" / "t" / "artifacts" / "lexsyn-seed0"
    again = cli("transfer", "evaluate", "--model", model, *tests, *trees, "--xtreme", "panx", "--run", "e", "--json")
    assert again.exit_code == 0, again.stderr
    scores = json.loads(again.stdout)["scalars"]
    assert scores["de_span_f1"]["value"] == pytest.approx(result["scalars"]["lexsyn_de_span_f1"]["value"])
    exported = (tmp_path / "runs" / "e" / "artifacts" / "xtreme" / "panx" / "test-de.tsv").read_text()
    assert len(exported.split("\n\n")) == 13
    assert "gap_span_f1" in scores
    none = cli("transfer", "evaluate", "--model", model, *tests)
    assert none.exit_code == 2
    assert "the model needs trees, and 'de' has none" in none.stderr


def test_pairs_across_languages_and_averaged_models(cli: Cli, tmp_path: Path):
    english = write_pairs(tmp_path / "en.tsv", [example(i, "en", pair=True) for i in range(24)])
    german = write_pairs(tmp_path / "de.tsv", [example(i, "de", pair=True) for i in range(24)])
    settings = words_of(SMALL | {"save": "all", "num_seeds": 2, "epochs": 1})
    trained = cli("transfer", "train", "--data", english, "--arms", "base", *settings, "--run", "t")
    assert trained.exit_code == 0, trained.stderr
    models = [tmp_path / "runs" / "t" / "artifacts" / f"base-seed{seed}" for seed in range(2)]
    tests = ["--test", f"en={english}", "--test", f"de={german}"]
    found = cli(
        "transfer", "evaluate", "--model", models[0], "--average-with", models[1], *tests, "--generalised", "--json"
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert [row[:2] for row in result["tables"]["generalised"]["rows"]] == [
        ["en", "en"],
        ["en", "de"],
        ["de", "en"],
        ["de", "de"],
    ]
    assert "generalised_accuracy" in result["scalars"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--arms", "syn"], "the data of 'en' have no trees"),
        (["--arms", "lex"], "there is no dictionary"),
        (["--arms", "translate"], "there are none"),
        (["--arms", "base", "--test", "nothing"], "names no language"),
        (["--arms", "base", "--task", "sentence"], "the training data have 0 classes"),
        (["--arms", "base", "--pretrain", "empty.txt"], "holds no text"),
        (["--arms", "base", "--dictionaries", "de=en-de.tsv", "--weights", "fr=1"], "there is no dictionary into 'fr'"),
        (["--arms", "base", "--inflect", "de=de.conllu"], "forms are chosen by the features"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    cli: Cli, files: dict[str, Path], words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    found = cli("transfer", "train", "--data", files["en"], *words_of(SMALL), *words)
    assert found.exit_code == 2
    assert says in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_the_tiny_encoder_needs_a_text(run: Run):
    data = hand_data()
    data.texts = []
    with pytest.raises(UserError, match="no text to learn from"):
        protocol(run, data, **TINY | {"arms": ["base"]})


def test_words_cannot_take_a_graph(cli: Cli, files: dict[str, Path]):
    words = ["--arms", "syn", "--trees", f"en={files['en trees']}"]
    found = cli("transfer", "train", "--data", files["en"], *words_of(SMALL), *words)
    assert found.exit_code == 2
    assert "no keys and values for the graph to change" in found.stderr


def test_a_stopped_run_resumes_to_an_equal_result(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    settings = SMALL | {"arms": ["base", "lex"], "data": [str(files["en"])], "test": [f"de={files['de']}"]}
    settings |= {"dictionaries": [f"de={files['dictionary']}"], "epochs": 2}
    whole = run_verb("transfer.train", settings, runs=tmp_path / "a", name="r")
    checks = 0
    plain = Run.check_stop

    def stop_once(self: Run) -> None:
        nonlocal checks
        checks += 1
        if checks == 9:
            self.request_stop()
        plain(self)

    monkeypatch.setattr(Run, "check_stop", stop_once)
    with pytest.raises(Stopped):
        run_verb("transfer.train", settings, runs=tmp_path / "b", name="r")
    monkeypatch.setattr(Run, "check_stop", plain)
    again = resume(tmp_path / "b" / "r")
    times = {name for name in whole.scalars if "cpu_seconds" in name}
    assert {k: v for k, v in again.scalars.items() if k not in times} == {
        k: v for k, v in whole.scalars.items() if k not in times
    }
    assert again.tables == whole.tables


def test_evaluate_refuses_a_folder_without_a_model(cli: Cli, files: dict[str, Path], tmp_path: Path):
    found = cli("transfer", "evaluate", "--model", tmp_path, "--test", f"de={files['de']}")
    assert found.exit_code == 2
    assert "holds no transfer.json" in found.stderr
    assert TransferEvaluateConfig(model="x", test=["de=y"]).source == "en"


def test_the_users_own_encoder_is_taken_with_lora(run: Run, tmp_path: Path):
    from polyloom.models.load import save_model

    config = TransferTrainConfig(**TINY)
    start = make_start(config, hand_data(), 0, tmp_path / "start")
    save_model(start.encoder, tmp_path / "mine", start.tokenizer)
    own = TINY | {
        "encoder": str(tmp_path / "mine"),
        "lora_rank": 2,
        "arms": ["base", "syn"],
        "save": "first",
        "epochs": 1,
    }
    found = protocol(run, hand_data(), **own)
    assert found["base 0"].num_parameters < 60_000
    from polyloom.methods.transfer.models import load_transfer, predict

    loaded = load_transfer(run.path / "artifacts" / "syn-seed0")
    examples = hand_data().tests["de"]
    said = measure(predict(loaded.model, loaded.sequencer, examples), examples, loaded.model.targets)
    assert said["slot F1"].tolist() == found["syn 0"].counts["de"]["slot F1"].tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_study_is_small_honest_and_complete(run: Run, monkeypatch: pytest.MonkeyPatch):
    from polyloom.methods.transfer import lab
    from polyloom.methods.transfer.config import TransferStudyConfig

    monkeypatch.setitem(lab.PROFILES, "quick", lab.Profile(2, 24, 12, 1, lab.FOUR_ARMS))
    result = lab.run_study(TransferStudyConfig(), run)
    assert [row[0] for row in result.tables["scores_span_f1"].rows] == ["base", "lex", "syn", "lexsyn"]
    assert any("too few to decide" in line for line in result.limitations)
    assert any("CLDR world" in line for line in result.limitations)
    assert len(result.verdicts) == 5
    assert all(result.scalars[f"off_equals_base_{name}"].value for name in ("bert", "xlm_roberta", "distilbert"))
    assert result.scalars["base_size_num_parameters"].value == 839_424
    assert result.scalars["torch_geometric_max_difference"].value < 1e-5
    with pytest.raises(UserError, match="other than English"):
        lab.run_study(TransferStudyConfig(languages=["en"]), run)


def test_a_result_without_tests_or_other_arms_says_so(tmp_path: Path, files: dict[str, Path]):
    settings = SMALL | {"data": [str(files["en"])], "arms": ["base"], "epochs": 1}
    trained = run_verb("transfer.train", settings, runs=tmp_path, name="a")
    assert trained.verdicts == ["There is no target test file: models were trained."]
    (said,) = run_verb("transfer.train", settings | {"test": [f"de={files['de']}"]}, runs=tmp_path, name="b").verdicts
    assert "% span F1 on de; no other arm was run" in said


def test_a_world_example_has_a_tag_and_a_node_for_every_word():
    from polyloom.data.world import World

    world = World(["en", "zh"], 0)
    for language in ("en", "zh"):
        for index in range(30):
            sentence = world_example(world, language, index, "train").sentences[0]
            assert len(sentence.words) == len(sentence.heads) == len(sentence.labels)


def test_labels_that_training_never_had_are_counted_or_refused():
    targets = Targets(("blue", "green", "red"), ("O", "B-ANIMAL"))
    examples = [example(i) for i in range(36)]
    assert unknown_labels("de", examples, targets) == []
    fewer = Targets(targets.labels, targets.tags[:1])
    with pytest.raises(UserError, match="hand:0: the label 'B-ANIMAL' is none of the training data's"):
        unknown_labels("de", examples, fewer)
    odd = example(0)
    rare = [*examples, Example("x", odd.sentences, "violet")]
    assert "1 labels of de are none of the training data's and count as wrong: violet." in unknown_labels(
        "de", rare, targets
    )
    with pytest.raises(UserError, match="hand:0: the label 'violet' is none"):
        unknown_labels("de", rare, targets, strict=True)


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ("3 1 2 0 4", "1 cycles"),
        ("0 3 4 0 4", "1 extra roots"),
        ("3 3 4 0 9", "1 heads out of range"),
        ("3 3 4 4 4", "1 sentences without a root, 1 cycles"),
        ("_ 3 4 0 4", "1 missing heads"),
    ],
)
def test_faulty_trees_are_counted_with_their_place_or_refused(
    cli: Cli, files: dict[str, Path], tmp_path: Path, heads: str, says: str
):
    lines = files["de trees"].read_text().split("\n")
    rows = [line.split("\t") for line in lines[1:6]]
    lines[1:6] = ["\t".join([*row[:6], head, *row[7:]]) for row, head in zip(rows, heads.split(), strict=True)]
    files["de trees"].write_text("\ufeff" + "\r\n".join(lines))
    words = ["--data", files["en"], "--test", f"de={files['de']}", "--trees", f"de={files['de trees']}"]
    words += ["--trees", f"en={files['en trees']}", "--arms", "base", *words_of(SMALL | {"epochs": 1, "save": "first"})]
    found = cli("transfer", "train", *words, "--run", "t", "--json")
    assert found.exit_code == 0, found.stderr
    ((notice,),) = json.loads(found.stdout)["tables"]["notices"]["rows"]
    assert notice.startswith(f"Trees of de: {says} repaired, first in {files['de trees']}:1 (0)")
    refused = cli("transfer", "train", *words, "--strict")
    assert refused.exit_code == 2
    assert f"{files['de trees']}:1: {says} in sentence 0" in refused.stderr
    common = ("--model", tmp_path / "runs" / "t" / "artifacts" / "base-seed0", "--test", f"de={files['de']}")
    judged = cli("transfer", "evaluate", *common, "--trees", f"de={files['de trees']}", "--json")
    assert [notice] in json.loads(judged.stdout)["tables"]["notices"]["rows"]


def test_a_reversed_dictionary_is_named_turned_round_and_joined_with_a_gazetteer(
    cli: Cli, files: dict[str, Path], tmp_path: Path
):
    (tmp_path / "de-en.tsv").write_text("".join(f"{b}\t{a}\n" for a, b in FULL.items()))
    (tmp_path / "names.tsv").write_text("dog sleeps\thund schlaeft\n")
    words = ["--data", files["en"], "--test", f"de={files['de']}", "--test", f"es={files['de']}", "--arms", "lex"]
    words += ["--dictionaries", f"de={tmp_path / 'de-en.tsv'}", *words_of(SMALL | {"epochs": 1}), "--json"]
    found = json.loads(cli("transfer", "train", *words).stdout)
    notices = [row[0] for row in found["tables"]["notices"]["rows"]]
    assert "There are no entries into es; the lex arm will not switch into es (0 % coverage)." in notices
    assert any("runs the other way" in one and "--reverse" in one for one in notices)
    assert "lex_realised_rate" not in found["scalars"]
    turned = json.loads(cli("transfer", "train", *words, "--reverse").stdout)
    assert turned["scalars"]["lex_realised_rate"]["value"] > 0.3
    assert not any("runs the other way" in row[0] for row in turned["tables"]["notices"]["rows"])


def test_a_model_with_a_crf_is_trained_saved_and_scored_alike(cli: Cli, files: dict[str, Path], tmp_path: Path):
    words = ["--data", files["en"], "--test", f"en={files['en']}", "--test", f"de={files['de']}", "--arms", "base"]
    trained = cli("transfer", "train", *words, "--crf", *words_of(SMALL | {"save": "first"}), "--run", "t", "--json")
    assert trained.exit_code == 0, trained.stderr
    value = json.loads(trained.stdout)["scalars"]["base_en_span_f1"]["value"]
    assert value > 90
    model = tmp_path / "runs" / "t" / "artifacts" / "base-seed0"
    judged = json.loads(cli("transfer", "evaluate", "--model", model, "--test", f"en={files['en']}", "--json").stdout)
    assert judged["scalars"]["en_span_f1"]["value"] == pytest.approx(value)


def test_phrases_are_one_word_of_the_training_data(files: dict[str, Path], tmp_path: Path):
    (tmp_path / "names.tsv").write_text("the red\tdas rote\n")
    named = [f"de={files['dictionary']}", f"de={tmp_path / 'names.tsv'}"]
    config = TransferTrainConfig(**SMALL, data=[str(files["en"])], dictionaries=named, phrases=True)
    data = read_data(config, needs_trees=False)
    assert data.train[0].sentences[0].words[0] == "the red"
    assert data.lexicons["de"].lookup("the red")[0].text == "das rote"
