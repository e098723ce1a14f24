"""The model and training verbs through the command line, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polyloom.methods.pretrain.coordinates import judge, measure, scalings
from polyloom.methods.pretrain.launch import failure
from polyloom.methods.pretrain.planning import layouts
from polyloom.methods.pretrain.proxies import Family, as_bytes
from polyloom.methods.pretrain.recipe import padded
from polyloom.models.load import load_model, load_tokenizer
from polyloom.runs.folder import Run

TINY = ["--preset", "tiny-2x64", "--vocab-size", "300", "--window-tokens", "32", "--batch-size", "8"]


def value(done: Any, name: str) -> Any:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["scalars"][name]["value"]


@pytest.fixture(scope="module")
def family() -> Family:
    text = [f"the {i} small words of {i * i} texts" for i in range(400)]
    return Family(as_bytes([text]), as_bytes([text[:40]]))


@pytest.mark.parametrize("muon", [False, True])
def test_coordinates_grow_in_the_standard_form_alone(family: Family, muon: bool) -> None:
    values = {
        name: {width: measure(family, width, scaling, 3, 0) for width in (64, 192)}
        for name, scaling in scalings(1e-2, muon=muon).items()
    }
    assert values["muP"][64] == values["standard"][64]
    growth = {name: by[192]["block 2"][-1] / by[64]["block 2"][-1] for name, by in values.items()}
    assert 0.7 < growth["muP"] < 1.4
    assert growth["standard"] > 2


def crawl(folder: Path) -> Path:
    folder.mkdir()
    german = "In {i} kleinen Orten lebten {j} Leute, die an jedem Tag zusammen Brot und Milch auf dem Markt kauften."
    english = "In {i} small towns there lived {j} people who went to the market together for bread and milk every day."
    rows = [
        {"text": " ".join(text.format(i=i + k, j=i * 7 + k) for k in range(6)), "language": language, "domain": "web"}
        for i in range(60)
        for language, text in (("de", german), ("en", english))
    ]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, rows[0]]) + "\nnot json\n")
    (folder / "empty.jsonl").write_text("")
    return folder


def test_one_file_goes_from_raw_documents_to_a_checkpoint(cli: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: ['{crawl(tmp_path / 'crawl')}']\ncorpus: {{heuristics: false, near_duplicates: false, "
        f"paragraphs: false}}\n"
        "preset: tiny-2x64\nvocab_size: 300\nwindow_tokens: 32\nbatch_size: 8\nsteps: 6\nlog_every: 2\n"
        "mixture: {web/de: 3.0, web/en: 1.0}\nmemory_saving_swiglu: A\nbase_width: 32\noutput_mult: 0.5\n"
    )
    done = cli("pretrain", "train", "--config", recipe, "--run", "t", "--json")
    assert value(done, "num_tokens") == 6 * 8 * 32
    result = json.loads(done.stdout)
    assert any("add up to 4; they were divided" in line for line in result["limitations"])
    shares = {row[0]: row[1] for row in result["tables"]["sources"]["rows"]}
    assert shares == {"web/de": 0.75, "web/en": 0.25}
    model = tmp_path / "runs" / "t" / "artifacts" / "model"
    loaded = load_model(model)
    assert loaded.config.model_type == "granite"
    assert loaded.config.logits_scaling == 4.0
    assert loaded.config.vocab_size == padded(300)
    assert len(load_tokenizer(model, loaded)) <= 300
    again = cli("pretrain", "train", "--model", model, "--tokenizer", model, "--steps", "2", "--languages", "en",
                "--window-tokens", "32", "--batch-size", "4", "--base-width", "0", "--run", "u", "--json")  # fmt: skip
    assert value(again, "num_tokens") == 2 * 4 * 32
    assert value(again, "loss") < 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "tele-flm"], "there is no preset 'tele-flm'. Did you mean"),
        (["--width", "100"], "the width 100 is not a multiple of the head size 32"),
        (["--tp", "3"], "tp: 3 does not divide the 2 heads. Choose 1, 2."),
        (["--pp", "4"], "pp: 4 stages are more than the 2 layers"),
        (["--dp", "3"], "dp: 3 does not divide the 8 rows of a batch"),
        (["--optimizer", "muon", "--dp", "2"], "optimizer: muon needs whole matrices, which a layout splits"),
        (["--optimizer", "muon", "--base-depth", "2"], "base_depth: the depth rule is stated for AdamW"),
        (["--max-epochs", "0.01"], "is exhausted at sample"),
        (["--on-spike", "rewind", "--checkpoint-every", "0"], "rewind needs checkpoint_every"),
        (["--data", "NONE"], "NONE"),
    ],
)
def test_bad_recipes_are_one_line(cli: Any, words: list[str], message: str) -> None:
    base = TINY[2:] if "--preset" in words else TINY
    done = cli("pretrain", "train", *base, "--languages", "en", "--steps", "2", *words)
    assert done.exit_code == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("polyloom: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_loss_that_is_not_finite_leaves_its_batch(cli: Any, tmp_path: Path) -> None:
    words = ["--lr", "1e30", "--warmup-steps", "0", "--clip-norm", "0", "--on-spike", "off", "--steps", "30"]
    done = cli("pretrain", "train", *TINY, "--languages", "en", *words, "--run", "n")
    assert done.exit_code == 1
    assert "is not finite at step" in done.stderr
    artifacts = tmp_path / "runs" / "n" / "artifacts"
    assert load_file(artifacts / "failed-batch.safetensors")["tokens"].shape == (8, 33)
    assert "not finite" in json.loads((artifacts / "failure.json").read_text())["error"]


def test_export_and_grow_print_their_figures(cli: Any, tmp_path: Path) -> None:
    done = cli("pretrain", "export", "--json", "--run", "e")
    for name in ("granite_logits_difference", "teleflm_logits_difference", "bfloat16_logits_difference"):
        assert value(done, name) == 0.0
    folder = tmp_path / "runs" / "e" / "artifacts" / "forms" / "llama"
    grown = cli("pretrain", "grow", "--model", folder, "--width", "160", "--layers", "3", "--json")
    assert value(grown, "logits_difference") <= 1e-5
    assert cli("pretrain", "grow", "--model", folder).exit_code == 2
    assert "no size grows" in cli("pretrain", "grow", "--model", folder).stderr


def test_predict_the_published_losses(cli: Any) -> None:
    done = cli("pretrain", "predict", "--published", "--json")
    assert value(done, "max_published_error_percent") <= 0.30
    assert len(json.loads(done.stdout)["tables"]["published"]["rows"]) == 7


def test_predict_from_a_table(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("parameters,loss\n" + "".join(f"{x}e6,{2 * x**-0.5 + 1.7}\n" for x in (1, 2, 4, 8, 16)))
    done = cli("pretrain", "predict", "--table", path, "--target", "64e6", "--json")
    assert value(done, "predicted_loss") == pytest.approx(1.95, abs=1e-4)
    assert value(done, "resolved") is True


def test_search_a_grid_and_over_widths(cli: Any) -> None:
    base = ["--languages", "en", "--steps", "8", "--num-seeds", "1", "--json"]
    done = cli(
        "pretrain", "search", "--widths", "32", "64", "--lowest-exponent", "-7", "--highest-exponent", "-5", *base
    )
    assert value(done, "mup_shift_octaves") is not None
    assert "Too few seeds or steps" in json.loads(done.stdout)["verdicts"][0]
    assert cli("pretrain", "search", "--lowest-exponent", "-4").exit_code == 2


def test_plan_ranks_layouts_that_divide(cli: Any) -> None:
    done = cli("pretrain", "plan", "--json")
    assert value(done, "num_parameters") == pytest.approx(52.85e9, rel=1e-3)
    for row in json.loads(done.stdout)["tables"]["layouts"]["rows"]:
        assert row[0] * row[1] * row[2] == 896
        assert 1344 % row[2] == 0
    refused = cli("pretrain", "plan", "--num-devices", "893")
    assert refused.exit_code == 2
    assert "no layout of 893 devices" in refused.stderr
    assert callable(layouts)


def test_the_process_that_failed_first_is_named(run: Run) -> None:
    log = run.artifact("processes.log")
    log.write_text(
        "...\nRoot Cause (first observed failure):\n[0]:\n  rank : 3 (local_rank: 3)\n  exitcode  : -9 (pid: 7)\n"
    )
    assert "process 3 was ended by SIGKILL; the others were stopped." in str(failure(log, run))
    run.artifact("failed-3.txt").write_text("the disk is full.")
    assert "process 3 failed: the disk is full." in str(failure(log, run))


def test_rows_beyond_the_vocabulary_are_padding() -> None:
    assert [padded(size, tp) for size, tp in ((1, 1), (128, 1), (129, 1), (300, 4))] == [128, 128, 256, 512]
    assert torch.empty(padded(300)).shape == (384,)


def test_a_slope_is_judged_with_its_error() -> None:
    assert judge([0.2, 0.05]) == "holds"
    assert judge([0.3, 0.05]) == "is undecided"
    assert judge([0.4, 0.41, 0.39]) == "does not hold"
    assert judge([0.2]) == "is undecided"


@pytest.mark.slow
def test_the_quick_study_has_its_tables(cli: Any) -> None:
    done = cli("pretrain", "study", "--languages", "en", "de", "--json")
    assert 0 < value(done, "bits_per_byte") < 8
    result = json.loads(done.stdout)
    assert {"tokenizer", "bits_per_byte", "coordinates"} <= result["tables"].keys()
    assert any("too short to decide" in verdict for verdict in result["verdicts"])
    assert value(done, "max_standard_slope") > 1
