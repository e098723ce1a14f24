"""`switch`, `parse` and `dictionary` through the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from polyloom.data.dictionaries import read_dictionary
from polyloom.data.labelled import read_labelled
from polyloom.data.treebanks import conllu, read_conllu
from polyloom.methods.transfer.parsing import world_trainable
from polyloom.methods.transfer.prompts import NUM_WORLD_QUERIES, choose_labels
from polyloom.models.load import save_model
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer
from tests.methods.transfer.test_vectors import saved

__all__ = ["saved"]
Cli = Callable[..., Any]
IOB2 = "1\tThe\tO\n2\tdog\tO\n3\tin\tO\n4\tRome\tB-LOC\n\n1\tbig\tO\n2\tdog\tO\n\n"
TREES = "1\tbig\t_\tADJ\t_\t_\t2\tamod\t_\t_\n2\tdog\t_\tNOUN\t_\t_\t0\troot\t_\t_\n\n"


def answered(cli: Cli, *words: object) -> dict[str, Any]:
    answer = cli("transfer", *words, "--json")
    assert answer.exit_code == 0, answer.stderr
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


def value(result: dict[str, Any], name: str) -> Any:
    return result["scalars"][name]["value"]


def artifact(tmp_path: Path, name: str) -> Path:
    return max((tmp_path / "runs").glob(f"*/artifacts/{name}"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.iob2").write_text(IOB2)
    return tmp_path / "data.iob2"


@pytest.fixture
def muse(tmp_path: Path) -> Path:
    (tmp_path / "de.txt").write_text("the der\nthe die\ndog Hund\ndog Köter\nin in\nbig groß\nrome Rom\n")
    return tmp_path / "de.txt"


# ---- switch


def test_the_worlds_data_are_switched_alike_by_any_number_of_workers(cli: Cli, tmp_path: Path) -> None:
    result = answered(cli, "switch", "--num-examples", 30, "--check-workers", 2, "--check-workers", 3)
    assert value(result, "equal_at_any_worker_count") is True
    again = answered(cli, "switch", "--num-examples", 30, "--num-workers", 2)
    assert value(again, "sha256") == value(result, "sha256")
    other = answered(cli, "switch", "--num-examples", 30, "--seed", 1)
    assert value(other, "sha256") != value(result, "sha256")
    found = read_labelled(artifact(tmp_path, "switched.jsonl"))
    assert len(found.examples) == 30
    assert len(result["tables"]["preview"]["rows"]) == 8


def test_labels_stay_and_every_change_is_logged(cli: Cli, tmp_path: Path, data: Path, muse: Path) -> None:
    result = answered(cli, "switch", "--data", data, "--dictionaries", f"de={muse}", "--rate", 1, "--protect", "labels")
    rows = [json.loads(line) for line in artifact(tmp_path, "switched.jsonl").read_text("utf-8").splitlines()]
    assert rows[0]["words"] == ["der", "Hund", "in", "Rome"]
    assert rows[0]["original"] == ["The", "dog", "in", "Rome"]
    assert rows[0]["labels"] == ["O", "O", "O", "B-LOC"]
    written = artifact(tmp_path, "replacements.tsv").read_text("utf-8").splitlines()
    log = list(csv.DictReader(written, delimiter="\t"))
    assert [(one["word"], one["translation"], one["place"]) for one in log[:2]] == [
        ("The", "der", "line 1"),
        ("dog", "Hund", "line 3"),
    ]
    assert value(result, "num_replaced") == len(log) == 5
    assert value(result, "realised_rate") == pytest.approx(5 / 6)
    assert value(result, "protected_share") == pytest.approx(1 / 6)
    assert value(result, "out_of_dictionary_share") == 0


def test_parts_of_speech_come_from_trees(cli: Cli, tmp_path: Path, data: Path) -> None:
    (tmp_path / "de.csv").write_text("source,target,score,pos\ndog,beschatten,2,v\ndog,Hund,1,n\n")
    (tmp_path / "t.conllu").write_text(TREES)
    options = ("--dictionaries", f"de={tmp_path / 'de.csv'}", "--rate", 1, "--choose", "pos")
    result = answered(cli, "switch", "--data", data, "--trees", tmp_path / "t.conllu", *options)
    rows = [json.loads(line) for line in artifact(tmp_path, "switched.jsonl").read_text("utf-8").splitlines()]
    assert [row["words"][1] for row in rows] == ["beschatten", "Hund"]
    assert rows[1]["heads"] == [2, 0]
    assert "1 texts without a tree." in result["limitations"]


def test_frequency_sense_weights_and_epochs(cli: Cli, tmp_path: Path, data: Path, muse: Path, saved: Path) -> None:
    (tmp_path / "text.txt").write_text("Ein Köter, noch ein Köter und ein Hund.")
    common = ("switch", "--data", data, "--dictionaries", f"de={muse}", "--rate", 1)
    answered(cli, *common, "--choose", "freq", "--frequency-text", tmp_path / "text.txt", "--num-epochs", 2)
    rows = [json.loads(line) for line in artifact(tmp_path, "switched.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["1-epoch0", "2-epoch0", "1-epoch1", "2-epoch1"]
    assert rows[0]["words"][1] == "Köter"
    answered(cli, *common, "--choose", "freq", "--model", saved)
    result = answered(cli, *common, "--choose", "sense", "--model", saved, "--weights", "de=2")
    assert value(result, "num_replaced") == 6


def test_phrases_are_one_word(cli: Cli, tmp_path: Path, data: Path) -> None:
    (tmp_path / "de.txt").write_text("big dog\tgroßer Hund\n", encoding="utf-8")
    options = ("--dictionaries", f"de={tmp_path / 'de.txt'}", "--rate", 1)
    assert value(answered(cli, "switch", "--data", data, *options), "num_replaced") == 0
    assert value(answered(cli, "switch", "--data", data, *options, "--phrases"), "num_replaced") == 1


def test_prompts_have_examples_in_the_language_of_their_question(cli: Cli, tmp_path: Path) -> None:
    result = answered(cli, "switch", "--num-examples", 30, "--shots", 3, "--rate", 1)
    rows = [json.loads(line) for line in artifact(tmp_path, "prompts.jsonl").read_text().splitlines()]
    assert value(result, "num_prompts") == len(rows) == 3 * NUM_WORLD_QUERIES
    assert {row["language"] for row in rows} == {"de", "es", "zh"}
    for row in rows:
        blocks, others = row["switched"].split("\n\n"), row["plain"].split("\n\n")
        assert len(blocks) == len(others) == 4
        assert blocks[-1] == others[-1]
        assert blocks[-1].startswith("Text: ")
        assert row["answer"].startswith("Spans: ")
    assert any(row["switched"] != row["plain"] for row in rows)
    chinese = "".join(row["switched"] for row in rows if row["language"] == "de")
    assert not any("\u4e00" <= char <= "\u9fff" for char in chinese)


def test_a_decoder_answers_prompts_of_classes(cli: Cli, tmp_path: Path, muse: Path) -> None:
    (tmp_path / "x.tsv").write_text("The dog\tbig dog\tyes\nRome\tin Rome\tno\nThe big\tRome\tno\n")
    (tmp_path / "de.tsv").write_text("Der Hund\tgroßer Hund\tyes\nRom\tin Rom\tno\n")
    tokenizer = train_tokenizer(["The dog big dog yes Rome in no Der Hund Text Label 1 2 :"] * 4, 300)
    save_model(build_tiny("llama-2x64", len(tokenizer), 0), tmp_path / "decoder", tokenizer)
    common = ("switch", "--data", tmp_path / "x.tsv", "--dictionaries", f"de={muse}", "--shots", 2, "--rate", 1)
    found = answered(cli, *common, "--queries", f"de={tmp_path / 'de.tsv'}", "--decoder", tmp_path / "decoder")
    first = json.loads(artifact(tmp_path, "prompts.jsonl").read_text().splitlines()[0])
    # One example of each class, whatever the draw.
    assert sorted(line for line in first["plain"].split("\n") if line.startswith("Label")) == [
        "Label: no",
        "Label: yes",
    ]
    assert first["switched"].endswith("Text 1: Der Hund\nText 2: großer Hund\n")
    assert "Text 1: der Hund\nText 2: groß Hund\nLabel: yes" in first["switched"]
    gain = value(found, "switched_prompt_accuracy") - value(found, "plain_prompt_accuracy")
    assert value(found, "prompt_accuracy_gain") == pytest.approx(gain)
    assert any("behind switched examples" in one for one in found["verdicts"])
    refused = cli("transfer", *common)
    assert (refused.exit_code, "there are no questions" in refused.stderr) == (2, True)


def test_a_decoder_needs_classes(cli: Cli) -> None:
    refused = cli("transfer", "switch", "--num-examples", 5, "--shots", 1, "--decoder", "absent")
    assert (refused.exit_code, "for classes alone" in refused.stderr) == (2, True)


@pytest.mark.parametrize("ends", [False, True])
def test_the_likelier_class_is_chosen(tmp_path: Path, ends: bool) -> None:
    tokenizer = train_tokenizer(["yes no Label:"] * 4, 300)
    plain = train_tokenizer(["yes no Label:"] * 4, 300)
    if ends:
        # Some tokenizers put an end behind every text, which must not stand between question and answer.
        end = ("</s>", tokenizer.convert_tokens_to_ids("</s>"))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
        assert tokenizer("yes")["input_ids"][-1] == tokenizer.eos_token_id
    model = build_tiny("llama-2x64", len(tokenizer), 0)
    save_model(model, tmp_path, tokenizer)
    prompts = ["yes\n", "no\n", "yes no\n"]
    chosen = choose_labels(str(tmp_path), prompts, ["yes", "no"])
    for prompt, label in zip(prompts, chosen, strict=True):
        means = {}
        for other in ("yes", "no"):
            start, whole = (plain(text)["input_ids"] for text in (f"{prompt}Label:", f"{prompt}Label: {other}"))
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            means[other] = np.mean([float(logs[i - 1, whole[i]]) for i in range(len(start), len(whole))])
        assert means[label] == max(means.values())


def test_pairs_are_exported_as_pairs(cli: Cli, tmp_path: Path, muse: Path) -> None:
    (tmp_path / "p.tsv").write_text("The dog\tBig dog\tneutral\n")
    options = ("--dictionaries", f"de={muse}", "--rate", 1, "--sync-pairs", "--choose", "uniform")
    answered(cli, "switch", "--data", tmp_path / "p.tsv", *options)
    (example,) = read_labelled(artifact(tmp_path, "switched.jsonl")).examples
    assert example.label == "neutral"
    assert example.sentences[0].words[1] == example.sentences[1].words[1] in ("Hund", "Köter")


def test_a_reversed_dictionary_is_noticed_and_turned_round(cli: Cli, tmp_path: Path, data: Path, muse: Path) -> None:
    turned = tmp_path / "turned.txt"
    turned.write_text("".join(" ".join(reversed(line.split())) + "\n" for line in muse.read_text().splitlines()))
    result = answered(cli, "switch", "--data", data, "--dictionaries", f"de={turned}")
    assert any("runs the other way" in one and "--reverse" in one for one in result["verdicts"])
    again = answered(cli, "switch", "--data", data, "--dictionaries", f"de={turned}", "--reverse", "--rate", 1)
    assert value(again, "num_replaced") == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dictionaries", "x"], "names no language"),
        (["--dictionaries", "de=absent.txt"], "absent.txt: cannot be read"),
        (["--mode", "paper", "--choose", "uniform"], "the paper's rule has choose first"),
        (["--weights", "de"], "'de' is no weight"),
        (["--weights", "xx=1"], "there is no dictionary into 'xx'"),
        (["--protect", "("], "is no kind and no expression"),
        (["--choose", "freq"], "needs frequencies"),
        (["--choose", "sense"], "needs an encoder"),
        (["--data", "absent.txt"], "absent.txt: cannot be read"),
        (["--rate", "2"], "--rate"),
    ],
)
def test_switch_refuses_in_one_line(cli: Cli, options: list[str], message: str) -> None:
    answer = cli("transfer", "switch", "--num-examples", 5, *options)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


# ---- parse


def test_a_parser_is_trained_used_again_and_scored(cli: Cli, tmp_path: Path, data: Path) -> None:
    pytest.importorskip("ufal.udpipe", reason="ufal.udpipe is not installed (extra parse)")
    result = answered(cli, "parse", "--num-train", 40, "--num-test", 20, "--iterations", 1)
    assert value(result, "uas") > value(result, "left_chain_uas") + 30
    assert value(result, "num_train_sentences") == 40
    assert result["scalars"]["uas"]["low"] <= value(result, "uas") <= result["scalars"]["uas"]["high"]
    parser = artifact(tmp_path, "parser.udpipe")
    (tmp_path / "text.txt").write_text("Berlin liegt in Deutschland.\n\nHallo!\n", encoding="utf-8")
    again = answered(cli, "parse", "--model", parser, "--num-test", 20, "--text", tmp_path / "text.txt")
    assert value(again, "num_parsed") == 2
    parsed = read_conllu(artifact(tmp_path, "parsed.conllu"), strict=True).sentences
    assert [one.text for one in parsed] == ["Berlin liegt in Deutschland.", "Hallo!"]
    labelled = answered(cli, "parse", "--model", parser, "--text", data, "--format", "iob2")
    assert value(labelled, "num_parsed") == 2


def test_trees_of_a_file_are_scored(cli: Cli, tmp_path: Path) -> None:
    bank = world_trainable("de", 12, 0).sentences
    (tmp_path / "gold.conllu").write_text(conllu(bank), encoding="utf-8")
    (tmp_path / "other.conllu").write_text(conllu(bank[:6]), encoding="utf-8")
    common = ("parse", "--backend", "file", "--treebank", tmp_path / "gold.conllu")
    result = answered(cli, *common, "--predicted", tmp_path / "gold.conllu")
    assert (value(result, "uas"), value(result, "upos")) == (100, 100)
    for words, message in (
        ([*common], "needs a file of trees"),
        ([*common, "--predicted", tmp_path / "other.conllu"], "has no tree for"),
        (
            ["parse", "--num-train", 900, "--num-test", 20, "--treebank", tmp_path / "gold.conllu"],
            "are more than the 12",
        ),
        (["parse", "--treebank", tmp_path / "absent"], "cannot be read"),
        (["parse", "--model", tmp_path / "absent"], "is no UDPipe model"),
    ):
        answer = cli("transfer", *words)
        assert (answer.exit_code, message in answer.stderr) == (2, True), answer.stderr


def test_faults_of_a_treebank_are_counted_or_refused(cli: Cli, tmp_path: Path) -> None:
    cycle = TREES.replace("\t0\troot", "\t1\troot")
    (tmp_path / "t.conllu").write_text(TREES + cycle)
    common = ("parse", "--backend", "file", "--treebank", tmp_path / "t.conllu", "--predicted", tmp_path / "t.conllu")
    result = answered(cli, *common)
    assert value(result, "num_left_out") == 1
    assert ["cycles", 1] in result["tables"]["faults"]["rows"]
    answer = cli("transfer", *common, "--strict")
    assert answer.exit_code == 2
    assert "t.conllu:4" in answer.stderr


# ---- dictionary


def test_the_worlds_dictionary_is_induced(cli: Cli, tmp_path: Path) -> None:
    result = answered(cli, "dictionary")
    assert value(result, "precision_at_1") > 0.8
    assert value(result, "held_out_hit_rate") > 0.8
    found = read_dictionary(artifact(tmp_path, "dictionary.tsv"))
    assert found.lookup("Monday")[0].text == "Montag"


def test_a_dictionary_is_read_turned_round_and_looked_up(cli: Cli, tmp_path: Path, muse: Path) -> None:
    (tmp_path / "text.txt").write_text("The dog and the big cat.")
    result = answered(cli, "dictionary", "--dictionary", muse, "--text", tmp_path / "text.txt")
    assert value(result, "num_entries") == 5
    (tmp_path / "es.txt").write_text("potato {n} (x) :: papa [Latin America], patata [Spain]\n")
    regional = answered(cli, "dictionary", "--dictionary", tmp_path / "es.txt", "--prefer", "spain")
    assert regional["tables"]["labels"]["rows"] == [["Latin America", 1], ["Spain", 1]]
    (kept,) = read_dictionary(artifact(tmp_path, "dictionary.tsv")).entries["potato"]
    assert (kept.text, kept.labels) == ("patata", ("Spain",))
    assert value(result, "hit_rate") == pytest.approx(4 / 6)
    turned = answered(cli, "dictionary", "--dictionary", muse, "--reverse", "--text", tmp_path / "text.txt")
    assert any("--reverse" in one for one in turned["verdicts"])
    assert read_dictionary(artifact(tmp_path, "dictionary.tsv")).lookup("Hund")[0].text == "dog"


def test_alignments_of_an_encoder(cli: Cli, tmp_path: Path, saved: Path) -> None:
    texts = ["the dogs run", "the cat run", "dogs the cat"] * 3
    (tmp_path / "a.txt").write_text("\n".join(texts))
    files = ("--source-text", tmp_path / "a.txt", "--target-text", tmp_path / "a.txt")
    lenient = ("--min-count", 1, "--threshold", 0.01)
    for method in ("argmax", "itermax"):
        answered(cli, "dictionary", *files, "--method", method, "--model", saved, "--num-pairs", 3, *lenient)
        found = read_dictionary(artifact(tmp_path, "dictionary.tsv"))
        # The same text on both sides: every word is its own translation.
        assert all(own[0].text == head for head, own in found.entries.items())
        assert set(found.entries) == {"the", "dogs", "cat", "run"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "argmax"], "needs an encoder"),
        (["--threshold", "0.999"], "no pair of words is sure enough"),
        (["--dictionary", "absent"], "absent: cannot be read"),
        (["--source-text", "absent"], "absent: cannot be read"),
        (["--script", "Cyrl"], "no translation is written in Cyrl"),
        (["--target-language", "xx"], "xx"),
    ],
)
def test_dictionary_refuses_in_one_line(cli: Cli, options: list[str], message: str) -> None:
    answer = cli("transfer", "dictionary", *options)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
