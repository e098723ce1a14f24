"""Which languages gain: by kinship, by script, and by how far their word order is from the source's."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polyloom.core.result import Scalar, Table
from polyloom.data.records import Example
from polyloom.data.treebanks import universal
from polyloom.methods.transfer.data import Data
from polyloom.methods.transfer.protocol import Outcome
from polyloom.methods.transfer.results import as_scalar, gain_over_sentences, slug
from polyloom.metrics.statistics import Interval, spearman

# Family, branch and codes, as Glottolog (glottolog.org) groups the languages of XTREME, UD and common dictionaries.
_FAMILIES = """
Indo-European/Germanic: af da de en fo fy is lb nb nl nn no sv yi
Indo-European/Romance: ca es fr gl it la oc pt ro
Indo-European/Slavic: be bg bs cs hr mk pl ru sk sl sr uk
Indo-European/Baltic: lt lv
Indo-European/Celtic: br cy ga gd gv
Indo-European/Indic: as bn gu hi mr ne or pa sa sd si ur
Indo-European/Iranian: fa ku ps tg
Indo-European/Hellenic: el
Indo-European/Albanian: sq
Indo-European/Armenian: hy
Uralic/Finnic: et fi
Uralic/Ugric: hu
Turkic/Turkic: az kk ky tr tt ug uz
Mongolic/Mongolic: mn
Koreanic/Koreanic: ko
Japonic/Japonic: ja
Sino-Tibetan/Sinitic: cmn wuu yue zh
Sino-Tibetan/Burmese: my
Sino-Tibetan/Tibetic: bo
Afro-Asiatic/Semitic: am ar he mt ti
Afro-Asiatic/Chadic: ha
Afro-Asiatic/Cushitic: om so
Dravidian/Dravidian: kn ml ta te
Austronesian/Malayo-Polynesian: ceb id jv mg ms su tl
Austroasiatic/Vietic: vi
Austroasiatic/Khmer: km
Tai-Kadai/Tai: lo th
Niger-Congo/Bantu: lg ln ny rw sn st sw xh zu
Niger-Congo/Volta-Niger: ig yo
Niger-Congo/Atlantic: ff wo
Kartvelian/Kartvelian: ka
Basque/Basque: eu
"""
FAMILIES: dict[str, tuple[str, str]] = {
    code: (family, branch)
    for names, _, codes in (line.partition(": ") for line in _FAMILIES.strip().split("\n"))
    for family, _, branch in [names.partition("/")]
    for code in codes.split()
}
LEAST_DEPENDANTS = 5
LEAST_LANGUAGES = 4
Cells = list[str | int | float | bool | None]


def family_of(code: str) -> tuple[str, str]:
    """Return a language's family and branch, empty where they are not known; a region behind the code is not read."""
    return FAMILIES.get(code.replace("_", "-").partition("-")[0].lower(), ("", ""))


def kinship(source: str, target: str) -> str:
    """Return how two languages are related: `same branch`, `same family`, `other family`, or `unknown family`."""
    first, second = family_of(source), family_of(target)
    if not (first[0] and second[0]):
        return "unknown family"
    return "same branch" if first == second else "same family" if first[0] == second[0] else "other family"


def script_of(examples: Iterable[Example]) -> str:
    """Return the script of most letters, by the first word of their Unicode names: LATIN, CJK, DEVANAGARI."""
    letters = Counter(char for one in examples for part in one.sentences for char in "".join(part.words))
    names: Counter[str] = Counter()
    for char, number in letters.items():
        if char.isalpha():
            names[unicodedata.name(char, "unknown").partition(" ")[0]] += number
    return names.most_common(1)[0][0] if names else "none"


class Order(NamedTuple):
    """How often dependants of a relation stand before their heads: relation -> (before, all)."""

    counts: dict[str, tuple[int, int]]

    def share(self, relation: str) -> float:
        """Return the share that stands before."""
        before, number = self.counts[relation]
        return before / number


def order_of(examples: Iterable[Example]) -> Order:
    """Count for every relation but punctuation how many dependants stand before their heads."""
    before: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for example in examples:
        for one in example.sentences:
            for place, (head, relation) in enumerate(zip(one.heads, one.deprels, strict=False), start=1):
                if head and relation != "punct":
                    before[universal(relation)] += place < head
                    number[universal(relation)] += 1
    return Order({name: (before[name], count) for name, count in number.items() if count >= LEAST_DEPENDANTS})


def order_distance(first: Order, second: Order) -> float | None:
    """Return how differently two languages order words, 0 (alike) to 1; None where they share no relation.

    The mean over relations of the difference between the shares of dependants that stand before their heads, each
    relation weighted by the mean of its frequencies in both languages.
    """
    shared = first.counts.keys() & second.counts.keys()
    totals = [sum(one.counts[name][1] for name in shared) for one in (first, second)]
    if not shared:
        return None
    weights = {
        name: sum(o.counts[name][1] / t for o, t in zip((first, second), totals, strict=True)) for name in shared
    }
    gaps = sum(weight * abs(first.share(name) - second.share(name)) for name, weight in sorted(weights.items()))
    return gaps / sum(weights.values())


class Language(NamedTuple):
    """A target language seen from the source: kinship, `same script` or `other script`, its script, word order."""

    kin: str
    writing: str
    script: str
    distance: float | None


def describe(data: Data, codes: Sequence[str]) -> dict[str, Language]:
    """Return what target languages have in common with the source."""
    own_script, own_order = script_of(data.train), order_of(data.train)
    found = {}
    for code in codes:
        script = script_of(data.tests[code])
        writing = "same script" if script == own_script else "other script"
        distance = order_distance(own_order, order_of(data.tests[code]))
        found[code] = Language(kinship(data.source, code), writing, script, distance)
    return found


def language_report(
    groups: Mapping[str, Sequence[Outcome]], data: Data, metric: str, seed: int
) -> tuple[dict[str, Table], dict[str, Scalar]]:
    """Report each arm's gain over base by target language, and by groups of languages that are alike.

    Args:
        groups: outcomes by arm.
        data: tests and training data, with trees where the order of words is to be compared.
        metric: the score.
        seed: of resampling.

    Returns:
        A table of languages and one of groups, a scalar `ARM_gain_GROUP_METRIC` for each, and the rank correlation of
        gain and distance of word order over at least four languages.
    """
    codes = [code for code in data.tests if code != data.source]
    arms = [arm for arm in groups if arm != "base"]
    if "base" not in groups or not arms or not codes:
        return {}, {}

    def gain(arm: str, of: Sequence[str]) -> Interval:
        return gain_over_sentences(groups[arm], groups["base"], of, metric, seed)

    languages = describe(data, codes)
    alone = {(arm, code): gain(arm, [code]).value for arm in arms for code in codes}
    members: dict[str, list[str]] = {}
    for name in ("kin", "writing"):
        for code, one in languages.items():
            members.setdefault(getattr(one, name), []).append(code)
    gains = {(name, arm): gain(arm, own) for name, own in members.items() for arm in arms}
    scalars = {
        f"{slug(arm)}_gain_{slug(name)}_{slug(metric)}": as_scalar(g, "points") for (name, arm), g in gains.items()
    }
    far = {code: one.distance for code, one in languages.items() if one.distance is not None}
    if len(far) >= LEAST_LANGUAGES:
        for arm in arms:
            rank, _ = spearman(list(far.values()), [alone[arm, code] for code in far])
            scalars[f"{slug(arm)}_gain_word_order_rank_correlation"] = Scalar(value=None if np.isnan(rank) else rank)
    rows: list[Cells] = [
        [code, *family_of(code), one.kin, one.script, one.distance, *(alone[arm, code] for arm in arms)]
        for code, one in languages.items()
    ]
    group_rows: list[Cells] = [
        [name, ", ".join(members[name]), arm, one.value, one.low, one.high] for (name, arm), one in gains.items()
    ]
    columns = ["language", "family", "branch", f"to {data.source}", "script", "word-order distance", *arms]
    title = f"{metric}: points over base by language"
    tables = {"languages": Table(columns=columns, rows=rows, title=title)}
    columns = ["languages", "which", "arm", "points", "low", "high"]
    title = f"{metric}: points over base by kinship and script, with intervals over sentences"
    tables["language_groups"] = Table(columns=columns, rows=group_rows, title=title)
    return tables, scalars
