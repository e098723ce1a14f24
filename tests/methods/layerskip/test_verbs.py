"""The verbs through the command line and in process: named scalars, exact calibration, losslessness, refusals."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyloom.core.registry import load
from polyloom.generation.layer_range import open_range
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import PLAIN, Plan, speculate
from polyloom.methods import layerskip
from polyloom.methods.layerskip import energy
from polyloom.methods.layerskip.adaptive import Adaptive
from polyloom.methods.layerskip.bench import first_divergence
from polyloom.methods.layerskip.calibration import (
    DRAFT_LENGTHS,
    Costs,
    best_plan,
    decode_all,
    measure_costs,
    predict,
    record,
)
from polyloom.methods.layerskip.data import prompt_tokens
from polyloom.methods.layerskip.notes import NAME, write_notes
from polyloom.methods.layerskip.sampling_test import chi_square_p, sampling_p_values
from polyloom.methods.layerskip.study import run_train
from polyloom.methods.layerskip.training import build_llama
from polyloom.models.load import load_model, load_tokenizer, save_model
from polyloom.runs.folder import Run

SMALL = ("--languages", "en", "de", "--num-prompts", "4", "--max-new-tokens", "24")
FLAT = Costs([1.0] * 9, [0.5] * 9)


def scalars(answer: Any) -> dict[str, Any]:
    assert answer.exit_code == 0, answer.stderr
    return {name: scalar["value"] for name, scalar in json.loads(answer.stdout)["scalars"].items()}


def test_card_names_what_exists() -> None:
    assert [verb.name for verb in layerskip.CARD.verbs] == [
        *("train", "exits", "generate", "calibrate", "bench", "verify", "study", "serve")
    ]
    for verb in layerskip.CARD.verbs:
        assert callable(load(verb.run))
    for equation in layerskip.CARD.equations:
        assert callable(load(equation.function))
    for name in layerskip.__all__:
        assert getattr(layerskip, name) is not None


def test_calibration_predicts_tokens_per_round_exactly(trained: Path) -> None:
    model = load_model(trained)
    tokenizer = load_tokenizer(trained, model)
    prompts = [prompt_tokens(tokenizer, text) for text in ("weekday: June 2, 2016? =>", "region: Kenya? =>")]
    runner, ends = open_range(model, 80), frozenset([2])
    traces = [record(runner, prompt, 24, ends) for prompt in prompts]
    cells = predict(traces, FLAT, runner.num_layers)
    assert len(cells) == 3 * len(DRAFT_LENGTHS)
    for cell in cells:
        texts, counts = decode_all(runner, prompts, 24, Plan(cell.exit_layer, cell.draft_tokens), ends)
        assert texts == [trace.tokens for trace in traces]
        assert abs(counts.tokens_per_round - cell.tau) <= 1e-9
        assert counts.rounds == cell.rounds


def useless_exits() -> Any:
    """Return a model whose last layer says something else than all before it."""
    model = build_llama(3, 64, 64, 97, 0)
    with torch.no_grad():
        for parameter in model.model.layers[-1].parameters():
            parameter.mul_(20.0)
    return model


def test_useless_exits_fall_back_to_plain_decoding() -> None:
    runner = open_range(useless_exits(), 80)
    traces = [record(runner, [1, 5, 9], 40, frozenset())]
    assert best_plan(predict(traces, FLAT, 3)) == (PLAIN, 1.0)


def test_adaptive_text_is_the_plain_text_and_useless_exits_end_in_plain_decoding(trained: Path) -> None:
    model = load_model(trained)
    runner = open_range(model, 200)
    costs = measure_costs(runner, 20, 9, rounds=3)
    assert len(costs.layer) == 9
    assert all(seconds > 0 for seconds in costs.layer)
    prompt = [1, 40, 50, 60]
    plain = decode_all(runner, [prompt], 150, PLAIN, frozenset())[0][0]
    controller = Adaptive(runner, FLAT)
    rounds = list(speculate(runner, prompt, Decoding(150), controller))
    assert [token for tokens in rounds for token in tokens] == plain
    assert len(rounds) < 120
    useless = open_range(useless_exits(), 200)
    controller = Adaptive(useless, FLAT, Plan(1, 4), lookup=False)
    list(speculate(useless, [1, 5, 9], Decoding(150), controller))
    assert controller.best == PLAIN


def test_generate_streams_the_same_text_in_every_lossless_mode(cli: Callable[..., Any], trained: Path) -> None:
    texts = {}
    base = ("layerskip", "generate", "--model", trained, *SMALL, "--prompt", "weekday: June 2, 2016? =>", "--json")
    for mode in ("plain", "speculative", "adaptive"):
        answer = cli(*base, "--mode", mode)
        assert answer.exit_code == 0, answer.stderr
        text = json.loads(answer.stdout)["tables"]["text"]["rows"][0][1]
        assert text.strip().startswith("[IN:")
        assert text in answer.stderr
        texts[mode] = text
    assert len(set(texts.values())) == 1
    stopped = cli(*base, "--exit-layer", "2", "--draft-tokens", "3", "--stop", " [SL")
    assert json.loads(stopped.stdout)["tables"]["text"]["rows"][0][1] == texts["plain"].partition(" [SL")[0]
    assert cli(*base, "--mode", "early-exit", "--exit-layer", "2").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--exit-layer", "4"), "4 layers, exits are 1 to 3"),
        (("--exit-layer", "0"), "exits are 1 to 3"),
        (("--draft-tokens", "-1"), "--draft-tokens"),
        (("--max-new-tokens", "2000"), "exceed the 1024 positions"),
        (("--mode", "early-exit"), "needs an exit"),
        (("--data", "nowhere.tsv"), "no such file"),
        (("--confidence", "1"), "--confidence"),
    ],
)
def test_generate_refuses_in_one_line(
    cli: Callable[..., Any], trained: Path, options: tuple[str, ...], message: str
) -> None:
    answer = cli("layerskip", "generate", "--model", trained, "--prompt", "a", *options)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_tokenizer_that_does_not_fit_is_refused(cli: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    save_model(build_llama(3, 32, 32, 300, 0), tmp_path / "model")
    load_tokenizer(trained).save_pretrained(tmp_path / "model")
    answer = cli("layerskip", "exits", "--model", tmp_path / "model")
    assert answer.exit_code == 2
    assert "the model embeds 300" in answer.stderr


def test_exits_reports_every_exit_and_language(cli: Callable[..., Any], trained: Path) -> None:
    answer = cli("layerskip", "exits", "--model", trained, *SMALL, "--json")
    found = scalars(answer)
    assert found["agreement_exit_4"] == 1.0
    assert found["perplexity_exit_1"] > found["perplexity_exit_4"] > 1
    assert {"exact_match_exit_1", "exact_match_exit_4", "half_depth_ratio"} <= found.keys()
    assert [row[0] for row in json.loads(answer.stdout)["tables"]["languages"]["rows"]] == ["de", "en"]


def test_calibrate_with_a_sweep_measures_what_it_predicted(cli: Callable[..., Any], trained: Path) -> None:
    found = scalars(cli("layerskip", "calibrate", "--model", trained, *SMALL, "--sweep", "--json"))
    assert found["max_tau_error"] <= 1e-9
    assert 0 < found["choice_share_of_best"] <= 1
    assert found["time_share"] > 0


def test_bench_gives_the_same_tokens_as_every_peer(cli: Callable[..., Any], trained: Path) -> None:
    found = scalars(
        cli("layerskip", "bench", "--model", trained, *SMALL, "--rounds", "1", "--adaptive", "--watts", "9", "--json")
    )
    assert found["same_tokens"] is True
    assert found["same_tokens_as_hf"] is True
    for peer in ("plain", "hf_greedy", "hf_early_exit", "hf_prompt_lookup", "adaptive"):
        assert found[f"speed_over_{peer}"] > 0
    assert found["mixed_same_tokens"] is True
    assert found["adaptive_over_plain"] > 0
    assert found["mixed_adaptive_over_best_fixed"] > 0
    assert found["joules_per_token_plain"] > 0
    # A busy machine can make calibration choose plain decoding, which costs no more.
    assert found["flops_per_token"] >= found["flops_per_token_plain"] > 0


def test_energy_is_counted_by_token_with_idling_subtracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert energy.open_counter(torch.device("cpu")) is None or energy.POWERCAP.exists()
    (tmp_path / "intel-rapl:0").mkdir()
    file = tmp_path / "intel-rapl:0" / "energy_uj"
    file.write_text("5000000")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    name, counter = energy.open_counter(torch.device("cpu")) or ("", lambda: 0.0)
    assert (name, counter()) == ("RAPL", 5.0)

    def decode() -> list[int]:
        file.write_text("9000000")
        return [1, 2]

    assert energy.joules_per_token(counter, [decode], 0.0) == pytest.approx(2.0)
    file.write_text("10000000")
    assert energy.joules_per_token(counter, [decode], 0.0) is None
    monkeypatch.setattr(energy, "IDLE_SECONDS", 0.0)
    assert energy.measure_idle_watts(counter) == 0.0
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    assert energy.open_counter(torch.device("cpu")) is None


def test_verify_compares_all_pairs_and_the_sampling_rule(cli: Callable[..., Any], trained: Path) -> None:
    found = scalars(cli("layerskip", "verify", "--model", trained, *SMALL, "--num-draws", "300", "--json"))
    assert found["num_texts"] == 4 * (3 * 4 + 1)
    assert found["tie_share"] <= 0.001
    assert found["sampling_p_temperature_1"] > 0.001


def test_verify_calls_a_real_difference_a_bug(
    cli: Callable[..., Any], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyloom.methods.layerskip.bench_study.theirs", lambda model, work: [lambda: [7]] * 4)
    answer = cli("layerskip", "verify", "--model", trained, *SMALL)
    assert answer.exit_code == 1
    assert "leaves plain decoding at" in answer.stderr


def test_first_divergence_sees_lengths_too() -> None:
    assert first_divergence([1, 2], [1, 2]) is None
    assert first_divergence([1, 2], [1, 3]) == 1
    assert first_divergence([1, 2], [1]) == 1


@pytest.mark.slow
def test_sampled_triples_follow_the_exact_law() -> None:
    assert min(sampling_p_values(4000, 1).values()) > 0.001


def test_chi_square_sees_a_wrong_law() -> None:
    law = {(0,): 0.5, (1,): 0.5}
    assert chi_square_p(Counter({(0,): 600, (1,): 400}), law, 1000) < 1e-6
    assert chi_square_p(Counter({(0,): 505, (1,): 495}), law, 1000) == pytest.approx(0.752, abs=0.001)
    assert chi_square_p(Counter({(2,): 1}), law, 1) == 0.0


def test_train_continues_a_users_model_and_saves_an_ordinary_one(
    cli: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {i}", "response": f" {i} it is"} for i in range(40)]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ("--data", data, "--steps", "6", "--batch-size", "4", "--out", tmp_path / "out", "--lora-rank", "2")
    pytest.importorskip("peft")
    found = scalars(cli("layerskip", "train", "--model", trained, *options, "--json"))
    assert found["num_steps"] == 6
    before, after = load_model(trained), load_model(tmp_path / "out")
    assert set(before.state_dict()) == set(after.state_dict())
    assert torch.equal(before.state_dict()["lm_head.weight"], after.state_dict()["lm_head.weight"])
    assert found["perplexity_exit_4"] > 1
    notes = json.loads((tmp_path / "out" / NAME).read_text(encoding="utf-8"))
    assert (notes["recipe"]["preset"], notes["recipe"]["lora_rank"], len(notes["exits"])) == ("code-llama1-7b", 2, 4)


def test_a_calibrated_pair_is_noted_beside_the_model_and_found_there(
    cli: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    found = scalars(cli("layerskip", "calibrate", "--model", folder, *SMALL, "--save", "--json"))
    noted = json.loads((folder / NAME).read_text(encoding="utf-8"))["plan"]
    assert (noted["exit_layer"], noted["draft_tokens"]) == (found["exit_layer"], found["draft_tokens"])
    # Another pair than the calibrated one shows that it is the file that counts.
    write_notes(folder, plan={"exit_layer": 3, "draft_tokens": 7})
    words = ("layerskip", "generate", "--model", folder, *SMALL, "--prompt", "weekday: June 2, 2016? =>", "--json")
    used = scalars(cli(*words))
    assert (used["exit_layer"], used["draft_tokens"]) == (3, 7)
    write_notes(folder, plan={"exit_layer": 4, "draft_tokens": 7})
    refused = cli(*words)
    assert (refused.exit_code, "names exit 4 of a model with 4 layers" in refused.stderr) == (2, True)
    write_notes(folder, plan="exit 2")
    assert "no plan that can be read" in cli(*words).stderr
    assert cli("layerskip", "calibrate", "--save").exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--p-max", "1"), "must be in"), (("--e-scale", "2"), "--e-scale"), (("--rotation", "9"), "1 to 4")],
)
def test_train_refuses_settings_outside_their_range(
    cli: Callable[..., Any], trained: Path, options: tuple[str, ...], message: str
) -> None:
    answer = cli("layerskip", "train", "--model", trained, "--steps", "2", *options)
    assert answer.exit_code == 2
    assert message in answer.stderr


def test_ablations_of_the_tiny_model_train(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyloom.methods.layerskip.embedded.NUM_TRAIN", 60)
    config = load("polyloom.methods.layerskip.config:TrainVerbConfig")(
        steps=3, batch_size=4, mode="ld", languages=["en"]
    )
    result = run_train(config, run)
    assert (run.path / "artifacts" / "model" / "model.safetensors").exists()
    assert result.scalars["perplexity_exit_8"].value > 1
    settings = dict(result.tables["settings"].rows)
    assert (settings["e_scale"], settings["p_max"]) == (0.0, 0.1)
