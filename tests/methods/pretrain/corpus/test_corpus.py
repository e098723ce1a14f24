"""The engine through the command line: what is kept, in which order, whatever the cut, the workers and the kills."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from polyloom.core.errors import PolyloomError, UserError
from polyloom.core.files import sha256_file
from polyloom.data.shards import read_corpus, shard_files
from polyloom.methods.pretrain.corpus import cleaning, tasks
from polyloom.methods.pretrain.corpus.finishing import kept_fractions, normalised_shares, shard_name
from polyloom.methods.pretrain.corpus.planted import candidate_rate, exact_jaccard, plant
from polyloom.methods.pretrain.corpus.protecting import Protected, grams
from polyloom.methods.pretrain.corpus.verb import run_corpus
from polyloom.methods.pretrain.data_config import CorpusConfig
from polyloom.metrics.distributions import binomial_band
from polyloom.runs.folder import Run

pytest.importorskip("zstandard")
pytest.importorskip("py3langid")

SENTENCE = "All human beings are born free and equal in dignity and rights, whatever happens to the number {}."


def rows(number: int, seed: int = 0, num_words: int = 60) -> list[dict[str, Any]]:
    """Return documents of invented words, all different."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijk", k=rng.randint(2, 8))) for _ in range(3000)]
    return [{"text": " ".join(rng.choices(words, k=num_words)), "id": f"{seed}-{i}"} for i in range(number)]


def write(path: Path, items: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def config(folder: Path, out: Path, **options: Any) -> CorpusConfig:
    fixed = {"input": [str(folder)], "out": out, "heuristics": False, "language_id": "none", "num_shards": 2}
    return CorpusConfig.model_validate({**fixed, **options})


def prints(out: Path) -> dict[str, str]:
    return {file.relative_to(out).as_posix(): sha256_file(file) for file in shard_files(out)}


def card_of(out: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    return card


def test_planted_duplicates_are_found_and_distant_texts_kept(cli: Callable[..., Any]) -> None:
    called = cli("pretrain", "corpus", "--num-planted", 120, "--json")
    assert called.exit_code == 0, called.stderr
    scalars = json.loads(called.stdout)["scalars"]
    assert scalars["exact_removed"]["value"] == 1.0
    assert scalars["near_recall"]["value"] >= 0.98
    assert scalars["false_merges"]["value"] == 0
    assert scalars["outputs_identical"]["value"] is True
    assert scalars["near_pairs"]["value"] >= 39
    assert scalars["far_pairs"]["value"] >= 39


def test_planted_pairs_have_the_jaccard_that_they_claim() -> None:
    planted = plant(30, 0)
    assert all(planted.texts[a] == planted.texts[b] for a, b in planted.exact)
    for pairs, low, high in ((planted.near, 0.9, 1.0), (planted.far, 0.0, 0.3)):
        assert pairs
        for pair in pairs:
            assert low <= pair.jaccard <= high
            assert pair.jaccard == exact_jaccard(planted.texts[pair.first], planted.texts[pair.second])


@pytest.mark.parametrize("level", [0.5, 0.6, 0.7, 0.8])
def test_candidates_are_as_frequent_as_the_formula_says(level: float) -> None:
    found, expected = candidate_rate(level, 1000, 14, 8, seed=1)
    low, high = binomial_band(1000, expected, 0.99)
    assert low <= found <= high


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.3, 0.5, 0.6, 0.7, 0.719, 0.8, 0.9])
def test_candidates_among_2000_pairs(level: float) -> None:
    found, expected = candidate_rate(level, 2000, 14, 8, seed=0)
    low, high = binomial_band(2000, expected, 0.99)
    assert low <= found <= high


def test_identical_texts_always_merge_and_disjoint_ones_never(tmp_path: Path, run: Run) -> None:
    items = rows(1000)
    copies = [{**item, "id": f"copy-{item['id']}"} for item in items]
    write(tmp_path / "in" / "a.jsonl", [*items, *copies])
    run_corpus(config(tmp_path / "in", tmp_path / "out", min_jaccard=0), run)
    assert sorted(row["text"] for row in read_corpus(tmp_path / "out")) == sorted(item["text"] for item in items)


@pytest.mark.parametrize(
    "executor",
    ["workers", "ranks", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")])],
)
def test_every_executor_writes_the_same_bytes(
    tmp_path: Path, run: Run, executor: str, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "in"
    items = rows(60)
    items += [{"text": items[3]["text"] + " tail", "id": "near"}, {"text": items[5]["text"], "id": "exact"}]
    for i in range(4):
        write(folder / "web" / f"{i}.jsonl", items[i::4])
    run_corpus(config(folder, tmp_path / "one"), run)
    expected = prints(tmp_path / "one")
    assert len(list(read_corpus(tmp_path / "one"))) == 60
    out = tmp_path / "other"
    if executor == "workers":
        run_corpus(config(folder, out, num_workers=2), run)
    elif executor == "ray":
        request.getfixturevalue("ray_cluster")
        run_corpus(config(folder, out, executor="ray"), run)
    else:
        _in_ranks(folder, out, tmp_path)
    assert prints(out) == expected
    cards = [card_of(tmp_path / "one"), card_of(out)]
    for card in cards:
        card.pop("identity")
        assert card.pop("settings")["num_shards"] == 2
    assert cards[0] == cards[1]


def _in_ranks(folder: Path, out: Path, tmp_path: Path) -> None:
    words = [
        "pretrain",
        "corpus",
        "--input",
        str(folder),
        "--out",
        str(out),
        "--no-heuristics",
        "--language-id",
        "none",
    ]
    words += ["--num-shards", "2", "--num-ranks", "2", "--rank-timeout-seconds", "300", "--runs", str(tmp_path / "r")]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "polyloom", *words, "--rank", str(rank)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors


def test_a_rank_that_waits_in_vain_names_the_other(tmp_path: Path, run: Run) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jsonl", rows(2, seed=i))
    with pytest.raises(PolyloomError, match="1 tasks of stage clean are not done by rank 1"):
        run_corpus(config(tmp_path / "in", tmp_path / "out", num_ranks=2, rank_timeout_seconds=0.3), run)


def test_the_cut_of_the_input_changes_nothing_of_the_text(tmp_path: Path, run: Run) -> None:
    items = rows(40)
    items += [{"text": items[i]["text"].replace(" ", "  ") + " x", "id": f"near-{i}"} for i in range(10)]
    write(tmp_path / "a" / "all.jsonl", items)
    for i in range(5):
        write(tmp_path / "b" / f"{i}.jsonl", items[::-1][i::5])
    run_corpus(config(tmp_path / "a", tmp_path / "out-a"), run)
    run_corpus(config(tmp_path / "b", tmp_path / "out-b"), run)
    run_corpus(config(tmp_path / "a", tmp_path / "out-c", split_bytes=700), run)
    kept = [[(r["id"], r["text"]) for r in read_corpus(tmp_path / f"out-{name}")] for name in "abc"]
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 40


def test_a_killed_build_goes_on_with_what_is_missing(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        write(tmp_path / "in" / f"{i}.jsonl", rows(5, seed=i))
    settings = config(tmp_path / "in", tmp_path / "out")
    done: list[tuple[str, int]] = []
    do_task = tasks.do_task

    def failing(plan: Any, stage: Any, task: int, identity: str) -> None:
        if len(done) == 7:
            raise KeyboardInterrupt
        do_task(plan, stage, task, identity)
        done.append((stage.name, task))

    monkeypatch.setattr(tasks, "do_task", failing)
    with pytest.raises(KeyboardInterrupt):
        run_corpus(settings, run)
    first = list(done)
    monkeypatch.setattr(tasks, "do_task", lambda *args: (do_task(*args), done.append((args[1].name, args[2]))))
    run_corpus(settings, run)
    assert not set(first) & set(done[len(first) :])
    monkeypatch.setattr(tasks, "do_task", do_task)
    run_corpus(config(tmp_path / "in", tmp_path / "whole"), run)
    assert prints(tmp_path / "out") == prints(tmp_path / "whole")
    # A finished corpus is not built again, and a changed setting builds from the stage that it changes.
    monkeypatch.setattr(tasks, "do_task", failing)
    assert run_corpus(settings, run).scalars["documents_written"].value == 20


def test_a_build_that_is_killed_while_it_moves_its_shards(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.jsonl", rows(12))
    settings = config(tmp_path / "in", tmp_path / "out", num_shards=4)
    replace = Path.replace
    moved: list[Path] = []

    def failing(self: Path, target: Path) -> Path:
        if (
            self.name.endswith(".zst")
            and "write" in self.parts
            and "und" in target.parts
            and ".stages" not in target.parts
        ):
            if len(moved) == 2:
                raise KeyboardInterrupt
            moved.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        run_corpus(settings, run)
    monkeypatch.setattr(Path, "replace", replace)
    assert run_corpus(settings, run).scalars["documents_written"].value == 12
    assert len(list(read_corpus(tmp_path / "out"))) == 12


def test_only_stages_behind_a_change_run_again(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", rows(5))
    run_corpus(config(tmp_path / "in", tmp_path / "out", keep_stages=True), run)
    done: list[str] = []
    do_task = tasks.do_task
    monkeypatch.setattr(tasks, "do_task", lambda *args: (do_task(*args), done.append(args[1].name)))
    run_corpus(config(tmp_path / "in", tmp_path / "out", keep_stages=True, private=False), run)
    assert set(done) == {"finish", "shares", "write"}
    done.clear()
    write(tmp_path / "in" / "a.jsonl", rows(6))
    assert (
        run_corpus(config(tmp_path / "in", tmp_path / "out", keep_stages=True), run).scalars["documents_written"].value
        == 6
    )
    assert "clean" in done


def test_one_bad_document_ends_nothing(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    items = rows(10)
    items[4]["text"] = "BOOM " + items[4]["text"]
    write(tmp_path / "in" / "a.jsonl", items)
    normalise = cleaning.normalise
    monkeypatch.setattr(cleaning, "normalise", lambda text: 1 / 0 if "BOOM" in text else normalise(text))
    result = run_corpus(config(tmp_path / "in", tmp_path / "out"), run)
    card = card_of(tmp_path / "out")
    assert result.scalars["documents_written"].value == 9
    assert card["samples"]["error"][0][1] == items[4]["id"]
    assert card["problems"]["listed"][0][1] == "error: ZeroDivisionError: division by zero"
    assert any("please report them" in note for note in result.limitations)


def test_bad_rows_files_and_encodings_are_counted_and_listed(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "in" / "a.jsonl", rows(4))
    with (tmp_path / "in" / "a.jsonl").open("ab") as stream:
        stream.write(b"no json\n" + b'{"text": "' + b"x" * 5000 + b'"}\n')
        stream.write(json.dumps({"text": "é" * 400}, ensure_ascii=False).encode("latin-1") + b"\n")
    (tmp_path / "in" / "empty.jsonl").touch()
    (tmp_path / "in" / "torn.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00nothing")
    result = run_corpus(config(tmp_path / "in", tmp_path / "out", max_document_bytes=2000), run)
    card = card_of(tmp_path / "out")
    kinds = set(card["problems"]["counts"])
    assert {"no JSON", "line over 2000 bytes", "empty file"} < kinds
    assert any(kind.startswith("damaged file") for kind in kinds)
    assert "encoding" in card["dropped"]
    notes = " ".join(result.limitations)
    assert "--encodings" in notes
    assert "name no licence" in notes
    assert "less than 1 MB" in notes
    assert result.scalars["places_left_out"].value == 4


def test_a_corpus_that_nothing_survives_names_stage_and_reason(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "in" / "a.jsonl", [{"text": "too short", "language": "en"}] * 3)
    with pytest.raises(UserError, match=r"stage clean.*emptied the corpus: 3 by 'rule:empty'"):
        run_corpus(config(tmp_path / "in", tmp_path / "out", heuristics=True), run)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.jsonl").touch()
    with pytest.raises(UserError, match="'empty file'"):
        run_corpus(config(tmp_path / "none", tmp_path / "out2"), run)


def test_a_full_disk_keeps_what_was_done(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in" / "a.jsonl", rows(3))

    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings = config(tmp_path / "in", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("polyloom.methods.pretrain.corpus.merging.minhash", full)
        with pytest.raises(UserError, match="the disk is full"):
            run_corpus(settings, run)
    assert (tmp_path / "out" / ".stages" / "clean" / "00000.json").is_file()
    assert run_corpus(settings, run).scalars["documents_written"].value == 3


def test_paragraphs_are_kept_once_a_language(tmp_path: Path, run: Run) -> None:
    shared = "This paragraph about cookies and consent stands on every single page."
    items = rows(6)
    for i, item in enumerate(items):
        item["text"] = f"{item['text']}\n{shared if i % 2 else shared.upper()}"
        item["language"] = "en" if i < 4 else "de"
    write(tmp_path / "in" / "a.jsonl", items)
    run_corpus(config(tmp_path / "in", tmp_path / "out"), run)
    kept = list(read_corpus(tmp_path / "out"))
    assert len(kept) == 6
    times = {
        lang: sum(shared.lower() in r["text"].lower() for r in kept if r["language"] == lang) for lang in ("en", "de")
    }
    assert times == {"en": 1, "de": 1}


def test_test_sets_are_kept_out(tmp_path: Path, run: Run) -> None:
    question = "which of the following numbers is the smallest prime that divides the answer of life"
    items = rows(4)
    items[1]["text"] += f", {question.upper()}!\nAnother line of its own, which stays."
    write(tmp_path / "in" / "a.jsonl", items)
    test_set = write(tmp_path / "test.jsonl", [{"question": {"stem": question}, "choices": ["2", "3"]}])
    result = run_corpus(config(tmp_path / "in", tmp_path / "out", protect=[str(test_set)]), run)
    assert {row["id"] for row in read_corpus(tmp_path / "out")} == {items[i]["id"] for i in (0, 2, 3)}
    assert card_of(tmp_path / "out")["contamination"] == {"test.jsonl": 1}
    assert any("2 protected texts are shorter than 13 words" in note for note in result.limitations)
    run_corpus(config(tmp_path / "in", tmp_path / "cut", protect=[str(test_set)], contaminated="cut"), run)
    texts = {row["id"]: row["text"] for row in read_corpus(tmp_path / "cut")}
    assert texts[items[1]["id"]] == "Another line of its own, which stays."
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"--protect .*bad\.jsonl:1: cannot be protected"):
        run_corpus(config(tmp_path / "in", tmp_path / "out3", protect=[str(tmp_path / "bad.jsonl")]), run)


def test_thirteen_words_are_needed_and_enough() -> None:
    words = [f"w{i}" for i in range(30)]
    protected = Protected(grams(" ".join(words[5:18])), grams("a").astype("int64").repeat(1), ["file"])
    protected = Protected(protected.hashes, protected.hashes.astype("int64") * 0, ["file"])
    assert len(protected.hashes) == 1
    assert protected.hit("x " + " - ".join(words[5:18]).upper() + ".") == "file"
    assert protected.hit(" ".join(words[5:17])) is None
    assert len(grams("人" * 19)) == 0
    assert len(grams("人" * 20)) == 1


def test_private_data_are_replaced_and_counted(tmp_path: Path, run: Run) -> None:
    write(tmp_path / "in" / "a.jsonl", [{"text": "Write to someone@example.org about " + rows(1)[0]["text"]}])
    run_corpus(config(tmp_path / "in", tmp_path / "out"), run)
    assert "<EMAIL>" in next(iter(read_corpus(tmp_path / "out")))["text"]
    assert card_of(tmp_path / "out")["placeholders"] == {"email": 1}


def test_shares_that_do_not_add_to_one_are_scaled_and_said(tmp_path: Path, run: Run) -> None:
    for domain, number in (("web", 400), ("books", 100)):
        write(tmp_path / "in" / domain / "a.jsonl", rows(number, seed=number))
    shares = {"web": 1.0, "books": 1.0}
    result = run_corpus(config(tmp_path / "in", tmp_path / "out", shares=shares), run)
    mixture = json.loads((tmp_path / "out" / "mixture.json").read_text())
    assert {cell: entry["weight"] for cell, entry in mixture.items()} == {"books/und": 0.5, "web/und": 0.5}
    assert mixture["books/und"]["documents"] == 100
    assert 70 <= mixture["web/und"]["documents"] <= 130
    assert any("add to 2, not 1" in note for note in result.limitations)
    with pytest.raises(UserError, match=r"no document of 'bokks' is left.*books"):
        run_corpus(config(tmp_path / "in", tmp_path / "out", shares={"bokks": 1.0}), run)


def test_names_from_the_input_stay_inside_the_folder() -> None:
    assert shard_name("web/zh", 3, "jsonl") == "web/zh/00003.jsonl"
    cells = ["../../x/en", "a b/en", "a_b/en", "/en", "x/..", "C:\\x/en", "." * 300 + "/en"]
    names = [shard_name(cell, 0, "jsonl") for cell in cells]
    assert len(set(names)) == len(cells)
    for name in names:
        parts = name.split("/")
        assert all(part.strip(".") and len(part) < 100 for part in parts)


def test_rows_that_no_encoding_or_json_can_write(tmp_path: Path, run: Run) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = rows(1)[0]["text"]
    (tmp_path / "in").mkdir()
    line = r'{"text": "TEXT \ud800", "id": "\udfff", "domain": "../../web", "url": "\ud800"}'.replace("TEXT", text)
    (tmp_path / "in" / "a.jsonl").write_text(line + "\n")
    table = pyarrow.table({"text": [rows(1, seed=5)[0]["text"]], "date": [datetime(2024, 1, 2)]})
    parquet.write_table(table, tmp_path / "in" / "b.parquet")
    run_corpus(config(tmp_path / "in", tmp_path / "out"), run)
    kept = {row["domain"]: row for row in read_corpus(tmp_path / "out")}
    assert kept["../../web"]["text"].endswith(" ?")
    assert kept["text"]["metadata"]["date"].startswith("2024-01-02")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "runs"}


def test_shares_by_hand() -> None:
    sizes = {"web/en": 300, "web/de": 100, "law/en": 100}
    assert normalised_shares({"web": 0.8, "law": 0.2}, sizes) == pytest.approx(
        {"web/en": 0.6, "web/de": 0.2, "law/en": 0.2}
    )
    assert normalised_shares({"web": 1, "web/de": 1}, sizes) == {"web/en": 0.5, "web/de": 0.5, "law/en": 0.0}
    assert normalised_shares({}, sizes) == {"web/en": 0.6, "web/de": 0.2, "law/en": 0.2}
    fractions = kept_fractions({"web/en": 0.5, "web/de": 0.25, "law/en": 0.25}, sizes)
    assert fractions == {"web/en": pytest.approx(2 / 3), "web/de": 1.0, "law/en": 1.0}


def test_a_language_with_ten_documents_stays_and_is_named(tmp_path: Path, run: Run) -> None:
    items = [{**row, "language": "en"} for row in rows(50)] + [{**row, "language": "gd"} for row in rows(10, seed=9)]
    write(tmp_path / "in" / "a.jsonl", items)
    result = run_corpus(config(tmp_path / "in", tmp_path / "out"), run)
    assert card_of(tmp_path / "out")["written"]["text/gd"]["documents"] == 10
    assert any("gd (" in note for note in result.limitations)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_output_is_input_again(tmp_path: Path, run: Run, format: str) -> None:
    pytest.importorskip("pyarrow")
    items = [{**row, "license": "CC0", "metadata": {"url": f"u{i}"}} for i, row in enumerate(rows(8))]
    write(tmp_path / "in" / "web" / "a.jsonl", items)
    run_corpus(config(tmp_path / "in", tmp_path / "out", format=format), run)
    run_corpus(config(tmp_path / "out", tmp_path / "again", format=format), run)
    for out in (tmp_path / "out", tmp_path / "again"):
        kept = sorted(read_corpus(out), key=lambda row: row["id"])
        assert [row["text"] for row in kept] == [item["text"] for item in items]
        assert {(row["domain"], row["license"]) for row in kept} == {("web", "CC0")}
        assert [row["metadata"] for row in kept] == [item["metadata"] for item in items]


def test_tokens_and_quality_in_the_card(tmp_path: Path, run: Run) -> None:
    from polyloom.models.tokenizers import train_tokenizer

    train_tokenizer(["x"], 259).save_pretrained(tmp_path / "tok")
    good = write(tmp_path / "good.jsonl", [{"text": SENTENCE.format(i)} for i in range(40)])
    bad = write(tmp_path / "bad.jsonl", rows(40, seed=3))
    write(tmp_path / "in" / "a.jsonl", [{"text": SENTENCE.format(f"{i} again")} for i in range(5)] + rows(5, seed=4))
    result = run_corpus(
        config(
            tmp_path / "in",
            tmp_path / "out",
            quality_good=[str(good)],
            quality_random=[str(bad)],
            tokenizer=tmp_path / "tok",
            near_duplicates=False,
        ),
        run,
    )
    assert result.scalars["documents_written"].value == 5
    assert result.scalars["tokens_written"].value == result.scalars["bytes_written"].value
    auc = result.scalars["quality_auc"].value
    assert isinstance(auc, float)
    assert auc > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "absent"], "there is no such file or folder"),
        (["--input", "{in}", "--out", "{full}"], "holds files that are no corpus"),
        (["--input", "{in}", "--rank", "2"], "count from 0"),
        (["--input", "{in}", "--num-ranks", "2"], "several ranks need one --out"),
        (["--input", "{in}", "--quality-good", "{in}"], "needs both"),
        (["--input", "{in}", "--rules.en.min-word", "3"], "min_word"),
        (["--input", "{in}", "--encodings", "utf-9"], "unknown encoding"),
        (["--input", "{in}", "--verify"], "no document names its language"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    cli: Callable[..., Any], tmp_path: Path, words: list[str], message: str
) -> None:
    write(tmp_path / "in" / "a.jsonl", rows(3))
    write(tmp_path / "full" / "mine.txt", [])
    called = cli("pretrain", "corpus", *(w.format(**{"in": tmp_path / "in", "full": tmp_path / "full"}) for w in words))
    assert called.exit_code == 2
    assert message in " ".join(called.stderr.split())
    assert "Traceback" not in called.stderr


def test_the_declaration_in_ten_languages(cli: Callable[..., Any], real_data: Callable[[str], Path]) -> None:
    called = cli("pretrain", "corpus", "--input", real_data("udhr"), "--verify", "--json")
    assert called.exit_code == 0, called.stderr
    scalars = json.loads(called.stdout)["scalars"]
    assert scalars["language_id_accuracy"]["value"] >= 0.95
    assert scalars["num_paragraphs"]["value"] > 400
    assert scalars["worst_language_loss"]["value"] <= 0.05
