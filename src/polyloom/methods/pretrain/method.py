"""The recipe's mathematics: shapes and their counts, muP's classes and folding, coordinate slopes, FLOPs and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from polyloom.core.errors import UserError

TensorClass = Literal["input", "matrix", "vector", "output"]
FFN_MULTIPLE = 64
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BRANCH_ENDS = ("o_proj", "down_proj")
ZERO_AT_START = ("q_proj", "lm_head")


@dataclass(frozen=True)
class Shape:
    """A decoder: pre-RMSNorm, SwiGLU, rotary positions, no biases, untied embeddings, every head with its own keys.

    `width` is the hidden size d, `ffn` the inner width, `vocab` the rows of each embedding.
    """

    layers: int
    heads: int
    width: int
    ffn: int
    vocab: int

    def __post_init__(self) -> None:
        """Refuse a width that the heads do not divide."""
        if self.width % self.heads:
            raise UserError(
                f"the width {self.width} is not a multiple of the {self.heads} heads.", hint="Change one of them."
            )

    @property
    def head_size(self) -> int:
        """d / heads."""
        return self.width // self.heads


def feed_forward(width: int) -> int:
    """Return 64 floor(8d/3 / 64), the inner width of all of the family's models (21824 at 8192)."""
    return FFN_MULTIPLE * (8 * width // 3 // FFN_MULTIPLE)


def decoder(width: int, layers: int, head_size: int, vocab: int) -> Shape:
    """Return the shape of a width by the family's rules: heads of one size, `feed_forward`.

    Raises:
        UserError: the width is not a multiple of the head size.
    """
    if width % head_size:
        raise UserError(f"the width {width} is not a multiple of the head size {head_size}.", hint="Change one.")
    return Shape(layers, width // head_size, width, feed_forward(width), vocab)


def count_parameters(shape: Shape) -> int:
    """Return L (4 d^2 + 3 d ffn + 2 d) + d + 2 V d."""
    d = shape.width
    return shape.layers * (4 * d * d + 3 * d * shape.ffn + 2 * d) + d + 2 * shape.vocab * d


def count_non_embedding(shape: Shape) -> int:
    """Return the parameters without the input and output embeddings."""
    return count_parameters(shape) - 2 * shape.vocab * shape.width


def training_flops_per_token(shape: Shape, window_tokens: int) -> int:
    """Return FLOPs of forward and backward a token: 6 for each matrix weight that is multiplied, and attention.

    The input embedding is a look-up and is not counted. Attention costs 2 T d for scores and as much for values in
    the forward pass of each layer (half of it where a kernel skips masked pairs, which is not assumed), 3 times that
    with the backward pass.

    Args:
        shape: the decoder.
        window_tokens: T, the context.
    """
    matrices = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.ffn) + shape.vocab * shape.width
    return 6 * matrices + 12 * shape.layers * shape.width * window_tokens


@dataclass(frozen=True)
class Scaling:
    """The hyper-parameters that muP moves from a narrow model to a wide one, and the base that they are stated at.

    Attributes:
        lr: of vector-like tensors (embeddings, norms, head).
        matrix_lr: of matrix-like tensors at the base width.
        std: of the embeddings at initialisation.
        matrix_std: of the matrices at the base width.
        input_mult: factor on the embedding's output.
        output_mult: factor on the logits, before 1/m.
        base_width: width at which m = 1; 0 takes every width as its own base: the standard parametrisation.
        base_depth: layers at which the depth rule has factor 1; 0 leaves depth alone.
        depth_power: a of the depth rule, 0.5 to 1.
        weight_decay: on matrices and embeddings, at the base width.
        eps: AdamW's epsilon at the base width.
        muon: matrices are stepped by Muon: `matrix_lr` is Muon's.
        zero_start: the head and the query projections begin at 0, which removes the transient of the first logits.
    """

    lr: float = 4e-3
    matrix_lr: float = 4e-3
    std: float = 0.05
    matrix_std: float = 0.05
    input_mult: float = 1.0
    output_mult: float = 1.0
    base_width: int = 0
    base_depth: int = 0
    depth_power: float = 1.0
    weight_decay: float = 0.0
    eps: float = 1e-8
    zero_start: bool = True
    muon: bool = False

    def m(self, width: int) -> float:
        """Return the width multiplier m = width / base_width (arXiv 2203.03466)."""
        return width / self.base_width if self.base_width else 1.0

    def r(self, layers: int) -> float:
        """Return the depth multiplier r = layers / base_depth (arXiv 2505.01618)."""
        return layers / self.base_depth if self.base_depth else 1.0

    def standard(self) -> Scaling:
        """Return the same settings in the standard parametrisation, which changes nothing with width or depth."""
        return replace(self, base_width=0, base_depth=0)


@dataclass(frozen=True)
class Rule:
    """What one tensor of the folded (plain Llama) form gets.

    Attributes:
        std: of its initial values; 0 where it begins at zero, and for gains, which begin at 1.
        lr: AdamW's learning rate.
        weight_decay: as given to torch's AdamW, which multiplies it by the learning rate.
        eps: AdamW's epsilon.
        fold: c, the forward factor that is inside the tensor: W' = c W.
    """

    std: float
    lr: float
    weight_decay: float
    eps: float
    fold: float


def tensor_class(name: str) -> TensorClass:
    """Return muP's class of a tensor by its Hugging Face name.

    Raises:
        UserError: a tensor that the family does not have (a bias, an adapter).
    """
    parts = name.split(".")
    if parts[-1] != "weight" or len(parts) < 2:
        raise UserError(f"muP has no class for the tensor {name!r}.", hint="The recipe's models have no biases.")
    module = parts[-2]
    if module in MATRICES:
        return "matrix"
    if module == "embed_tokens":
        return "input"
    if module == "lm_head":
        return "output"
    if module.endswith("norm"):
        return "vector"
    raise UserError(f"muP has no class for the tensor {name!r}.", hint="Train a Llama-form model.")


def forward_factor(name: str, shape: Shape, scaling: Scaling) -> float:
    """Return the factor on a tensor's output in the forward pass, which folding puts into the tensor.

    input_mult for the embedding, output_mult / m for the head, r^-a for the last matrix of each branch, else 1.
    """
    kind = tensor_class(name)
    if kind == "input":
        return scaling.input_mult
    if kind == "output":
        return scaling.output_mult / scaling.m(shape.width)
    if name.split(".")[-2] in BRANCH_ENDS:
        return float(scaling.r(shape.layers) ** -scaling.depth_power)
    return 1.0


def native_rule(name: str, shape: Shape, scaling: Scaling) -> Rule:
    """Return a tensor's rule in the form with multipliers: muP's table for Adam (arXiv 2203.03466, table 8).

    Matrices: std / sqrt(m), lr / m, weight decay m (so that lr times decay stays), eps / m. Embedding, head and norms
    keep theirs; norms are not decayed. Under Muon a matrix keeps lr and decay: its update has the
    spectral norm that its shape asks for at any width (arXiv 2310.17813). Depth (arXiv 2505.01618): hidden lr r^(a-1),
    eps r^-a.
    """
    kind = tensor_class(name)
    m, r, a = scaling.m(shape.width), scaling.r(shape.layers), scaling.depth_power
    zero = scaling.zero_start and name.split(".")[-2] in ZERO_AT_START
    if kind == "matrix":
        std = 0.0 if zero else scaling.matrix_std / m**0.5
        if scaling.muon:
            return Rule(std, scaling.matrix_lr, scaling.weight_decay, scaling.eps, 1.0)
        depth = r ** (a - 1)
        return Rule(std, scaling.matrix_lr / m * depth, scaling.weight_decay * m / depth, scaling.eps / m * r**-a, 1.0)
    if kind == "vector":
        in_block = name.split(".")[-2] != "norm"
        return Rule(0.0, scaling.lr * (r ** (a - 1) if in_block else 1.0), 0.0, scaling.eps, 1.0)
    return Rule(0.0 if zero else scaling.std, scaling.lr, scaling.weight_decay, scaling.eps, 1.0)


def fold(rule: Rule, c: float) -> Rule:
    """Move a forward factor c into the tensor: W' = c W, std c, lr c, eps / c, weight decay / c.

    AdamW then takes the same path in function space; a global gradient norm is the same only when the folded
    gradients, which are 1/c times as large, are multiplied by c again (`Rule.fold`).
    """
    return Rule(rule.std * c, rule.lr * c, rule.weight_decay / c, rule.eps / c, rule.fold * c)


def folded_rule(name: str, shape: Shape, scaling: Scaling) -> Rule:
    """Return a tensor's rule in the plain Llama form, whose forward pass has no multipliers."""
    return fold(native_rule(name, shape, scaling), forward_factor(name, shape, scaling))


def slope(widths: Sequence[int], values: Sequence[float]) -> float:
    """Return the least-squares slope of log values against log widths; 0 where every value is 0."""
    if not any(values):
        return 0.0
    x, y = np.log(np.asarray(widths, dtype=float)), np.log(np.asarray(values, dtype=float))
    return float(np.polyfit(x, y, 1)[0])


def parabola_minimum(x: Float[np.ndarray, " 3"], y: Float[np.ndarray, " 3"]) -> float:
    """Return where the parabola through three points is lowest; the lowest point where it opens downwards.

    Args:
        x: positions, such as log2 of learning rates.
        y: losses.
    """
    curvature, gradient, _ = np.polyfit(x, y, 2)
    if curvature <= 0:
        return float(x[int(np.argmin(y))])
    return float(np.clip(-gradient / (2 * curvature), x.min(), x.max()))
