"""Pretraining by the Tele-FLM recipe: hyper-parameters found small and trusted large, one loader, many processes.

Public names (imported on first use, so that reading the card needs no torch):

- `Shape`, `Scaling`, `count_parameters`, `training_flops_per_token`: a decoder, muP's hyper-parameters, their sizes.
- `build`, `parameter_groups`, `PRESETS`: models of the family and AdamW's groups by muP's table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.pretrain.architecture import PRESETS, build, parameter_groups
    from polyloom.methods.pretrain.method import Scaling, Shape, count_parameters, training_flops_per_token

__all__ = [
    "CARD",
    "PRESETS",
    "Scaling",
    "Shape",
    "build",
    "count_parameters",
    "parameter_groups",
    "training_flops_per_token",
]

_ROOM = "polyloom.methods.pretrain"
_METHOD = f"{_ROOM}.method"
_ARCHITECTURE = f"{_ROOM}.architecture"
_HOME = {
    **dict.fromkeys(("Scaling", "Shape", "count_parameters", "training_flops_per_token"), _METHOD),
    **dict.fromkeys(("PRESETS", "build", "parameter_groups"), _ARCHITECTURE),
}

__getattr__ = lazy_names(__name__, _HOME)


CARD = RoomCard(
    name="pretrain",
    title="Pretraining: the Tele-FLM recipe",
    question="How do I train a multilingual language model whose best settings I can find small and trust large?",
    papers=(
        Paper("Tele-FLM Technical Report", "2404.16645", 2024, "Li and others"),
        Paper("52B to 1T: Lessons Learned via Tele-FLM Series", "2407.02783", 2024, "Li and others"),
        Paper(
            "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
            "2203.03466",
            2022,
            "Yang and others",
        ),
    ),
    verbs=(
        Verb(
            "corpus",
            "Clean, deduplicate and describe folders of documents; write shards and a data card.",
            f"{_ROOM}.data_config:CorpusConfig",
            f"{_ROOM}.corpus.verb:run_corpus",
        ),
        Verb(
            "tokenizer",
            "Train a byte-level BPE tokenizer on a balanced sample; compare it by language with others.",
            f"{_ROOM}.data_config:TokenizerConfig",
            f"{_ROOM}.tokenizing:run_tokenizer",
        ),
        Verb(
            "evaluate",
            "Bits per byte by language and domain, with paired intervals between models; cloze and benchmarks.",
            f"{_ROOM}.data_config:EvaluateConfig",
            f"{_ROOM}.evaluating:run_evaluate",
        ),
        Verb(
            "train",
            "Train by the recipe, in one process or on a mesh of many, from documents to a checkpoint.",
            f"{_ROOM}.config:TrainVerbConfig",
            f"{_ROOM}.training:run_train",
        ),
        Verb(
            "coordinate-check",
            "Check that activations keep their size when the width grows, in muP and in the standard form.",
            f"{_ROOM}.config:CoordinateCheckConfig",
            f"{_ROOM}.coordinates:run_coordinate_check",
        ),
        Verb(
            "search",
            "Find the best learning rate by width, in muP and the standard form; or search a grid of settings.",
            f"{_ROOM}.config:SearchConfig",
            f"{_ROOM}.searching:run_search",
        ),
        Verb(
            "predict",
            "Predict a larger model's loss with an interval, or say that it is not resolved.",
            f"{_ROOM}.config:PredictConfig",
            f"{_ROOM}.predicting:run_predict",
        ),
        Verb(
            "mixture",
            "Fit each domain's loss by the shares of the mixture and propose shares, or say that it is not resolved.",
            f"{_ROOM}.config:MixtureConfig",
            f"{_ROOM}.mixing:run_mixture",
        ),
        Verb(
            "export",
            "Write a checkpoint as Granite, folded Llama or TeleFLM, and compare the logits.",
            f"{_ROOM}.config:ExportConfig",
            f"{_ROOM}.exporting:run_export",
        ),
        Verb(
            "grow",
            "Widen or deepen a checkpoint without changing its function.",
            f"{_ROOM}.config:GrowConfig",
            f"{_ROOM}.growing:run_grow",
        ),
        Verb(
            "study",
            "Measure a small model: tokenizer table, muP check, loss prediction, bits per byte.",
            f"{_ROOM}.config:PretrainStudyConfig",
            f"{_ROOM}.study:run_study",
        ),
        Verb(
            "verify",
            "Compare many processes, a killed run and another layout with one process.",
            f"{_ROOM}.config:VerifyConfig",
            f"{_ROOM}.verifying:run_verify",
        ),
        Verb(
            "bench",
            "Time training beside a plain loop over Hugging Face's Llama.",
            f"{_ROOM}.config:BenchConfig",
            f"{_ROOM}.benching:run_bench",
        ),
        Verb(
            "plan",
            "Work out memory, days and layouts of a model on so many devices.",
            f"{_ROOM}.config:PlanConfig",
            f"{_ROOM}.planning:run_plan",
        ),
    ),
    order=10,
    tour=TourStep(verb="study", inputs={"model": "model", "text": "text", "languages": "languages"}, cpu_seconds=30),
    equations=(
        Equation("lr/m, std/sqrt(m), wd m, eps/m", "muP's table for matrices under AdamW", f"{_METHOD}:native_rule"),
        Equation("m = width / base width", "width multiplier", f"{_METHOD}:Scaling"),
        Equation("U S' V^T, lr sqrt(max(1, rows/columns))", "Muon", "polyloom.training.muon:MuonWithAdamW"),
        Equation("W' = cW, lr c, eps/c, wd/c", "folding a multiplier into a tensor", f"{_METHOD}:fold"),
        Equation("input_mult, output_mult/m, r^-a", "forward factors", f"{_METHOD}:forward_factor"),
        Equation("lr r^(a-1), eps r^-a", "depth rule (CompleteP)", f"{_METHOD}:native_rule"),
        Equation("64 floor(8d/3 / 64)", "inner width", f"{_METHOD}:feed_forward"),
        Equation("L (4 d^2 + 3 d ffn + 2 d) + d + 2 V d", "parameters", f"{_METHOD}:count_parameters"),
        Equation("6 N + 12 L d T", "FLOPs of a token", f"{_METHOD}:training_flops_per_token"),
        Equation("L = a C^b + c", "loss by size", f"{_ROOM}.laws:fit_power_law"),
        Equation("L = a C^b + d t^e + c", "loss by size and steps", f"{_ROOM}.joint_laws:fit_joint"),
        Equation("L_i = c_i + exp(t_i . w)", "loss by mixture", f"{_ROOM}.mixture_laws:fit_law"),
        Equation(
            "h + r^-a f(h), logits output_mult/m",
            "the definition that exports equal",
            f"{_ROOM}.exporting:WithMultipliers",
        ),
        Equation("g sqrt(d/D), zeros to the new stream", "growth", f"{_ROOM}.growth:grow_tensor"),
        Equation("m, v kept; of gains m sqrt(D/d), v D/d", "growth of AdamW's moments", f"{_ROOM}.growth:grow_moment"),
        Equation("RMS(update) / RMS(weight)", "monitor by class", "polyloom.training.monitor:Monitor"),
        Equation("i -> (source, window)", "the sample stream", "polyloom.training.stream:SampleStream"),
        Equation("i - begin(document)", "packed documents", "polyloom.training.documents:inside_documents"),
        Equation("median + 6 MAD, 4 medians", "spikes", "polyloom.training.watch:Watch"),
        Equation("(p-1) / (v k + p-1)", "pipeline bubble", "polyloom.training.layouts:Layout"),
        Equation("min (a x + b) mod (2^61 - 1)", "MinHash", "polyloom.data.duplicates:minhash"),
        Equation("1 - (1 - s^r)^b", "chance to become candidates", "polyloom.data.duplicates:candidate_probability"),
        Equation("p ~ n^alpha", "the tokenizer's sample", f"{_ROOM}.samples:fill_shares"),
        Equation("sum nats / (ln 2 sum bytes)", "bits per byte", "polyloom.metrics.language_model:bits_per_byte"),
    ),
)
