"""Bottleneck adapters behind a frozen encoder, language adapters, and the second stage of xTune."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel, XLMRobertaConfig, XLMRobertaModel

from polyloom.core.errors import UserError
from polyloom.methods.transfer.adapters import Adapters, Bottleneck, find_layers
from polyloom.methods.transfer.arms import ARMS
from polyloom.methods.transfer.config import TransferTrainConfig
from polyloom.methods.transfer.encoders import make_start, set_dropout
from polyloom.methods.transfer.models import load_transfer, predict, save_transfer
from polyloom.methods.transfer.sequences import find_targets
from polyloom.methods.transfer.training import Materials, agreement, arm_loss, build_arm, train_stages
from polyloom.models.tiny import build_tiny
from tests.methods.transfer.test_study import TINY, hand_data

SHAPE: Any = {"vocab_size": 60, "num_hidden_layers": 3}


def encoders() -> dict[str, Any]:
    return {
        "bert": build_tiny("bert-2x64", 60),
        "xlm-r": XLMRobertaModel(
            XLMRobertaConfig(**SHAPE, hidden_size=16, num_attention_heads=2, intermediate_size=32)
        ),
        "distilbert": DistilBertModel(DistilBertConfig(vocab_size=60, n_layers=2, dim=16, n_heads=2, hidden_dim=32)),
        "llama": build_tiny("llama-2x64", 60).model,
    }


@pytest.mark.parametrize("name", ["bert", "xlm-r", "distilbert", "llama"])
def test_fresh_adapters_change_nothing_and_trained_ones_do(name: str) -> None:
    model = encoders()[name].eval()
    ids = torch.tensor([[5, 9, 14, 3]])
    with torch.no_grad():
        plain = model(input_ids=ids).last_hidden_state
        adapters = Adapters(model, 4, ["de", "sw"])
        assert len(adapters.task) == len(find_layers(model))
        assert torch.equal(model(input_ids=ids).last_hidden_state, plain)
        torch.nn.init.normal_(adapters.languages["de"][0].up.weight)  # type: ignore[index]
        assert torch.equal(model(input_ids=ids).last_hidden_state, plain)
        adapters.use("de")
        assert not torch.allclose(model(input_ids=ids).last_hidden_state, plain)
        adapters.remove()
        assert torch.equal(model(input_ids=ids).last_hidden_state, plain)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_bottleneck_by_hand() -> None:
    one = Bottleneck(2, 1)
    with torch.no_grad():
        one.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        one.down.bias.zero_()
        one.up.weight.copy_(torch.tensor([[2.0], [3.0]]))
        assert one(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).tolist() == [[7.0, 7.0], [1.0, 3.0]]


def materials(config: TransferTrainConfig, tmp_path: Path) -> Materials:
    data = hand_data(size=16)
    start = make_start(config, data, 0, tmp_path / "start")
    return Materials(
        start.encoder,
        start.pieces,
        data.train,
        find_targets(data.train, "auto"),
        data.lexicons,
        languages=start.languages,
        source="en",
    )


def test_training_moves_the_adapters_alone_and_reads_a_target_with_its_own(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("das rot hund schlaeft\n" * 8)
    (tmp_path / "en.txt").write_text("the red dog sleeps\n" * 8)
    texts = [f"{code}={tmp_path / code}.txt" for code in ("en", "de")]
    config = TransferTrainConfig(**TINY | {"adapter_width": 4, "language_texts": texts, "epochs": 1})
    given = materials(config, tmp_path)
    assert set(given.languages) == {"en", "de"}
    before = copy.deepcopy(given.encoder.state_dict())
    built, _ = train_stages(ARMS["lexsyn"], given, config, 0, tmp_path / "arm")
    model = built.model
    assert model.adapters is not None
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    for code, weights in given.languages.items():
        assert all(torch.equal(v, weights[k]) for k, v in model.adapters.languages[code].state_dict().items())
    assert all(float(one.up.weight.detach().abs().max()) > 0 for one in model.adapters.task)  # type: ignore[arg-type, union-attr]
    predict(model, built.sequencer, hand_data().tests["de"])
    assert model.adapters.active == "de"
    tokenizer: Any = make_start(config, hand_data(size=16), 0, tmp_path / "again").tokenizer
    save_transfer(model, built.sequencer, tmp_path / "saved", {}, tokenizer)
    loaded = load_transfer(tmp_path / "saved")
    for code in ("en", "de"):
        examples = hand_data().tests[code]
        assert predict(loaded.model, loaded.sequencer, examples) == predict(model, built.sequencer, examples)


def test_what_adapters_cannot_do_is_refused(tmp_path: Path) -> None:
    (tmp_path / "de.txt").write_text("das rot hund\n")
    no_width = TransferTrainConfig(**TINY | {"language_texts": [f"de={tmp_path / 'de.txt'}"]})
    with pytest.raises(UserError, match="a language's text needs adapters"):
        materials(no_width, tmp_path)
    both = TransferTrainConfig(**TINY | {"adapter_width": 4, "lora_rank": 2})
    with pytest.raises(UserError, match="two ways of one thing"):
        build_arm(ARMS["base"], materials(both, tmp_path), both, 0)
    words = TransferTrainConfig(**TINY | {"encoder": "words", "adapter_width": 4})
    with pytest.raises(UserError, match="has no layers to adapt"):
        build_arm(ARMS["base"], materials(words, tmp_path), words, 0)


def test_the_second_stage_adds_how_far_a_model_is_from_its_teacher(tmp_path: Path) -> None:
    config = TransferTrainConfig(**TINY | {"teacher_weight": 3.0, "dropout": 0.0})
    given = materials(config, tmp_path)
    built = build_arm(ARMS["base"], given, config, 0)
    teacher = build_arm(ARMS["base"], given, config, 1).model.eval()
    batch = built.sequencer.batch(given.examples[:4])
    built.model.eval()
    with torch.no_grad():
        plain, size = arm_loss(ARMS["base"], config)(built.model, batch)
        taught, _ = arm_loss(ARMS["base"], config, teacher)(built.model, batch)
        gap = agreement(teacher(batch), built.model(batch), batch, batch)
    assert float(gap) > 0
    assert float(taught - plain) == pytest.approx(3 * float(gap) * size, rel=1e-4)


def test_the_tiny_encoder_drops_states_as_the_heads_do() -> None:
    model: Any = build_tiny("bert-2x64", 60)
    set_dropout(model, 0.25)
    shares = {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}
    assert {share for name, share in shares.items() if "attention.self" not in name} == {0.25}
    assert {share for name, share in shares.items() if "attention.self" in name} == {0.0}
