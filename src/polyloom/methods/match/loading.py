"""From a verb's configuration to pairs and first vectors."""

from __future__ import annotations

from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.methods.match.config import DataConfig, TrainConfig
from polyloom.methods.match.data import Pairs, Reading, read_pairs, split_pairs, world_pairs
from polyloom.methods.match.tokens import Subwords
from polyloom.methods.match.training import Recipe
from polyloom.methods.match.vectors import Initial, make_initial, tokenizer_of


def reading_of(config: DataConfig) -> Reading:
    """Return how the configuration wants files to be read."""
    scale = None
    if config.score_low is not None and config.score_high is not None:
        scale = (config.score_low, config.score_high)
    return Reading(
        config.first_column,
        config.second_column,
        config.label_column,
        config.side,
        config.task,
        scale,
        config.skip_bad,
    )


def load_splits(
    config: DataConfig, num_test: int = 1000, *, valid: str | None = None, test: str | None = None
) -> dict[str, Pairs]:
    """Return the training, validation and test pairs.

    Args:
        config: the data.
        num_test: test pairs of the world; validation takes half of them.
        valid: file of validation pairs.
        test: file of test pairs; one of both alone leaves the other to a split of the data.

    Raises:
        UserError: as `read_pairs`; files whose labels differ in kind.
    """
    if config.data == "world":
        sizes = {"train": config.num_pairs, "valid": num_test // 2, "test": num_test}
        return {
            name: world_pairs(size, name, languages=config.languages, seed=config.seed, hardness=config.hardness)
            for name, size in sizes.items()
        }
    reading = reading_of(config)
    whole = read_pairs(Path(config.data), reading)
    given = {
        name: read_pairs(Path(file), reading) for name, file in (("valid", valid), ("test", test)) if file is not None
    }
    for pairs in given.values():
        if pairs.task != whole.task:
            what = f"holds {pairs.task}, the training file {whole.task}."
            raise UserError(what, where=pairs.items[0].where, hint="Name the labels with --label-column or --task.")
    splits = {"train": whole, **given} if len(given) == 2 else split_pairs(whole, config.seed) | given
    for name in ("train", "valid", "test"):
        if not splits[name].items:
            hint = "Give more pairs, or files with --valid and --test."
            raise UserError(f"no {name} pairs come out of it.", where=config.data, hint=hint)
    return splits


def recipe_of(config: TrainConfig) -> Recipe:
    """Return the configuration's recipe."""
    shared = Recipe.__dataclass_fields__.keys() & type(config).model_fields.keys()
    values = {name: getattr(config, name) for name in shared}
    return Recipe(**{**values, "encoder": config.encoder or ""})


def initial_of(config: TrainConfig, train: Pairs) -> Initial | None:
    """Return the first vectors that the configuration names.

    Raises:
        UserError: base `encoder` without a folder, or files that cannot be read.
    """
    if config.base == "encoder":
        if not config.encoder:
            raise UserError("base encoder needs a model folder.", where="--encoder")
        from polyloom.methods.match.models import FrozenEncoder

        vocabulary = Subwords(tokenizer_of(Path(config.encoder)), specials=True)
        return Initial(FrozenEncoder(config.encoder).width, None, vocabulary, "The encoder is kept frozen.")
    if config.vectors is None:
        return None
    return make_initial(config.vectors, config.vectors_kind, train.texts(), config.width, config.seed)
