"""The arms of a comparison: what each adds to the base, and the controls. Arms share seeds, batches and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from polyloom.core.errors import UserError, closest
from polyloom.core.seeding import python_random
from polyloom.data.records import UPOS, Sentence
from polyloom.methods.transfer.config import TransferTrainConfig
from polyloom.methods.transfer.lexicon import read_weights
from polyloom.methods.transfer.models import Syntax
from polyloom.methods.transfer.sequences import Heads, Targets, gold_heads
from polyloom.methods.transfer.switching import SwitchPlan, paper_plan

Lexical = Literal["none", "dynamic", "all", "static", "mixed"]
Trees = Literal["none", "gold", "random", "chain"]


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        says: what it is, for tables.
        lexical: no switching, drawn anew every epoch (`all`: of every sentence), the paper's static rule,
            or vectors mixed with those of the translations.
        trees: what the graph is given; relations come with gold trees alone.
        edges: false leaves each node alone (delta = 0): parts of speech without trees.
        upos: false leaves parts of speech out: trees alone.
        translated: train on machine translations as well.
        mixup: pull each text and its translation together by mixing their states.
    """

    says: str
    lexical: Lexical = "none"
    trees: Trees = "none"
    edges: bool = True
    upos: bool = True
    translated: bool = False
    mixup: bool = False


ARMS = {
    "base": Arm("source labels alone"),
    "lex": Arm("code-switching", "dynamic"),
    "syn": Arm("graph over trees", trees="gold"),
    "lexsyn": Arm("code-switching and graph", "dynamic", "gold"),
    "lex-static": Arm("control: switched once, as in the paper", "static"),
    "lex-all": Arm("control: every sentence switched", "all"),
    "syn-upos": Arm("ablation: parts of speech, no edges", trees="gold", edges=False),
    "syn-tree": Arm("ablation: trees, no parts of speech", trees="gold", upos=False),
    "syn-random": Arm("control: random trees", trees="random"),
    "syn-chain": Arm("control: each word on the one before", trees="chain"),
    "lex-mix": Arm("words mixed with their translations", "mixed"),
    "lexsyn-random": Arm("control: code-switching and random trees", "dynamic", "random"),
    "translate": Arm("translate-train", translated=True),
    "xmixup": Arm("translate-train with mixed states", translated=True, mixup=True),
}


def find_arms(names: Sequence[str]) -> dict[str, Arm]:
    """Return the arms by name.

    Raises:
        UserError: an unknown or repeated name.
    """
    for name in names:
        if name not in ARMS:
            raise UserError(f"there is no arm {name!r}.", where="--arms", hint=closest(name, ARMS))
    if len(set(names)) < len(names):
        raise UserError("an arm is named twice.", where="--arms")
    return {name: ARMS[name] for name in names}


def syntax_of(arm: Arm, config: TransferTrainConfig) -> Syntax | None:
    """Return the adaptor's settings of an arm; None where it has no graph."""
    if arm.trees == "none":
        return None
    # Relations belong to a tree: without its edges, or beside random ones, they would tell most of what it says.
    has_relations = config.deprel and arm.edges and arm.trees == "gold"
    return Syntax(
        num_layers=config.graph_layers,
        num_heads=config.graph_heads,
        num_slices=config.syntactic_heads,
        radius=config.radius if arm.edges else 0,
        upos=config.upos and arm.upos,
        deprel=has_relations,
        fuse=config.fuse,
        layers=None if config.syntactic_layers is None else tuple(config.syntactic_layers),
        zero=config.zero_init,
    )


def plan_of(arm: Arm, config: TransferTrainConfig, targets: Targets) -> SwitchPlan | None:
    """Return how an arm switches words; None where it does not."""
    if arm.lexical == "none":
        return None
    if arm.lexical == "static":
        return paper_plan(config.rate, entities=not targets.labels)
    return SwitchPlan(
        rate=config.rate,
        mode=config.switching,
        per=config.per,
        choose=config.choose,
        among=config.among,
        mix=1.0 if arm.lexical == "all" else config.mix,
        sync_pairs=config.sync_pairs,
        protect=tuple(config.protect),
        weights=read_weights(config.weights, {spec.partition("=")[0] for spec in config.weights}),
    )


def heads_of(arm: Arm, seed: int) -> Heads | None:
    """Return where an arm's trees come from."""
    sources: dict[Trees, Heads | None] = {
        "none": None,
        "gold": gold_heads,
        "random": random_heads(seed),
        "chain": lambda sentence, name: range(len(sentence.words)),
    }
    return sources[arm.trees]


def random_heads(seed: int) -> Callable[[Sentence, str], Sequence[int]]:
    """Return a function that draws a random tree for each sentence, the same whenever it is asked."""

    def draw(sentence: Sentence, name: str) -> Sequence[int]:
        rng = python_random(seed, "random tree", name)
        order = list(range(1, len(sentence.words) + 1))
        rng.shuffle(order)
        heads = [0] * len(order)
        for place, word in enumerate(order[1:], start=1):
            heads[word - 1] = order[rng.randrange(place)]
        return heads

    return draw


def check_leak(arms: Sequence[Arm], config: TransferTrainConfig, targets: Targets) -> None:
    """Refuse parts of speech as input where they are the task.

    Raises:
        UserError: the tags to learn are the universal parts of speech, and an arm's graph is given them.
    """
    leaks = any(arm.trees != "none" and arm.upos for arm in arms) and config.upos
    if leaks and targets.tags and set(targets.tags) <= {*UPOS, "_"}:
        hint = "Add --no-upos, or take arms without them."
        raise UserError(
            "the task is part-of-speech tagging and the graph is given the answers.", where="--arms", hint=hint
        )
