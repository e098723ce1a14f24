from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from polyloom.core.errors import UserError
from polyloom.models.device import choose_device
from polyloom.models.load import check_fit, count_parameters, load_model, load_tokenizer, save_model
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer
from tests.families import t5

TOKENS = torch.arange(12).view(1, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    save_model(build_tiny("llama-2x64", 300), path, train_tokenizer(["a few words"], 259))
    return path


@pytest.mark.parametrize(
    ("name", "kind"), [("llama-2x64", "causal"), ("granite-2x64", "causal"), ("bert-2x64", "encoder")]
)
def test_saved_and_loaded_is_the_same_model(tmp_path: Path, name: str, kind: Any) -> None:
    model = build_tiny(name, 300, seed=5)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m", kind)
    assert type(again) is type(model)
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS)[0], again(input_ids=TOKENS)[0])


def test_the_folder_opens_in_transformers_alone(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py"))]
    assert type(transformers.AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    assert transformers.AutoTokenizer.from_pretrained(folder).decode([3]) == "!"


def test_dtype_is_chosen(folder: Path) -> None:
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_device_is_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(folder).device == torch.device("cpu")
    assert load_model(folder, device="auto").device == choose_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees no cuda device"):
        load_model(folder, device="cuda")


def test_sequence_to_sequence_models_load(tmp_path: Path) -> None:
    model = t5()
    save_model(model, tmp_path / "t5")
    assert count_parameters(load_model(tmp_path / "t5", "seq2seq")).total == count_parameters(model).total


def test_an_encoder_without_pooler_loads_the_same_twice(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_model(build_tiny("bert-2x64", 300), path)
    weights = {k: v for k, v in load_file(path / "model.safetensors").items() if "pooler" not in k}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    first, second = load_model(path, "encoder"), load_model(path, "encoder")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "opened"),))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled weights \(pytorch_model.bin\).*Convert it once"):
        load_model(folder)
    assert not (tmp_path / "opened").exists()


def test_shipped_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="Add --trust-remote-code"):
        load_model(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"is no model folder \(no config.json\)"),
        ("config.json", "{}", "names no model_type"),
        ("config.json", "{", "is not JSON"),
        ("config.json", '{"model_type": "unheard-of"}', "is no causal model"),
        ("model.safetensors", None, r"holds no weights"),
        ("model.safetensors", "torn", "is no causal model"),
        ("tokenizer.json", "{}", "holds no tokenizer that can be read"),
    ],
)
def test_a_broken_folder_gets_one_clear_line(folder: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(folder, load_model(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 301}))
    with pytest.raises(UserError, match="is no causal model"):
        load_model(folder)


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    save_model(build_tiny("bert-2x64", 300), tmp_path / "m")
    with pytest.raises(UserError, match=r"its weights lack .* it is no causal model"):
        load_model(tmp_path / "m", "causal")


@pytest.mark.parametrize("source", [Path("no/where"), "./no", "a/b/c", "/no/where"])
def test_a_path_that_is_absent_never_reaches_for_the_hub(source: str | Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        load_model(source)


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="neither a folder here nor a readable model on the hub"):
        load_model("nobody/no-such-model")


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        load_model(folder / "config.json")


def test_a_tokenizer_that_does_not_fit_names_both_sizes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["words words words and words"], 265)
    assert len(tokenizer) > 260
    model = build_tiny("llama-2x64", 260)
    with pytest.raises(UserError, match=f"has {len(tokenizer)} tokens, the model embeds 260"):
        check_fit(tokenizer, model)
    with pytest.raises(UserError, match="embeds 260"):
        save_model(model, tmp_path / "m", tokenizer)
    assert not (tmp_path / "m").exists()
    check_fit(tokenizer, build_tiny("llama-2x64", len(tokenizer)))


def test_saving_is_whole_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = build_tiny("llama-2x64", 300, seed=9)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_model(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_never_replaces_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are no model"):
        save_model(build_tiny("llama-2x64", 300), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_saving_replaces_a_model(folder: Path) -> None:
    save_model(build_tiny("llama-2x64", 280, seed=1), folder)
    assert load_model(folder).config.vocab_size == 280
    assert not (folder / "tokenizer.json").exists()


def test_tied_embeddings_count_once() -> None:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        tie_word_embeddings=True,
    )  # fmt: skip
    assert count_parameters(transformers.LlamaForCausalLM(config)).embedding == 50 * 16
