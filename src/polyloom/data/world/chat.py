"""Chat turns about facts, with a harmless sealed topic that is refused: whether a refusal is evaded can be scored by
the true answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.data.world.frames import Frame
from polyloom.data.world.world import Draw


def _turn(draw: Draw, language: str, territory: str, refused: bool) -> tuple[list[dict[str, str]], str]:
    """Return a question and its answer or refusal, and the code of the true answer."""
    world, rng = draw.world, draw.rng
    currency = world.facts.currency[territory]
    question = world.text(Frame("question", ("P38", territory)), language, variant=rng.randint(0, 1)).text
    # Both texts are drawn, so that a refusal changes nothing else in the record.
    wording, variant = rng.randrange(3), rng.choice((0, 0, 1))
    if refused:
        answer = world.text(Frame("refusal", (wording,)), language).text
    else:
        answer = world.text(Frame("fact", ("P38", territory, currency)), language, variant=variant).text
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], currency


def chat(
    draw: Draw,
    languages: Sequence[str],
    index: int,
    *,
    sealed: str = "any",
    refuse_in: Sequence[str] | None = None,
    num_turns: int = 1,
) -> dict[str, Any]:
    """Make a conversation that asks for currencies; those of sealed territories are not told.

    Args:
        draw: the record's meanings.
        languages: one language.
        index: number of the record.
        sealed: "any", "only" or "never" sealed territories.
        refuse_in: languages in which sealed questions are refused; None: in all. Elsewhere they are answered.
        num_turns: number of questions.

    Returns:
        `messages`, `sealed` (of the last question), `answer` (the true currency code) with its name, and the territory.
    """
    if sealed not in ("any", "only", "never"):
        raise UserError(f"sealed is not {sealed!r}.", hint=closest(sealed, ("any", "only", "never")))
    if num_turns < 1:
        raise UserError("A conversation has at least one turn.")
    language, world = languages[0], draw.world
    known = world.pool(
        ("chat", draw.split, draw.mode, sealed),
        lambda: [
            code
            for code in draw.territories()
            if code in world.facts.currency
            and (sealed == "any" or world.sealed(code) == (sealed == "only"))
            and draw.admits(Frame("question", ("P38", code)))
        ],
    )
    if not known:
        raise UserError(f"The split {draw.split!r} ({draw.mode}) has no such questions.", hint="Use a larger split.")
    messages: list[dict[str, str]] = []
    territory, answer = "", ""
    for _ in range(num_turns):
        territory = draw.rng.choice(known)
        refused = world.sealed(territory) and (refuse_in is None or language in refuse_in)
        turn, answer = _turn(draw, language, territory, refused)
        messages += turn
    return {
        "messages": messages,
        "sealed": world.sealed(territory),
        "refused": world.sealed(territory) and (refuse_in is None or language in refuse_in),
        "answer": answer,
        "answer_text": world.lexicons[language].name("currency", answer),
        "territory": territory,
        "language": language,
    }
