"""The verb `export`: a checkpoint in any form to any other, with the largest difference of their logits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from polyloom.core.errors import UserError
from polyloom.core.result import Artifact, Cell, Result, Scalar, Table
from polyloom.methods.pretrain.architecture import build, llama_config
from polyloom.methods.pretrain.config import ExportConfig
from polyloom.methods.pretrain.forms import Multipliers, Source, open_source, tensor_names, write_form
from polyloom.methods.pretrain.method import Scaling, decoder
from polyloom.models.device import pin_threads, torch_generator
from polyloom.models.load import load_model, load_tokenizer
from polyloom.runs.folder import Run

NUM_TOKENS = 64


class WithMultipliers(nn.Module):
    """The definition, written out: plain Llama layers with the multipliers outside of the tensors.

    h_0 = input_mult E[x]; h += branch * f(h); logits = (output_mult / m) W_out RMSNorm(h_L).
    """

    def __init__(self, source: Source) -> None:
        """Read the tensors of a checkpoint as they are saved."""
        super().__init__()
        config = llama_config(source.shape, source.context)
        config.rope_parameters = {"rope_type": "default", "rope_theta": source.theta}
        config.rms_norm_eps = source.norm_eps
        with torch.random.fork_rng(devices=[]):
            self.inner = LlamaForCausalLM(config)
        self.inner.eval()  # type: ignore[no-untyped-call]
        self.multipliers = source.multipliers
        with torch.no_grad():
            for name, parameter in self.inner.named_parameters():
                parameter.copy_(source.native(name))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [rows, T, vocabulary] of tokens [rows, T]."""
        model, factors = self.inner.model, self.multipliers
        x = factors.embedding * model.embed_tokens(tokens)
        positions = model.rotary_emb(x, position_ids=torch.arange(tokens.shape[1])[None])
        for layer in model.layers:
            x = x + factors.branch * layer.self_attn(layer.input_layernorm(x), positions, None)[0]
            x = x + factors.branch * layer.mlp(layer.post_attention_layernorm(x))
        logits: Tensor = self.inner.lm_head(model.norm(x)) * factors.logits
        return logits


def run_export(config: ExportConfig, run: Run) -> Result:
    """Write a checkpoint in the forms asked for and compare their logits with the definition's.

    Args:
        config: the checkpoint (Llama, Granite or TeleFLM), forms, type.
        run: keeps the folders where no other is named.

    Returns:
        The largest absolute difference of logits for each form in float32, and in the type asked for between the
        Granite and the folded form.

    Raises:
        UserError: a model of another architecture, tied embeddings, biases, or a folder that holds something else.
    """
    pin_threads()
    if config.model == "tiny":
        source = _tiny_source(run, config.seed)
    elif Path(config.model).is_dir():
        source = open_source(Path(config.model))
    else:
        raise UserError("there is no such folder.", where="--model", hint="Name a checkpoint's folder.")
    root = config.out or run.artifact("forms")
    tokenizer = load_tokenizer(config.model) if (source.folder / "tokenizer.json").is_file() else None
    dtype = getattr(torch, config.dtype)
    for form in config.forms:
        write_form(form, root / form, source, source.native, dtype=dtype, tokenizer=tokenizer)
    differences = run.once("differences", lambda: measure_forms(source, run.artifact("check"), config.seed))
    return _as_result(config, run, source, differences)


def _tiny_source(run: Run, seed: int) -> Source:
    """Write a small random model in form G with the multipliers of the 52B model, powers of two."""
    shape = decoder(128, 2, 32, 512)
    scaling = Scaling(base_width=8, output_mult=0.5, zero_start=False)
    model = build(shape, 128, scaling, seed)
    source = Source(Path(), "folded", shape, 128, 10000.0, 1e-5, Multipliers(1.0, 0.5 / scaling.m(shape.width), 1.0))
    tensors = dict(model.named_parameters())
    folder = run.artifact("tiny")
    write_form("granite", folder, source, lambda name: tensors[name].detach() / source.multipliers.of(name))
    return open_source(folder)


def measure_forms(source: Source, folder: Path, seed: int) -> dict[str, float]:
    """Write a checkpoint's forms, load them as anybody would, and compare their logits on random tokens.

    Args:
        source: the checkpoint.
        folder: for the forms.
        seed: of the tokens.

    Returns:
        `granite`, `llama`, `teleflm`: float32, against the definition; `bfloat16`: folded Llama cast to bfloat16
        against Granite in bfloat16.
    """
    tokens = torch.randint(0, source.shape.vocab, (2, NUM_TOKENS), generator=torch_generator(seed, "tokens"))
    found = {}
    with torch.inference_mode():
        expected = WithMultipliers(source)(tokens)
        for form in ("granite", "llama"):
            write_form(form, folder / form, source, source.native)
            found[form] = _difference(load_model(folder / form)(input_ids=tokens).logits, expected)
        write_form("teleflm", folder / "teleflm", source, source.native)
        found["teleflm"] = _difference(WithMultipliers(open_source(folder / "teleflm"))(tokens), expected)
        halves = []
        for form in ("granite", "llama"):
            write_form(form, folder / "half" / form, source, source.native, dtype=torch.bfloat16)  # type: ignore[arg-type]
            halves.append(load_model(folder / "half" / form, dtype=torch.bfloat16)(input_ids=tokens).logits)
        found["bfloat16"] = _difference(halves[0].float(), halves[1].float())
    return found


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _as_result(config: ExportConfig, run: Run, source: Source, differences: dict[str, float]) -> Result:
    exact = source.multipliers.are_exact
    what = "powers of two" if exact else "no powers of two, so that folding rounds"
    rows: list[list[Cell]] = [
        ["G: GraniteForCausalLM", "float32, against the definition", differences["granite"]],
        ["L: LlamaForCausalLM, folded", "float32, against the definition", differences["llama"]],
        ["T: TeleFLM", "float32, against the definition", differences["teleflm"]],
        ["L against G", "bfloat16", differences["bfloat16"]],
    ]
    artifacts = {}
    if config.out is None:
        artifacts["forms"] = Artifact(path="artifacts/forms", media_type="inode/directory", description="the model")
    return run.result(
        scalars={
            "granite_logits_difference": Scalar(value=differences["granite"]),
            "llama_logits_difference": Scalar(value=differences["llama"]),
            "teleflm_logits_difference": Scalar(value=differences["teleflm"]),
            "bfloat16_logits_difference": Scalar(value=differences["bfloat16"]),
            "factors_are_powers_of_two": Scalar(value=exact),
            "num_tensors": Scalar(value=len(tensor_names(source.shape))),
        },
        tables={"forms": Table(columns=["form", "compared", "largest difference of logits"], rows=rows, title="Forms")},
        artifacts=artifacts,
        verdicts=[
            f"Form G differs from the definition by {differences['granite']:.2g} in float32, the folded form from G by "
            f"{differences['bfloat16']:.2g} in bfloat16; the factors are {what}."
        ],
        limitations=["Logits are compared on 128 random tokens."],
    )
