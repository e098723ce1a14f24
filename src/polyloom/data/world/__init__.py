"""The embedded world: exact, aligned, labelled multilingual data made on the spot from Unicode CLDR, which Babel
carries.

Names, dates, numbers, plural forms and facts are CLDR's own; the sentences around them are templates. Every report
made with it prints `NOTICE`.
"""

from __future__ import annotations

from polyloom.data.world.facts import CONTESTED, Fact, Facts
from polyloom.data.world.formats import export
from polyloom.data.world.frames import NAME_KINDS, PHRASE_KINDS, SPLITS, Frame
from polyloom.data.world.instructions import Instruction, instruction_tasks, relatedness, wordings
from polyloom.data.world.render import Text
from polyloom.data.world.tasks import TASKS, Task, find_task, records, supply
from polyloom.data.world.templates import LANGUAGES, PHRASE_LANGUAGES
from polyloom.data.world.whole import describe, fingerprint, text_corpus
from polyloom.data.world.world import NOTICE, SPLIT_MODES, Draw, World

__all__ = [
    "CONTESTED",
    "LANGUAGES",
    "NAME_KINDS",
    "NOTICE",
    "PHRASE_KINDS",
    "PHRASE_LANGUAGES",
    "SPLITS",
    "SPLIT_MODES",
    "TASKS",
    "Draw",
    "Fact",
    "Facts",
    "Frame",
    "Instruction",
    "Task",
    "Text",
    "World",
    "describe",
    "export",
    "find_task",
    "fingerprint",
    "instruction_tasks",
    "records",
    "relatedness",
    "supply",
    "text_corpus",
    "wordings",
]
