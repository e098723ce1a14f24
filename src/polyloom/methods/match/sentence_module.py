"""A matcher as the one module of a sentence-transformers model: `SentenceTransformer(folder, trust_remote_code=True)`.

sentence-transformers imports this class by the name in the folder's modules.json; it asks for the flag whenever a class
is not its own, though here the class comes from the installed Polyloom and from no file of the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from polyloom.core.errors import UserError
from polyloom.core.files import write_json
from polyloom.methods.match.folder import load, save
from polyloom.methods.match.models import SIAMESE
from polyloom.methods.match.training import Trained, stack

MODULES = "modules.json"


class MatcherModule(nn.Module):
    """From texts to a matcher's vectors; trained further by sentence-transformers, the weights stay the matcher's."""

    def __init__(self, trained: Trained) -> None:
        """Wrap a matcher that has a vector of each text.

        Raises:
            UserError: its base reads both texts together, or is a frozen encoder, which has a folder of its own.
        """
        super().__init__()
        base = trained.model.shape.base
        if base not in SIAMESE or base == "encoder":
            what = f"a matcher of base {base!r} is no model of sentence-transformers."
            raise UserError(what, hint=f"Train one of: {', '.join(name for name in SIAMESE if name != 'encoder')}.")
        self.trained, self.model = trained, trained.model

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Return the numbered texts [texts, tokens], a prompt before each."""
        return {"input_ids": stack(self.trained.number([(prompt or "") + text for text in inputs]))}

    tokenize = preprocess

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add the vectors [texts, size] as `sentence_embedding`."""
        features["sentence_embedding"] = self.model.vectors(features["input_ids"])
        return features

    def get_embedding_dimension(self) -> int:
        """Return the size of a vector."""
        return self.model.vector_size

    get_sentence_embedding_dimension = get_embedding_dimension

    @property
    def max_seq_length(self) -> int:
        """Return how many words of a text are read."""
        return self.model.shape.max_length

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the matcher's own files."""
        save(self.trained, Path(output_path))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> MatcherModule:
        """Read a folder that `export_sentence_transformers` or `save` wrote."""
        return cls(load(Path(model_name_or_path, subfolder)))


def export_sentence_transformers(trained: Trained, folder: Path) -> Path:
    """Write a folder that sentence-transformers opens where Polyloom is installed.

    Args:
        trained: a matcher with a vector of each text.
        folder: where to.

    Raises:
        UserError: as `MatcherModule`.
    """
    MatcherModule(trained).save(str(folder))
    kind = f"{MatcherModule.__module__}.{MatcherModule.__qualname__}"
    write_json(folder / MODULES, [{"idx": 0, "name": "0", "path": "", "type": kind}])
    settings: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", settings)
    return folder
