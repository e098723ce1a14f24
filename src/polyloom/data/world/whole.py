"""A world as a whole: text for a language model, sizes and fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from polyloom.core.errors import UserError
from polyloom.data.world.documents import RELATIONS
from polyloom.data.world.frames import SPLITS
from polyloom.data.world.locale_data import versions
from polyloom.data.world.tasks import TASKS, supply
from polyloom.data.world.world import World, check_languages, has_sentences


def text_corpus(
    languages: Sequence[str],
    num_characters: int,
    seed: int = 0,
    split: str = "train",
    *,
    split_mode: str = "random",
    facts: Literal["real", "invented"] = "real",
) -> dict[str, list[str]]:
    """Make documents for training a language model.

    Args:
        languages: template languages.
        num_characters: at least so many characters for each language.
        seed: of the world.
        split: "train", "valid", "test"; "all" for text that holds all facts.
        split_mode: as `records`.
        facts: "real" or "invented".

    Returns:
        Language -> documents; the documents of one number say the same in all languages.
    """
    if num_characters < 1:
        raise UserError(f"The number of characters is {num_characters}.", hint="Ask for at least 1.")
    check_languages(languages)
    world = World(languages, seed, facts)
    task = TASKS["text"]
    corpus: dict[str, list[str]] = {}
    for language in world.languages:
        made: list[str] = []
        size = 0
        while size < num_characters:
            made.append(task.make(world, (language,), len(made), split, split_mode)["text"])
            size += len(made[-1])
        corpus[language] = made
    return corpus


def fingerprint(world: World, languages: Sequence[str] | None = None, n: int = 3) -> str:
    """Return a sha256 of the first records of every task and of the versions: equal worlds have equal fingerprints.

    Args:
        world: the world.
        languages: two of its languages; the first two by default.
        n: records per task.
    """
    codes = tuple(languages or world.languages[:2])
    digest = hashlib.sha256(repr((versions(), world.seed, world.kind_of_facts, world.languages)).encode())
    for task in TASKS.values():
        chosen = codes[:2] if task.num_languages[0] == 2 else codes[:1]
        if len(chosen) < task.num_languages[0] or (
            task.needs_sentences and not all(has_sentences(code) for code in chosen)
        ):
            continue
        for i in range(n):
            digest.update(json.dumps(task.make(world, chosen, i), ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()


def describe(world: World) -> dict[str, Any]:
    """Return what a world holds: versions, languages, facts by relation, sizes of its tasks and its fingerprint."""
    facts = world.facts
    by_relation: dict[str, int] = {}
    for fact in facts.all():
        by_relation[f"{fact.relation} {RELATIONS[fact.relation]}"] = (
            by_relation.get(f"{fact.relation} {RELATIONS[fact.relation]}", 0) + 1
        )
    by_relation["P1366 replaced by"] = sum(1 for _ in facts.replaced())
    by_relation["P580 start time"] = sum(len(tenders) for tenders in facts.history.values())
    days = 36_525
    spoken = [code for code in world.languages if has_sentences(code)]
    sizes = {name: supply(world, name, spoken) for name in TASKS}
    return {
        **versions(),
        "facts": world.kind_of_facts,
        "seed": world.seed,
        "languages": list(world.languages),
        "territories": len(facts.territories),
        "cities": len(facts.country),
        "currencies": len(facts.currencies),
        "official_languages": len(facts.official),
        "units": len(world.units),
        "facts_by_relation": by_relation,
        "facts_total": sum(by_relation.values()),
        "distinct_frames": {
            "date": days,
            "time": 1440,
            "relative": 1200,
            "number": 9_999_999,
            "percent": 100,
            "compact": 1998,
            "money": 999 * len(facts.currencies),
            "measure": 999 * len(world.units),
            "fact": sum(1 for _ in facts.all()),
        },
        "distinct_records": sizes,
        "splits": list(SPLITS),
        "fingerprint": fingerprint(world),
    }
