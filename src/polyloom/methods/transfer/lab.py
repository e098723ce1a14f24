"""The verb `study`: four arms on the embedded world, two target languages without labels."""

from __future__ import annotations

from typing import NamedTuple

from polyloom.core.errors import UserError
from polyloom.core.result import Result
from polyloom.methods.transfer.config import TransferStudyConfig, TransferTrainConfig
from polyloom.methods.transfer.data import world_data
from polyloom.methods.transfer.proofs import proofs
from polyloom.methods.transfer.study import compare
from polyloom.runs.folder import Run

SOURCE = "en"
NUM_TARGETS = 2
FOUR_ARMS = ["base", "lex", "syn", "lexsyn"]
CONTROLS = ["lex-static", "syn-upos", "syn-tree", "syn-random"]


class Profile(NamedTuple):
    """Sizes of a study: seeds, labelled sentences, test sentences of each language, epochs, and the arms."""

    num_seeds: int
    num_train: int
    num_test: int
    epochs: int
    arms: list[str]


PROFILES = {
    "quick": Profile(3, 240, 200, 6, FOUR_ARMS),
    "full": Profile(12, 600, 400, 8, FOUR_ARMS + CONTROLS),
}


def run_study(config: TransferStudyConfig, run: Run) -> Result:
    """Train base, lex, syn and lexsyn on sentences of the embedded world and score them on two other languages.

    Args:
        config: languages, task, seeds and profile.
        run: the run to store steps in.

    Returns:
        Scores, what each part added, and what the profile cannot decide.

    Raises:
        UserError: no target language.
    """
    targets = [code for code in config.languages if code != SOURCE][:NUM_TARGETS]
    if not targets:
        raise UserError("the study needs a target language other than English.", where="--languages")
    profile = PROFILES[config.profile]
    num_seeds = config.num_seeds or profile.num_seeds
    settings = TransferTrainConfig(
        seed=config.seed,
        language=SOURCE,
        task=config.task,
        arms=profile.arms,
        num_seeds=num_seeds,
        vocabulary=1500,
        among="covered",
        graph_layers=2,
        graph_heads=2,
        epochs=profile.epochs,
        learning_rate=2e-3,
        dropout=0.0,
        save="none",
        device="cpu",
    )
    data = world_data(SOURCE, targets, config.seed, profile.num_train, profile.num_test)
    notes = [
        f"{profile.num_train} labelled English sentences and an encoder of two layers made on the spot: the "
        "differences say what dictionary and trees add here, not how well any of the arms could do.",
    ]
    if config.profile == "quick":
        notes.append(
            f"{num_seeds} seeds are too few to decide by seeds; the quick profile shows directions with their "
            "intervals over sentences. --profile full decides, and runs the controls: parts of speech alone, trees "
            "alone, random trees, and words switched once."
        )
    return compare(settings, data, run, notes, proofs())
