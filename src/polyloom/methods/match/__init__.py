"""Light text matching with attention over features: the FA and SFA blocks, small matchers, search without torch.

Public names (imported on first use, so that reading the card needs no torch):

- `FeatureAttention`, `SelectiveFeatureAttention`, `make_block`: the blocks, for any sequence model of yours.
- `branch_weights`, `selection_bounds`, `bottleneck_width`, `fa_parameters`, `sfa_parameters`: their arithmetic.
- `Matcher`, `Shape`, `Recipe`, `fit`, `save`, `load`: bases with a block, trained, kept and read back.
- `read_pairs`, `world_pairs`, `split_pairs`: labelled pairs of the field's formats, or made on the spot.
- `compare_runs`: two blocks over seeds and test items.
- `Scorer`: an exported matcher in numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.match.data import read_pairs, split_pairs, world_pairs
    from polyloom.methods.match.folder import load, save
    from polyloom.methods.match.method import (
        FeatureAttention,
        SelectiveFeatureAttention,
        bottleneck_width,
        branch_weights,
        fa_parameters,
        make_block,
        selection_bounds,
        sfa_parameters,
    )
    from polyloom.methods.match.models import Matcher, Shape
    from polyloom.methods.match.scorer import Scorer
    from polyloom.methods.match.scores import compare_runs
    from polyloom.methods.match.training import Recipe, fit

__all__ = [
    "CARD",
    "FeatureAttention",
    "Matcher",
    "Recipe",
    "Scorer",
    "SelectiveFeatureAttention",
    "Shape",
    "bottleneck_width",
    "branch_weights",
    "compare_runs",
    "fa_parameters",
    "fit",
    "load",
    "make_block",
    "read_pairs",
    "save",
    "selection_bounds",
    "sfa_parameters",
    "split_pairs",
    "world_pairs",
]

_ROOM = "polyloom.methods.match"
_METHOD, _CONFIG = f"{_ROOM}.method", f"{_ROOM}.config"
_HOME = {
    **dict.fromkeys(("read_pairs", "split_pairs", "world_pairs"), f"{_ROOM}.data"),
    **dict.fromkeys(("Matcher", "Shape"), f"{_ROOM}.models"),
    **dict.fromkeys(("Recipe", "fit"), f"{_ROOM}.training"),
    **dict.fromkeys(("load", "save"), f"{_ROOM}.folder"),
    "compare_runs": f"{_ROOM}.scores",
    "Scorer": f"{_ROOM}.scorer",
}

__getattr__ = lazy_names(__name__, {**dict.fromkeys(__all__, _METHOD), **_HOME})


def _verb(name: str, summary: str, config: str, module: str) -> Verb:
    return Verb(name, summary, f"{_CONFIG}:{config}", f"{_ROOM}.{module}:run_{name}")


CARD = RoomCard(
    name="match",
    title="Light text matching with feature attention",
    question="How good can a light text-matching model be, and does attention over its features help?",
    papers=(
        Paper(
            "Modeling Selective Feature Attention for Representation-based Siamese Text Matching",
            "2404.16776",
            2024,
            "Zang, Liu",
        ),
    ),
    verbs=(
        _verb(
            "train",
            "Train a matcher on labelled pairs: a light base with a block over its features.",
            "TrainConfig",
            "study",
        ),
        _verb(
            "evaluate",
            "Judge a matcher: accuracy, F1, Spearman, MAP and MRR, search among the pairs.",
            "EvaluateConfig",
            "study",
        ),
        _verb(
            "study",
            "Compare no block, FA, SFA and their controls on every base, over paired seeds.",
            "MatchStudyConfig",
            "ablation",
        ),
        _verb(
            "bench",
            "Measure speed on one thread: sentences a second, what FA and SFA cost, latency.",
            "BenchConfig",
            "bench",
        ),
        _verb("index", "Encode a corpus into a searchable folder, or add to one.", "IndexConfig", "retrieval"),
        _verb("search", "Find the nearest texts of an index, with their cosines.", "SearchConfig", "retrieval"),
        _verb("dedupe", "Group the texts of a file that say the same.", "DedupeConfig", "retrieval"),
        _verb("export", "Write a matcher for numpy alone, with its scorer, and as ONNX.", "ExportConfig", "export"),
        _verb("explain", "Show which words and features carry a pair's score.", "ExplainConfig", "explain"),
    ),
    order=70,
    equations=(
        Equation("s = mean_l X", "squeeze", f"{_METHOD}:masked_mean"),
        Equation("e = sigmoid(norm(W2 tanh(W1 s + b1) + b2))", "FA: excite", f"{_METHOD}:FeatureAttention"),
        Equation("U = e X", "FA: rescale", f"{_METHOD}:FeatureAttention"),
        Equation("H = X W_in, Y^n = BiGRU_n(Y^(n-1))", "SFA: split", f"{_METHOD}:SelectiveFeatureAttention"),
        Equation("s = mean_(n,l) F + max_(n,l) F", "SFA: squeeze", f"{_METHOD}:SelectiveFeatureAttention"),
        Equation(
            "v^n = exp(a^n) / sum_n' exp(a^n')", "SFA: select, by vector-wise softmax", f"{_METHOD}:branch_weights"
        ),
        Equation(
            "U = (sum_n v^n Y^n) W_out",
            "SFA: weighted sum and bottleneck out",
            f"{_METHOD}:SelectiveFeatureAttention",
        ),
        Equation("(1 / (1 + (N-1) e), e / (e + N - 1))", "bounds of the selection", f"{_METHOD}:selection_bounds"),
        Equation("r = max(r0, 2 floor(8.33 ln(L) / 2))", "width of the squeezed text", f"{_METHOD}:bottleneck_width"),
        Equation("softmax(x y^T) y", "soft alignment (ESIM, RE2)", f"{_ROOM}.models:align"),
        Equation("log(1 + sum exp(s (cos_j - cos_i)))", "CoSENT loss", f"{_ROOM}.training:cosent"),
    ),
    tour=TourStep(verb="study", cpu_seconds=50),
    report="polyloom.methods.match.report:figures",
)
