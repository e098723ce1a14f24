"""A matcher without torch: numpy weights with their scorer, and ONNX; the proof that they say the same."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyloom.core.errors import MissingExtra, UserError
from polyloom.core.files import read_bytes, replace_atomically, write_bytes
from polyloom.core.result import Artifact, Result, Scalar
from polyloom.methods.match import scorer as scorer_module
from polyloom.methods.match.config import ExportConfig
from polyloom.methods.match.data import Pair, world_pairs
from polyloom.methods.match.folder import load
from polyloom.methods.match.models import Matcher
from polyloom.methods.match.scorer import Scorer
from polyloom.methods.match.sentence_module import export_sentence_transformers
from polyloom.methods.match.tokens import Vocabulary
from polyloom.methods.match.training import Trained, stack
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

NUMPY_BASES, NUMPY_BLOCKS = ("bag", "gru", "cnn"), ("none", "fa", "sfa")


def export_numpy(trained: Trained, folder: Path, *, int8: bool = False) -> Path:
    """Write `matcher.npz` and, beside it, the scorer that reads it.

    Args:
        trained: a matcher of a base and block that the scorer knows.
        folder: where to.
        int8: keep word vectors as 8-bit numbers with a scale for each row.

    Returns:
        The path of the weights.

    Raises:
        UserError: a base, block or vocabulary that the scorer does not know.
    """
    shape = trained.model.shape
    if shape.base not in NUMPY_BASES or shape.block not in NUMPY_BLOCKS:
        what = f"the numpy scorer does not know base {shape.base!r} with block {shape.block!r}."
        known = f"It knows {', '.join(NUMPY_BASES)} with {', '.join(NUMPY_BLOCKS)}."
        raise UserError(what, hint=known)
    if not isinstance(trained.vocabulary, Vocabulary):
        raise UserError("the numpy scorer cuts words itself, not subwords.")
    arrays = {name: value.numpy() for name, value in trained.model.state_dict().items()}
    if int8:
        rows = arrays["embedding.weight"]
        scale = np.maximum(np.abs(rows).max(1), 1e-12) / 127
        arrays["embedding.weight"] = np.round(rows / scale[:, None]).astype(np.int8)
        arrays["embedding.scale"] = scale.astype(np.float32)
    meta = {
        "base": shape.base,
        "block": shape.block,
        "num_branches": shape.num_branches,
        "max_length": shape.max_length,
        "symmetric": shape.symmetric,
        "pooling": shape.pooling,
        "loss": trained.loss,
        "classes": trained.classes,
        "scale": list(trained.scale),
        "temperature": trained.temperature,
        "known": trained.vocabulary.known,
        "lowercase": trained.vocabulary.lowercase,
        "num_buckets": trained.vocabulary.num_buckets,
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta, ensure_ascii=False).encode(), dtype=np.uint8)
    path = folder / "matcher.npz"
    with replace_atomically(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    write_bytes(folder / "scorer.py", read_bytes(Path(scorer_module.__file__)))
    return path


class _Judge(nn.Module):
    """A matcher over two separate id matrices, as ONNX takes them."""

    def __init__(self, model: Matcher) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Judge pairs of [pairs, tokens] each (padded to one width with 0)."""
        output: Tensor = self.model(torch.cat([first, second]))
        return output


def export_onnx(trained: Trained, folder: Path) -> Path:
    """Write `matcher.onnx`: inputs `first` and `second` [pairs, tokens] of word numbers, padded with 0 to one width.

    Any number of pairs and tokens may be given to it.

    Raises:
        MissingExtra: without onnx.
        UserError: base `encoder`, which looks its states up.
    """
    if trained.model.shape.base == "encoder":
        what = "the frozen encoder is a model of its own and is not written into the matcher's ONNX file."
        raise UserError(what, hint="Export the encoder by its own tools, or train another --base.")
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnx", extra="search") from error
    path = folder / "matcher.onnx"
    example = torch.tensor([[1, 2, 3, 0], [2, 1, 1, 1], [3, 1, 0, 0]])
    open_sizes = {name: {0: "pairs", 1: "tokens"} for name in ("first", "second")} | {"output": {0: "pairs"}}
    with warnings.catch_warnings(), replace_atomically(path) as temporary:
        # The newer exporter (dynamo) fixes the number of pairs wherever a recurrence or a swap of halves stands.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Judge(trained.model).eval(),
            (example, example.flip(0)),
            str(temporary),
            input_names=["first", "second"],
            output_names=["output"],
            dynamic_axes=open_sizes,
            opset_version=17,
            dynamo=False,
        )
    return path


def onnx_error(trained: Trained, path: Path, pairs: list[Pair]) -> float:
    """Return the largest difference of ONNX and torch over some pairs.

    Raises:
        MissingExtra: without onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", extra="search") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = trained.number([text for pair in pairs for text in (pair.first, pair.second)])
    both = stack(ids).view(len(pairs), 2, -1)
    given = {"first": both[:, 0].contiguous().numpy(), "second": both[:, 1].contiguous().numpy()}
    with torch.inference_mode():
        wanted = trained.model(torch.cat([both[:, 0], both[:, 1]])).numpy()
    return float(np.abs(session.run(None, given)[0] - wanted).max())


def numpy_error(trained: Trained, exported: Scorer, pairs: list[Pair]) -> float:
    """Return the largest difference of the numpy scorer and torch over some pairs."""
    wanted = trained.predict(pairs).reshape(len(pairs), -1)
    given = np.asarray([np.ravel(exported.score(pair.first, pair.second)) for pair in pairs])
    return float(np.abs(given - wanted).max())


def latency_milliseconds(exported: Scorer, texts: list[str]) -> dict[str, float]:
    """Return the median CPU milliseconds to encode one text and to judge one pair, after a warm-up."""
    taken: dict[str, list[float]] = {"encode": [], "score": []}
    for i, text in enumerate(texts):
        for name in taken:
            started = time.process_time()
            if name == "encode":
                exported.encode(text)
            else:
                exported.score(text, texts[i - 1])
            taken[name].append(1000 * (time.process_time() - started))
    return {name: median(values[len(values) // 10 :]) for name, values in taken.items()}


def run_export(config: ExportConfig, run: Run) -> Result:
    """Write a matcher for numpy alone and, if asked, as ONNX (compared with torch) and for sentence-transformers.

    Args:
        config: matcher and folder.
        run: takes the files where no folder is named.

    Returns:
        Files' sizes, the largest difference to torch, the latency of one text.

    Raises:
        UserError: a matcher that the scorer does not know.
        MissingExtra: ONNX without its libraries.
    """
    pin_threads()
    trained = load(Path(config.model))
    folder = Path(config.output) if config.output else run.artifact("matcher.npz").parent
    pairs = world_pairs(max(32, config.rounds), "test", seed=config.seed).items
    scalars: dict[str, Scalar] = {}
    verdicts = []
    known = trained.model.shape.base in NUMPY_BASES and trained.model.shape.block in NUMPY_BLOCKS
    if known or not (config.onnx or config.sentence_transformers):
        path = export_numpy(trained, folder, int8=config.int8)
        exported = Scorer(str(path))
        latency = latency_milliseconds(exported, [pair.first for pair in pairs])
        scalars |= {
            "numpy_error": Scalar(value=numpy_error(trained, exported, pairs[:32])),
            "numpy_bytes": Scalar(value=path.stat().st_size, unit="B"),
            "encode_milliseconds": Scalar(value=latency["encode"], unit="CPU ms"),
            "score_milliseconds": Scalar(value=latency["score"], unit="CPU ms"),
        }
        verdicts.append(
            f"numpy alone judges a pair in {latency['score']:.3f} CPU-ms and differs from torch by at most "
            f"{scalars['numpy_error'].value:.1e}."
        )
    if config.onnx:
        path = export_onnx(trained, folder)
        scalars["onnx_error"] = Scalar(value=onnx_error(trained, path, pairs[:32]))
        scalars["onnx_bytes"] = Scalar(value=path.stat().st_size, unit="B")
        verdicts.append(f"ONNX differs from torch by at most {scalars['onnx_error'].value:.1e}.")
    if config.sentence_transformers:
        place = export_sentence_transformers(trained, folder / "sentence-transformers")
        verdicts.append(f"SentenceTransformer({str(place)!r}, trust_remote_code=True) opens it beside Polyloom.")
    artifacts = {} if config.output else _artifacts(folder)
    return run.result(
        scalars=scalars,
        artifacts=artifacts,
        verdicts=verdicts,
        limitations=["8-bit word vectors are part of the difference where --int8 is given."] if config.int8 else [],
    )


def _artifacts(folder: Path) -> dict[str, Artifact]:
    kinds: dict[str, tuple[str, str]] = {
        "matcher.npz": ("application/zip", "The weights for numpy."),
        "scorer.py": ("text/x-python", "The scorer that reads them."),
        "matcher.onnx": ("application/octet-stream", "The matcher as ONNX."),
        "sentence-transformers": ("inode/directory", "The folder for sentence-transformers."),
    }
    found: dict[str, Any] = {name: kind for name, kind in kinds.items() if (folder / name).exists()}
    return {
        name: Artifact(path=f"artifacts/{name}", media_type=media_type, description=description)
        for name, (media_type, description) in found.items()
    }
