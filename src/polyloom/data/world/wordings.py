# ruff: noqa: E501
"""The words of the instruction tasks: what kinds are called, the imperatives of each operation, and the frames around them."""

from __future__ import annotations

KINDS = ("date", "time", "interval", "relative", "number", "percent", "money", "measure", "name", "list")
CALLED = {
    "date": "date", "time": "time of day", "interval": "range of dates", "relative": "span of time from now", "number": "number",
    "percent": "percentage", "money": "amount of money", "measure": "quantity", "name": "name", "list": "list", "diary": "travel note",
    "currency": "question about a currency", "language": "question about an official language", "region": "question about a region",
    "country": "question about a city's territory", "city": "city", "weekday": "series of weekdays", "month": "series of months",
}  # fmt: skip

# Operation -> (its kinds, three imperatives). {k} is the kind, {a} and {b} the languages.
OPERATIONS: dict[str, tuple[tuple[str, ...], tuple[str, str, str]]] = {
    "translate": (KINDS, ("translate the {k} from {a} into {b}", "write the {a} {k} in {b}", "say in {b} what the {a} {k} says")),
    "normalise": (
        (*KINDS[:8], "list"),
        ("convert the {a} {k} to its standard code", "write the {a} {k} in canonical form", "give the machine-readable form of the {a} {k}"),
    ),
    "verbalise": (
        (*KINDS[:8], "list"),
        ("write the coded {k} out in {b}", "turn the standard code of a {k} into {b} text", "express the machine-readable {k} in {b}"),
    ),
    "same_meaning": (
        ("date", "money", "measure", "diary"),
        ("decide whether the two {a} texts give the same {k}", "say yes if both {a} texts mean one {k}, otherwise no", "compare the meaning of two {a} texts, each a {k}"),
    ),
    "identify_language": (
        ("date", "interval", "list", "measure", "relative"),
        ("name the language in which the {k} is written", "recognise the language of the {k}", "tell which language the {k} is in"),
    ),
    "extract": (
        ("date", "city", "measure", "money"),
        ("find the {k} in the {a} travel note", "copy the {k} out of the {a} travel note", "extract the {k} from the {a} travel note"),
    ),
    "compare": (
        ("date", "number", "money", "measure"),
        ("choose the later or larger {k} of the two {a} texts", "tell which {a} {k} is greater or later", "pick the greater of two, each a {a} {k}"),
    ),
    "sort": (
        ("date", "number", "measure"),
        ("sort the items, each a {a} {k}, from the smallest or earliest", "put in rising order the items, each a {a} {k}", "order by size or time the items, each a {a} {k}"),
    ),
    "count": (("list",), ("count the items of the {a} {k}", "say how many items the {a} {k} has", "give the number of entries in the {a} {k}")),
    "next_day": (("date",), ("give the day after the {a} {k}", "write the {k} that follows the {a} {k} by one day", "add one day to the {a} {k}")),
    "previous_day": (("date",), ("give the day before the {a} {k}", "write the {k} that comes one day before the {a} {k}", "subtract one day from the {a} {k}")),
    "weekday": (("date",), ("name the weekday of the {a} {k}", "tell on which weekday the {a} {k} falls", "find the day of the week for the {a} {k}")),
    "continue_list": (("weekday", "month"), ("write the next item of the {a} {k}", "continue the {a} {k} by one item", "say what comes next in the {a} {k}")),
    "answer_fact": (
        ("currency", "language", "region", "country"),
        ("answer the {a} {k}", "reply with the name that answers the {a} {k}", "give the short answer to the {a} {k}"),
    ),
    "fill_gap": (
        ("date", "city", "measure", "money"),
        ("give the {k} that was cut out of the {a} travel note, which is told first in code", "fill the gap in the {a} travel note with the coded {k}", "complete the {a} travel note with the {k} given in code"),
    ),
    "classify_kind": (("list",), ("name the kind of meaning of the {a} phrase", "classify what the {a} phrase expresses", "tell what sort of information the {a} phrase gives")),
}  # fmt: skip

OPENINGS = ("{S}.", "Your task is to {s}.", "Given the input below, {s}.", "You are asked to {s}.")
ENDINGS = ("", " Write only the answer.")
