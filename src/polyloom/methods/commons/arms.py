"""Experimental arms: what the community is told, who is in it, and whether it talks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polyloom.core.errors import UserError, closest
from polyloom.methods.commons.engine import View
from polyloom.methods.commons.scenario import Words

Rules = Literal["paper", "reference"]
NEWCOMER_MONTH = 3
NEWCOMER_MONTHS = 15


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: its name.
        summary: what it does.
        talk: whether the agents talk after the harvest.
        report: whether everybody learns what each one obtained.
        note: template of a note that everyone has in mind each month, if any.
        trait: trait of the last agent, if any (template name).
        newcomer: the last agent joins in month 4, for a horizon of 15; the others care about the community.
        leader: an elected leader opens the talk.
        fined: whoever exceeds f_a pays double the excess, which metrics of gain do not subtract.
    """

    name: str
    summary: str
    talk: bool = True
    report: bool = True
    note: str | None = None
    trait: str | None = None
    newcomer: bool = False
    leader: bool = False
    fined: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("baseline", "catches are revealed and everybody talks"),
        Arm("report-only", "catches are revealed, nobody talks", talk=False),
        Arm("no-talk", "nothing is revealed, nobody talks", talk=False, report=False),
        Arm("universalization", "the consequence if all exceed f_a, with the number", note="universal"),
        Arm("principle", "the thought of universalization without a number", note="principle"),
        Arm("number", "the number f_a alone, without a reason", note="number"),
        Arm("expert", "an expert recommends f_a", note="expert"),
        Arm("norms", "a rule of at most f_a with a fine", note="norm", fined=True),
        Arm("leader", "an elected leader opens the talk", leader=True),
        Arm("newcomer", "four who care, and from month 4 a fifth who does not", trait="newcomer", newcomer=True),
        Arm("adversary", "the last agent speaks moderately and takes all", trait="adversary"),
    )
}


def read_arm(name: str) -> Arm:
    """Return the arm called `name`.

    Raises:
        UserError: there is none.
    """
    if name not in ARMS:
        raise UserError(f"there is no arm {name!r}.", where="--arm", hint=closest(name, ARMS))
    return ARMS[name]


def hint(view: View, rules: Rules, joins: bool) -> int:
    """Return the number that notes show: f_a.

    Under `reference` rules an arm with a newcomer shows a fifth of the threshold in month 1 and a quarter from then
    on, whoever is present.
    """
    if rules == "paper" or not joins:
        return view.threshold
    return view.resource.per_agent(view.stock, 5 if view.month == 0 else 4)


def note_text(arm: Arm, words: Words, name: str, number: int) -> str | None:
    """Return the note that an agent of this arm has in mind this month; grammatical for 0 too."""
    if arm.note is None:
        return None
    key = "universal_zero" if arm.note == "universal" and number == 0 else arm.note
    return words.say(key, name=name, limit=number)
