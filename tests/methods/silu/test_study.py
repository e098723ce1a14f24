"""The verbs through the command line and in process: named scalars, numbers to reach, proofs, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig

from polyloom.core.errors import UserError
from polyloom.core.registry import load
from polyloom.methods import silu
from polyloom.methods.silu.advice import advise_sizes, read_blocks
from polyloom.methods.silu.config import AdviseConfig, FactsConfig, MemoryConfig
from polyloom.methods.silu.memory import make_block, measure_units, prove_on_model
from polyloom.methods.silu.study import run_advise, run_facts, run_memory
from polyloom.methods.silu.timing import interleaved_ratios, median_rank
from polyloom.models.load import save_model
from polyloom.models.patching import unpatch_mlp
from polyloom.models.tiny import build_tiny
from polyloom.runs.folder import Run
from tests.families import llama

SMALL = MemoryConfig(num_tokens=32, hidden_size=16, intermediate_size=40, rounds=3)


def small_llama(**changes: Any) -> LlamaForCausalLM:
    return llama(**{"intermediate_size": 72, "num_hidden_layers": 3, "max_position_embeddings": 48} | changes)


def test_facts_answers_through_the_command_line(cli: Callable[..., Any]) -> None:
    answer = cli("silu", "facts", "--activation", "silu", "--json")
    assert answer.exit_code == 0
    result = json.loads(answer.stdout)
    scalars = {name: scalar["value"] for name, scalar in result["scalars"].items()}
    assert (result["room"], result["verb"]) == ("silu", "facts")
    assert scalars["minimum_value"] == pytest.approx(-0.2784645427610738, abs=1e-12)
    assert scalars["minimum_location"] == pytest.approx(-1.2784645427610738, abs=1e-12)
    assert scalars["lipschitz_constant"] == pytest.approx(1.0998393201288669, abs=1e-12)
    assert scalars["derivative_lipschitz_constant"] == pytest.approx(0.5, abs=1e-12)
    assert scalars["is_monotone"] is False
    assert scalars["nan_at_minus_infinity"] is True
    assert scalars["bfloat16_max_relative_error"] <= 2**-8
    assert scalars["forward_time_ratio"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("sillu", "Did you mean 'silu'"), ("nowhere:f", "cannot be imported"), ("math:sin", "fails on")],
)
def test_facts_refuses_in_one_line(cli: Callable[..., Any], name: str, message: str) -> None:
    answer = cli("silu", "facts", "--activation", name)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_facts_of_relu_says_what_is_unbounded_and_not_smooth(run: Run) -> None:
    result = run_facts(FactsConfig(activation="relu"), run)
    assert result.scalars["maximum_value"].value is None
    assert result.scalars["derivative_lipschitz_constant"].value is None
    assert ["kink", 0.0] in result.tables["places"].rows
    assert any("settles at variance 1.0000" in line for line in result.verdicts)


def test_facts_of_silu_does_not_call_it_zero_centred(run: Run) -> None:
    verdicts = run_facts(FactsConfig(), run).verdicts
    assert any("mean 0.2066, so it is not zero-centred" in line for line in verdicts)
    assert any("dies" in line for line in verdicts)


def test_memory_reaches_its_numbers(run: Run) -> None:
    scalars = run_memory(SMALL, run).scalars
    assert [scalars[f"saved_units_{form}"].value for form in ("plain", "a", "b", "checkpoint")] == [4, 3, 2, 0]
    for form in "ab":
        for claim in ("bits_equal_float32", "bits_equal_bfloat16", "gradgradcheck", "model_equal"):
            assert scalars[f"{claim}_{form}"].value is True
        ratio = scalars[f"time_ratio_{form}"]
        assert ratio.low <= ratio.value <= ratio.high
    assert scalars["model_saved_less_b"].value == pytest.approx(0.229, abs=0.005)
    assert scalars["model_saved_less_a"].value == pytest.approx(scalars["model_saved_less_b"].value / 2, rel=1e-6)


def test_memory_proves_equality_on_the_users_model(run: Run, tmp_path: Path) -> None:
    save_model(small_llama(), tmp_path / "model")
    result = run_memory(SMALL.model_copy(update={"model": str(tmp_path / "model")}), run)
    assert result.scalars["model_equal_a"].value is True
    assert result.scalars["model_equal_b"].value is True
    assert [row[-1] for row in result.tables["model"].rows] == [0, 3, 3]


@pytest.mark.parametrize("verb", ["memory", "advise"])
def test_model_with_another_activation_is_refused(cli: Callable[..., Any], tmp_path: Path, verb: str) -> None:
    save_model(small_llama(hidden_act="gelu_pytorch_tanh"), tmp_path / "model")
    answer = cli("silu", verb, "--model", tmp_path / "model")
    assert answer.exit_code == 2
    assert "this model uses gelu_pytorch_tanh: not patched" in answer.stderr


@pytest.mark.parametrize("verb", ["memory", "advise"])
def test_folder_that_is_no_model_is_refused(cli: Callable[..., Any], tmp_path: Path, verb: str) -> None:
    (tmp_path / "empty").mkdir()
    answer = cli("silu", verb, "--model", tmp_path / "empty")
    assert answer.exit_code == 2
    assert "config.json" in answer.stderr


def test_resumed_memory_reads_its_steps_back(run: Run) -> None:
    first = run_memory(SMALL, run)
    second = run_memory(SMALL, run)
    assert first.scalars == second.scalars  # times too: they were stored, not measured again


def test_proof_notices_a_changed_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyloom.models import patching

    model = build_tiny("llama-2x64", 61)
    forward = patching.FORWARDS["B"]
    monkeypatch.setattr(patching, "_prove_equal", lambda *_: None)
    monkeypatch.setitem(patching.FORWARDS, "B", lambda self, x: forward(self, x) * (1 + 2e-7))
    proofs = {proof.form: proof for proof in prove_on_model(model, 1, 32, 0)}
    assert proofs["a"].gradients_equal
    assert not proofs["b"].gradients_equal
    assert unpatch_mlp(model) == []


def test_saved_units_do_not_depend_on_the_sizes() -> None:
    for size in ((8, 24, 5), (64, 176, 33)):
        assert measure_units(*make_block(*size, torch.float32, 0)) == {"plain": 4, "a": 3, "b": 2, "checkpoint": 0}


def test_advise_counts_bytes_by_hand(run: Run, tmp_path: Path) -> None:
    save_model(small_llama().to(torch.bfloat16), tmp_path / "model")
    config = AdviseConfig(model=str(tmp_path / "model"), batch_size=2, sequence_length=10, rounds=3)
    scalars = run_advise(config, run).scalars
    assert scalars["num_blocks"].value == 3
    assert scalars["unit_bytes"].value == 20 * 72 * 2
    for form, units in (("a", 1), ("b", 2), ("checkpoint", 4)):
        assert scalars[f"bytes_saved_{form}"].value == 3 * units * 20 * 72 * 2
        assert scalars[f"time_ratio_{form}"].value > 0


def test_advise_reads_a_large_model_without_its_weights(tmp_path: Path) -> None:
    # A layer of Tele-FLM: one unit of 4096 tokens in bfloat16 is 170.5 MiB.
    LlamaConfig(
        hidden_size=8192, intermediate_size=21824, num_hidden_layers=64, num_attention_heads=64, dtype="bfloat16"
    ).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "config.json").read_text()), "architectures": ["LlamaForCausalLM"]})
    )
    advice = advise_sizes(read_blocks(str(tmp_path)), 4096)
    assert advice.unit_bytes / 2**20 == 170.5
    assert advice.all_units_bytes == 64 * advice.unit_bytes
    hidden, ffn, tokens = advice.measured_size
    assert hidden * ffn <= 2**18 * 1.1
    assert ffn / hidden == pytest.approx(21824 / 8192, rel=0.05)
    assert tokens == 512


def test_advise_refuses_a_mixture_of_experts(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2MoeConfig(**shape, num_experts=2, num_experts_per_tok=1, shared_expert_intermediate_size=24)
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="mixture of experts"):
        read_blocks(str(tmp_path))


def test_advise_refuses_what_is_not_there() -> None:
    with pytest.raises(UserError, match="is no causal model"):
        read_blocks("/no/such/folder")


def test_interleaved_ratios_see_a_doubled_cost() -> None:
    def work(times: int) -> Callable[[], object]:
        return lambda: sum(i * i for i in range(times))

    ratios = interleaved_ratios({"one": work(40_000), "two": work(80_000)}, "one", 30)
    assert ratios["one"].value == 1
    assert 1.5 < ratios["two"].value < 2.7
    assert ratios["two"].low <= ratios["two"].value <= ratios["two"].high


@pytest.mark.parametrize(("num_values", "rank"), [(3, 0), (6, 0), (10, 1), (20, 5), (40, 13), (100, 39)])
def test_median_ranks_are_those_of_the_sign_test_tables(num_values: int, rank: int) -> None:
    assert median_rank(num_values) == rank


def test_card_names_what_exists() -> None:
    assert [verb.name for verb in silu.CARD.verbs] == ["facts", "memory", "advise", "study"]
    for verb in silu.CARD.verbs:
        load(verb.config)
        load(verb.run)
    for equation in silu.CARD.equations:
        load(equation.function)
    for name in silu.__all__:
        assert getattr(silu, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        silu.nothing  # noqa: B018


def test_readme_has_the_cards_equations_and_every_scalar(run: Run) -> None:
    text = Path(silu.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert silu.CARD.question in text
    for equation in silu.CARD.equations:
        assert f"| {equation.name.replace('|', chr(92) + '|')} | {equation.meaning} |" in text
    results = (
        run_facts(FactsConfig(), run),
        run_memory(SMALL, run),
        run_advise(AdviseConfig(sequence_length=8, rounds=3), run),
    )
    for result in results:
        for name in result.scalars:
            assert f"`{name}`" in text
