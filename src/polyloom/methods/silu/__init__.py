"""SiLU, its gated forms, an exact memory-saving SwiGLU, and the activation lab.

Public names (imported on first use, so that reading the card needs no torch):

- `facts`, `FactSheet`: the fact sheet of any activation, from a name or from your own function.
- `silu_minimum`, `silu_lipschitz`, `silu_derivative`, `silu_second_derivative`, `swish_beta_derivative`: closed forms.
- `gaussian_moments`, `init_gain`, `variance_map`, `mean_field`, `edge_of_chaos`, `depth_scale`: signal propagation.
- `half_precision_error`: the error over all 65,536 patterns of a half type.
- `resolve_activation`, `ACTIVATIONS`: the registry of activations.
- `swiglu_product`, `swiglu_down`, `patch_mlp`, `unpatch_mlp`, `saved_units`: the exact memory-saving forms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.silu.method import (
        depth_scale,
        edge_of_chaos,
        gaussian_moments,
        half_precision_error,
        init_gain,
        mean_field,
        silu_derivative,
        silu_lipschitz,
        silu_minimum,
        silu_second_derivative,
        swish_beta_derivative,
        variance_map,
    )
    from polyloom.methods.silu.sheet import FactSheet, facts
    from polyloom.models.activations import ACTIVATIONS, resolve_activation
    from polyloom.models.patching import patch_mlp, unpatch_mlp
    from polyloom.models.swiglu import saved_units, swiglu_down, swiglu_product

__all__ = [
    "ACTIVATIONS",
    "CARD",
    "FactSheet",
    "depth_scale",
    "edge_of_chaos",
    "facts",
    "gaussian_moments",
    "half_precision_error",
    "init_gain",
    "mean_field",
    "patch_mlp",
    "resolve_activation",
    "saved_units",
    "silu_derivative",
    "silu_lipschitz",
    "silu_minimum",
    "silu_second_derivative",
    "swiglu_down",
    "swiglu_product",
    "swish_beta_derivative",
    "unpatch_mlp",
    "variance_map",
]

_METHOD = "polyloom.methods.silu.method"
_SHEET = "polyloom.methods.silu.sheet"
_ACTIVATIONS = "polyloom.models.activations"
_SWIGLU = "polyloom.models.swiglu"
_HOME = {
    **dict.fromkeys(("FactSheet", "facts"), _SHEET),
    **dict.fromkeys(("ACTIVATIONS", "resolve_activation"), _ACTIVATIONS),
    **dict.fromkeys(("saved_units", "swiglu_down", "swiglu_product"), _SWIGLU),
    **dict.fromkeys(("patch_mlp", "unpatch_mlp"), "polyloom.models.patching"),
}

__getattr__ = lazy_names(__name__, {**dict.fromkeys(__all__, _METHOD), **_HOME})


CARD = RoomCard(
    name="silu",
    title="SiLU, SwiGLU and the activation lab",
    question="Which activation should my model use, on evidence, and how do I train SwiGLU in less memory?",
    papers=(
        Paper("Gaussian Error Linear Units (GELUs)", "1606.08415", 2016, "Hendrycks, Gimpel"),
        Paper(
            "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in Reinforcement Learning",
            "1702.03118",
            2017,
            "Elfwing, Uchibe, Doya",
        ),
        Paper("Searching for Activation Functions", "1710.05941", 2017, "Ramachandran, Zoph, Le"),
        Paper("GLU Variants Improve Transformer", "2002.05202", 2020, "Shazeer"),
    ),
    verbs=(
        Verb(
            "facts",
            "Print the fact sheet of an activation: minimum, Lipschitz constants, moments, half-precision error.",
            "polyloom.methods.silu.config:FactsConfig",
            "polyloom.methods.silu.study:run_facts",
        ),
        Verb(
            "memory",
            "Measure what the exact SwiGLU forms A and B save, and prove that they change no bit of a gradient.",
            "polyloom.methods.silu.config:MemoryConfig",
            "polyloom.methods.silu.study:run_memory",
        ),
        Verb(
            "advise",
            "Say for a model and a batch how many bytes each form saves and what it costs in time here.",
            "polyloom.methods.silu.config:AdviseConfig",
            "polyloom.methods.silu.study:run_advise",
        ),
        Verb(
            "study",
            "Run the activation lab: paired seeds, tuned learning rates, intervals and corrected tests.",
            "polyloom.methods.silu.config:SiluStudyConfig",
            "polyloom.methods.silu.lab:run_study",
        ),
    ),
    order=20,
    equations=(
        Equation("f = x s, s = sigmoid(x)", "SiLU, also Swish with beta = 1", f"{_ACTIVATIONS}:silu"),
        Equation("f' = s (1 + x (1 - s))", "derivative; as an activation: dSiLU", f"{_METHOD}:silu_derivative"),
        Equation("f'' = s (1 - s) (2 + x (1 - 2 s))", "second derivative", f"{_METHOD}:silu_second_derivative"),
        Equation("x* = -(1 + W(1/e)), f(x*) = 1 + x*", "the minimum, by Lambert's W", f"{_METHOD}:silu_minimum"),
        Equation("f_beta = x sigmoid(beta x)", "Swish with a beta that can be learned", f"{_ACTIVATIONS}:swish"),
        Equation("df_beta/dbeta = x^2 s (1 - s)", "gradient of Swish in beta", f"{_METHOD}:swish_beta_derivative"),
        Equation("L = max |f'|, max |f''|", "Lipschitz constants of f and f'", f"{_SHEET}:facts"),
        Equation("E f, E f^2, E f'^2 for x ~ N(0, 1)", "moments by Gauss-Hermite", f"{_METHOD}:gaussian_moments"),
        Equation("1 / sqrt(E f^2)", "gain that keeps the second moment at x ~ N(0, 1)", f"{_METHOD}:init_gain"),
        Equation("V(q) = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2", "mean-field variance map", f"{_METHOD}:variance_map"),
        Equation("chi = sigma_w^2 E f'^2 = 1", "edge of chaos", f"{_METHOD}:edge_of_chaos"),
        Equation("xi = -1 / log chi", "depth scale of correlations", f"{_METHOD}:depth_scale"),
        Equation("(f(x Wg) * (x Wu)) Wd", "the gated block: SwiGLU, GEGLU, ReGLU", f"{_SWIGLU}:GatedMLP"),
        Equation("ffn = 2/3 of the ungated one", "inner width at equal parameters", f"{_SWIGLU}:fair_hidden_size"),
        Equation(
            "dg = dh u s (1 + g (1 - s)), du = dh a", "backward of form A (saves g, u)", f"{_SWIGLU}:swiglu_product"
        ),
        Equation("dh = dy Wd, dWd = dy^T (a u)", "backward of form B (down inside)", f"{_SWIGLU}:swiglu_down"),
    ),
    tour=TourStep(verb="study", cpu_seconds=50),
    report="polyloom.methods.silu.report:figures",
)
