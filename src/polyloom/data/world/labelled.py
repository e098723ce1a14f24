"""Labelled sentences: token tags, topics, language identification, intents, trees, and semantic parses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyloom.core.errors import UserError, closest
from polyloom.data.world.frames import Frame
from polyloom.data.world.lexicon import NO_RELATIVE, Piece
from polyloom.data.world.monolingual import any_frame, history_frames, journey_of
from polyloom.data.world.render import Text, bio, line
from polyloom.data.world.templates import ROWS
from polyloom.data.world.trees import tree
from polyloom.data.world.world import Draw, has_sentences

Record = dict[str, Any]
COARSE = {
    "LOC": "LOC",
    "CUR": "MISC",
    "LANG": "MISC",
    "UNIT": "MISC",
    "NUM": "NUM",
    "DAY": "DATE",
    "MONTH": "DATE",
    "YEAR": "DATE",
    "WEEKDAY": "DATE",
    "HOUR": "DATE",
    "MINUTE": "DATE",
    "SECOND": "DATE",
    "PERIOD": "DATE",
}
FINE_TAGS = ("WEEKDAY", "DAY", "MONTH", "YEAR", "NUM", "CUR", "UNIT", "LOC", "LANG")
TOPICS = (
    "date",
    "time",
    "interval",
    "relative",
    "number",
    "percent",
    "money",
    "measure",
    "list",
    "fact",
    "diary",
)


def tagging(draw: Draw, languages: Sequence[str], index: int, *, coarse: bool = False) -> Record:
    """Tag the tokens of one sentence; all languages share the tags.

    Args:
        draw: the record's meanings.
        languages: one language.
        index: number of the record.
        coarse: LOC, MISC, DATE, NUM in place of the nine fine tags.
    """
    language = languages[0]
    kind = draw.rng.choice(("diary", "fact", "diary", "fact", "date", "money", "measure", "interval"))
    if not has_sentences(language):
        kind = draw.rng.choice(("date", "money", "measure", "interval", "list"))
    frame = any_frame(draw, kind)
    said = draw.world.text(frame, language, variant=draw.rng.randint(0, 1))
    found = draw.world.tokens(said, language)
    tags = bio(said, found)
    if coarse:
        tags = [tag if tag == "O" else tag[:2] + COARSE[tag[2:]] for tag in tags]
        tags = ["I-" + tag[2:] if _continues(tags, i, "DATE") else tag for i, tag in enumerate(tags)]
    return {"tokens": [token.text for token in found], "ner_tags": tags, "language": language, "meaning": frame.iso()}


def _continues(tags: Sequence[str], i: int, tag: str) -> bool:
    return i > 0 and tags[i][2:] == tag and tags[i - 1][2:] == tag


def topic(draw: Draw, languages: Sequence[str], index: int) -> Record:
    """Classify a phrase or sentence by its kind, one of `TOPICS`."""
    language = languages[0]
    kinds = [
        kind
        for kind in TOPICS
        if (has_sentences(language) or kind not in ("fact", "diary"))
        and (language not in NO_RELATIVE or kind != "relative")
    ]
    kind = kinds[draw.rng.randrange(len(kinds))]
    frame = any_frame(draw, kind)
    return {"text": draw.world.text(frame, language).text, "label": kind, "language": language}


def language_id(draw: Draw, languages: Sequence[str], index: int) -> Record:
    """Name the language of a date, a list or a quantity: the languages that were given are the classes."""
    language = draw.rng.choice(list(languages))
    frame = any_frame(draw, draw.rng.choice(("date", "list", "interval", "measure")))
    return {"text": draw.world.text(frame, language).text, "label": language}


_TREE_KINDS = ("fact", "fact", "diary", "question", "summary", "history")


def trees(draw: Draw, languages: Sequence[str], index: int) -> Record:
    """Make a sentence with its dependency tree."""
    language, world = languages[0], draw.world
    kind = draw.rng.choice(_TREE_KINDS)
    if kind == "summary":
        frame = journey_of(draw, 3)[0]
    elif kind == "question":
        frame = draw.until(lambda: Frame("question", ("P38", draw.rng.choice(draw.territories()))))
    elif kind == "history":
        frame = history_frame(draw)
    else:
        frame = any_frame(draw, kind)
    said = world.text(frame, language, variant=draw.rng.randint(0, 1))
    nodes = tree(said)
    return {
        "sent_id": f"{language}-{draw.split}-{index}",
        "text": said.text,
        "language": language,
        "tokens": [node.form for node in nodes],
        "upos": [node.upos for node in nodes],
        "heads": [node.head for node in nodes],
        "deprels": [node.deprel for node in nodes],
        "space_after": [node.space_after for node in nodes],
        "meaning": frame.iso(),
    }


def history_frame(draw: Draw) -> Frame:
    """Draw a period in which a territory used a currency."""

    frames = draw.world.pool(
        ("history", draw.split, draw.mode),
        lambda: [frame for code in draw.territories() for frame in history_frames(draw.world, code)],
    )

    def sample() -> Frame:
        frame: Frame = draw.rng.choice(frames)
        return frame

    return draw.until(sample)


# ---- (f) semantic parses

PARSE_KINDS = ("date", "time", "interval", "relative", "number", "percent", "money", "measure", "list", "name")


def parse(draw: Draw, languages: Sequence[str], index: int, *, kinds: Sequence[str] | None = None) -> Record:
    """Pair a phrase with its canonical form, in the columns of TOPv2."""
    language = languages[0]
    if kinds is not None and not kinds:
        raise UserError("The list of kinds is empty.", hint=f"Choose from: {', '.join(PARSE_KINDS)}.")
    usable = [kind for kind in kinds or PARSE_KINDS if kind != "relative" or language not in NO_RELATIVE]
    kind = draw.rng.choice(usable)
    if kind not in PARSE_KINDS:
        raise UserError(f"There is no parse kind {kind!r}.", hint=closest(kind, PARSE_KINDS))
    frame = draw.phrase(kind)
    said = draw.world.text(frame, language).text
    return {"domain": kind, "utterance": said, "semantic_parse": f"{kind.upper()} {frame.iso()}", "language": language}


INTENTS = (
    "GET_CURRENCY",
    "GET_LANGUAGE",
    "GET_REGION",
    "GET_COUNTRY",
    "CREATE_REMINDER",
    "LOG_TRIP",
    "GET_WEEKDAY",
    "CONVERT_MONEY",
)
_ASKED = {"GET_CURRENCY": "P38", "GET_LANGUAGE": "P37", "GET_REGION": "P361"}


def _bracket(intent: str, slots: Sequence[tuple[str, str]]) -> str:
    inner = " ".join(f"[SL:{name} {value} ]" for name, value in slots)
    return f"[IN:{intent} {inner} ]"


def _pieces(draw: Draw, language: str, frame: Frame, style: str = "") -> list[Piece]:
    return draw.world.lexicons[language].phrase(frame, style)


def _request(draw: Draw, language: str, intent: str) -> tuple[Text, list[tuple[str, str]]]:
    world, lexicon = draw.world, draw.world.lexicons[language]
    labels = ROWS[language].labels
    if intent in _ASKED:
        frame = draw.until(lambda: Frame("question", (_ASKED[intent], draw.rng.choice(draw.territories()))))
        return world.text(frame, language, variant=draw.rng.randint(0, 1)), [("TERRITORY", str(frame.args[1]))]
    if intent == "GET_COUNTRY":
        frame = draw.until(lambda: Frame("question", ("P17", draw.city())))
        return world.text(frame, language), [("CITY", str(frame.args[1]))]
    if intent == "LOG_TRIP":
        trip = draw.diary()
        date, city, distance, cost = trip.args
        names = [("DATE", date.iso()), ("CITY", str(city)), ("DISTANCE", distance.iso()), ("COST", cost.iso())]
        return world.text(trip, language), names
    if intent == "CREATE_REMINDER":
        return _reminder(draw, language)
    if intent == "GET_WEEKDAY":
        date = draw.phrase("date")
        return line(lexicon, [(labels.day, _pieces(draw, language, date, "long"))], "question"), [("DATE", date.iso())]
    amount = draw.phrase("money")
    target = draw.rng.choice([code for code in world.facts.currencies if code != amount.args[1]])
    name = Frame("name", ("currency", target))
    said = line(
        lexicon,
        [(labels.cost, _pieces(draw, language, amount)), (labels.currency, _pieces(draw, language, name))],
        "question",
    )
    return said, [("AMOUNT", amount.iso()), ("TARGET_CURRENCY", target)]


def _reminder(draw: Draw, language: str) -> tuple[Text, list[tuple[str, str]]]:
    """Ask for a reminder at a date and time, or after a span of time, perhaps in a place."""
    lexicon, labels = draw.world.lexicons[language], ROWS[language].labels
    if draw.rng.random() < 0.5:
        date, time = draw.phrase("date"), draw.phrase("time")
        parts = [(labels.reminder, _pieces(draw, language, date, "long")), ("", _pieces(draw, language, time))]
        slots = [("DATE", date.iso()), ("TIME", time.iso())]
    else:
        after = draw.until(
            lambda: Frame("relative", (draw.rng.choice(("day", "hour", "week")), draw.rng.randint(1, 60)))
        )
        parts, slots = [(labels.reminder, _pieces(draw, language, after))], [("RELATIVE", after.iso())]
    if draw.rng.random() < 0.5:
        city = draw.city()
        parts.append((labels.arrival, _pieces(draw, language, Frame("name", ("city", city)))))
        slots.append(("DESTINATION", city))
    return line(lexicon, parts), slots


def top(draw: Draw, languages: Sequence[str], index: int) -> Record:
    """Pair a request with its bracketed meaning: 8 intents, 10 slots, in the columns of TOPv2."""
    language = languages[0]
    intent = draw.rng.choice(INTENTS)
    said, slots = _request(draw, language, intent)
    return {
        "domain": intent.split("_", 1)[1].lower(),
        "utterance": said.text,
        "semantic_parse": _bracket(intent, slots),
        "language": language,
    }


def intent(draw: Draw, languages: Sequence[str], index: int) -> Record:
    """Classify a request by its intent, one of `INTENTS`."""
    language = languages[0]
    label = draw.rng.choice(INTENTS)
    return {"text": _request(draw, language, label)[0].text, "label": label, "language": language}
