"""What is true in the world: territories, currencies, languages, cities and regions, real (CLDR) or invented.

Containment is the table of the United Nations' M49 standard, which CLDR names but Babel does not carry; everything
else is read from `babel.core.get_global`. Entries whose status is disputed are left out by default (`CONTESTED`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from babel.core import get_global

from polyloom.core.seeding import python_random

CONTESTED = frozenset({"TW", "EH", "PS", "XK", "HK", "MO"})
CONTESTED_ZONES = frozenset({"Europe/Simferopol", "Asia/Famagusta", "Asia/Gaza", "Asia/Hebron", "Africa/El_Aaiun"})
CONTINENTS = {"150": "Europe", "142": "Asia", "002": "Africa", "019": "Americas", "009": "Oceania"}
_M49 = """
155 150 AT BE CH DE FR LI LU MC NL
154 150 DK EE FI GB IE IS LT LV NO SE
151 150 BG BY CZ HU MD PL RO RU SK UA
039 150 AD AL BA ES GR HR IT ME MK MT PT RS SI SM XK
030 142 CN HK JP KP KR MN MO TW
034 142 AF BD BT IN IR LK MV NP PK
035 142 BN ID KH LA MM MY PH SG TH TL VN
145 142 AE AM AZ BH CY GE IL IQ JO KW LB OM PS QA SA SY TR YE
143 142 KG KZ TJ TM UZ
015 002 DZ EG EH LY MA SD TN
014 002 BI DJ ER ET KE KM MG MW MU MZ RW SC SO SS TZ UG ZM ZW
018 002 BW LS NA SZ ZA
011 002 BF BJ CI CV GH GM GN GW LR ML MR NE NG SL SN TG
017 002 AO CD CF CG CM GA GQ ST TD
005 019 AR BO BR CL CO EC GY PE PY SR UY VE
013 019 BZ CR GT HN MX NI PA SV
021 019 CA US
029 019 AG BB BS CU DM DO GD HT JM KN LC TT VC
053 009 AU NZ
054 009 FJ PG SB VU
057 009 FM KI MH NR PW
061 009 TO TV WS
"""
# Zones that are not named after a city, or whose name in a template language is also a territory's or holds a list
# separator.
NOT_CITIES = frozenset(
    [
        "America/Indiana/Indianapolis",
        "America/Indiana/Knox",
        "America/Indiana/Marengo",
        "America/Indiana/Petersburg",
        "America/Indiana/Tell_City",
        "America/Indiana/Vevay",
        "America/Indiana/Vincennes",
        "America/Indiana/Winamac",
        "America/Kentucky/Louisville",
        "America/Kentucky/Monticello",
        "America/North_Dakota/Beulah",
        "America/North_Dakota/Center",
        "America/North_Dakota/New_Salem",
        "Europe/Andorra",
        "America/Barbados",
        "Asia/Bahrain",
        "Asia/Brunei",
        "America/Belize",
        "America/Costa_Rica",
        "Atlantic/Cape_Verde",
        "Africa/Djibouti",
        "America/Dominica",
        "Pacific/Fiji",
        "America/Grenada",
        "America/Guatemala",
        "America/Guyana",
        "America/Jamaica",
        "Asia/Kuwait",
        "America/St_Lucia",
        "Europe/Luxembourg",
        "Europe/Monaco",
        "Europe/Malta",
        "Indian/Mauritius",
        "Indian/Maldives",
        "Pacific/Nauru",
        "America/Panama",
        "Pacific/Palau",
        "Asia/Qatar",
        "Asia/Singapore",
        "Europe/San_Marino",
        "America/El_Salvador",
        "Indian/Comoro",
        "Atlantic/Canary",
        "Africa/Tripoli",
        "Africa/Tunis",
        "Africa/Algiers",
        "America/Mexico_City",
        "America/Antigua",
        "America/St_Kitts",
        "America/St_Vincent",
        "Atlantic/Azores",
        "Atlantic/Madeira",
        "Pacific/Galapagos",
        "Pacific/Easter",
        "Pacific/Chatham",
        "Antarctica/Macquarie",
        "Australia/Lindeman",
        "Australia/Lord_Howe",
    ]
)


def containment() -> dict[str, tuple[str, str]]:
    """Return territory -> (M49 sub-region, continent)."""
    table: dict[str, tuple[str, str]] = {}
    for line in _M49.split("\n"):
        if line:
            region, continent, *territories = line.split()
            table.update(dict.fromkeys(territories, (region, continent)))
    return table


@dataclass(frozen=True, slots=True)
class Fact:
    """One true statement.

    Attributes:
        relation: a Wikidata property: P38 currency, P37 official language, P17 country of a city, P361 sub-region,
            P30 continent.
        subject: the code of a territory (of a city for P17).
        object: the code of what it is related to.
    """

    relation: str
    subject: str
    object: str


@dataclass(frozen=True, slots=True)
class Tender:
    """One period in which a territory used a currency; an absent date is unknown (start) or still running (end)."""

    currency: str
    start: tuple[int, int, int] | None
    end: tuple[int, int, int] | None


@dataclass(frozen=True)
class Facts:
    """All facts of one world; dictionaries keep the order of the sorted codes."""

    currency: Mapping[str, str]
    languages: Mapping[str, tuple[str, ...]]
    region: Mapping[str, str]
    continent: Mapping[str, str]
    cities: Mapping[str, tuple[str, ...]]
    history: Mapping[str, tuple[Tender, ...]]
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    several_tenders: frozenset[str] = frozenset()

    @functools.cached_property
    def territories(self) -> tuple[str, ...]:
        """All territory codes, sorted."""
        return tuple(sorted(self.region))

    @functools.cached_property
    def country(self) -> dict[str, str]:
        """City code -> territory code."""
        return {city: territory for territory, cities in self.cities.items() for city in cities}

    @functools.cached_property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Sub-region code -> its territories, sorted."""
        result: dict[str, list[str]] = {}
        for territory in self.territories:
            result.setdefault(self.region[territory], []).append(territory)
        return {region: tuple(codes) for region, codes in sorted(result.items())}

    @functools.cached_property
    def continent_of_region(self) -> dict[str, str]:
        """Sub-region code -> continent code."""
        return {self.region[code]: self.continent[code] for code in self.territories}

    @functools.cached_property
    def currencies(self) -> tuple[str, ...]:
        """Codes of the currencies in use, sorted."""
        return tuple(sorted(set(self.currency.values())))

    @functools.cached_property
    def official(self) -> tuple[str, ...]:
        """Codes of the official languages, sorted."""
        return tuple(sorted({code for codes in self.languages.values() for code in codes}))

    def all(self) -> Iterator[Fact]:
        """Yield every current fact: the order is fixed."""
        for code in self.territories:
            if code in self.currency:
                yield Fact("P38", code, self.currency[code])
            for language in self.languages.get(code, ()):
                yield Fact("P37", code, language)
            yield Fact("P361", code, self.region[code])
            yield Fact("P30", code, self.continent[code])
            for city in self.cities.get(code, ()):
                yield Fact("P17", city, code)

    def replaced(self) -> Iterator[tuple[str, str, str]]:
        """Yield (territory, old currency, the currency that replaced it): P1365 and its inverse P1366."""
        for code, tenders in self.history.items():
            for old, new in itertools.pairwise(tenders):
                yield code, old.currency, new.currency


def _tenders(territory: str) -> list[tuple[str, Tender, bool]]:
    entries = get_global("territory_currencies").get(territory, [])
    return [(code, Tender(code, start, end), bool(tender)) for code, start, end, tender in entries]


def _history(territory: str) -> tuple[Tender, ...]:
    """Return the dated tenders in order of their start; no two with the same code or start."""
    dated = [t for code, t, legal in _tenders(territory) if legal and t.start]
    dated.sort(key=lambda t: t.start or (0, 0, 0))
    kept: list[Tender] = []
    for tender in dated:
        if tender.currency not in {k.currency for k in kept} and (not kept or kept[-1].start != tender.start):
            kept.append(tender)
    return tuple(kept)


@functools.cache
def real_facts(exclude: frozenset[str] = CONTESTED) -> Facts:
    """Read the true facts.

    Args:
        exclude: territory codes to leave out.
    """
    table = {code: value for code, value in sorted(containment().items()) if code not in exclude}
    currency: dict[str, str] = {}
    languages: dict[str, tuple[str, ...]] = {}
    several = set()
    for code in table:
        now = [name for name, tender, legal in _tenders(code) if legal and tender.end is None]
        if len(now) > 1:
            several.add(code)
        elif now:
            currency[code] = now[0]
        spoken = get_global("territory_languages").get(code, {})
        official = [
            name.split("_")[0]
            for name, entry in sorted(spoken.items(), key=lambda item: (-item[1]["population_percent"], item[0]))
            if entry["official_status"] in ("official", "de_facto_official")
        ]
        languages[code] = tuple(dict.fromkeys(official))
    zones: dict[str, list[str]] = {}
    left_out = NOT_CITIES if not exclude else NOT_CITIES | CONTESTED_ZONES
    for zone, territory in sorted(get_global("zone_territories").items()):
        if territory in table and zone not in left_out:
            zones.setdefault(territory, []).append(zone)
    return Facts(
        currency=currency,
        languages=languages,
        region={code: value[0] for code, value in table.items()},
        continent={code: value[1] for code, value in table.items()},
        cities={code: tuple(cities) for code, cities in sorted(zones.items())},
        history={code: history for code in table if (history := _history(code))},
        several_tenders=frozenset(several),
    )


def restrict(facts: Facts, currencies: frozenset[str], languages: frozenset[str]) -> Facts:
    """Keep the facts whose currency and language can be named.

    Args:
        facts: all facts.
        currencies: the currency codes that every language of the world names, each by a name of its own.
        languages: the same for language codes.
    """
    history = {
        code: kept
        for code, tenders in facts.history.items()
        if (kept := tuple(t for t in tenders if t.currency in currencies))
    }
    return dataclasses.replace(
        facts,
        currency={code: name for code, name in facts.currency.items() if name in currencies},
        languages={code: tuple(name for name in names if name in languages) for code, names in facts.languages.items()},
        history=history,
    )


_CONSONANTS = "bdfgkmnrstz"
_VOWELS = "aiu"


def _invented_name(rng: random.Random, taken: set[str]) -> str:
    while True:
        name = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3))
        if name not in taken:
            taken.add(name)
            return name


@functools.cache
def invented_facts(seed: int = 0, num_territories: int = 120) -> Facts:
    """Draw a world of made-up names with the same relations, so that knowledge can be planted, withheld and tested.

    Args:
        seed: another seed gives another world.
        num_territories: how many territories it has.

    Returns:
        Facts whose `names[kind][code]` are Latin syllables; `write_in_script` says them in other scripts.
    """
    rng = python_random(seed, "invented facts")
    taken: set[str] = set()
    regions = [f"R{i:02d}" for i in range(max(2, num_territories // 10))]
    continents = [f"K{i}" for i in range(3)]
    codes = {
        "territory": [f"T{i:03d}" for i in range(num_territories)],
        "currency": [f"C{i:03d}" for i in range(num_territories)],
        "language": [f"L{i:03d}" for i in range(max(2, num_territories // 2))],
        "region": regions + continents,
        "city": [f"X{i:03d}" for i in range(3 * num_territories)],
    }
    names = {
        kind: {code: _invented_name(rng, taken).capitalize() for code in members} for kind, members in codes.items()
    }
    continent_of = {region: continents[i % len(continents)] for i, region in enumerate(regions)}
    region: dict[str, str] = {}
    currency: dict[str, str] = {}
    languages: dict[str, tuple[str, ...]] = {}
    cities: dict[str, tuple[str, ...]] = {}
    history: dict[str, tuple[Tender, ...]] = {}
    for i, code in enumerate(codes["territory"]):
        region[code] = regions[i % len(regions)]
        # A third of the territories share the currency of an earlier one, as neighbours with one currency do.
        shared = i > 3 and rng.random() < 1 / 3
        new = currency[codes["territory"][i - len(regions)]] if shared and i >= len(regions) else codes["currency"][i]
        currency[code] = new
        languages[code] = tuple(dict.fromkeys(rng.choice(codes["language"]) for _ in range(rng.choice((1, 1, 2)))))
        cities[code] = tuple(codes["city"][3 * i : 3 * i + rng.choice((1, 2, 3))])
        start = (rng.randint(1960, 2005), rng.randint(1, 12), rng.randint(1, 28))
        old = codes["currency"][(i * 7 + 3) % num_territories]
        earlier = (Tender(old, (start[0] - rng.randint(10, 60), 1, 1), start),) if old != new else ()
        history[code] = (*earlier, Tender(new, start, None))
    return Facts(
        currency=currency,
        languages=languages,
        region=region,
        continent={code: continent_of[value] for code, value in region.items()},
        cities=cities,
        history=history,
        names=names,
    )


def _table(consonants: Sequence[str], vowels: Sequence[str]) -> dict[str, str]:
    return {
        c + v: left + right
        for c, left in zip(_CONSONANTS, consonants, strict=True)
        for v, right in zip(_VOWELS, vowels, strict=True)
    }


def _syllables(rows: str) -> dict[str, str]:
    return dict(zip((c + v for c in _CONSONANTS for v in _VOWELS), rows.split(), strict=True))


@functools.cache
def _script_table(script: str) -> dict[str, str]:
    if script == "cyrillic":
        return _table("бдфгкмнрстз", "аиу")
    if script == "greek":
        return _table("βδφγκμνρστζ", ("α", "ι", "ου"))
    if script == "arabic":
        return _table("بدفغكمنرستز", "ايو")
    if script == "persian":
        return _table("بدفگکمنرستز", "ایو")
    if script == "devanagari":
        return _table("बदफगकमनरसतज", ("\u093e", "\u093f", "\u0941"))
    if script == "kana":
        return _syllables(
            "バ ビ ブ ダ ディ ドゥ ファ フィ フ ガ ギ グ カ キ ク マ ミ ム "
            "ナ ニ ヌ ラ リ ル サ シ ス タ ティ トゥ ザ ジ ズ"
        )
    if script == "hangul":
        leads = (7, 3, 17, 0, 15, 6, 2, 5, 9, 16, 12)
        return _table_of_hangul(leads)
    return _syllables(
        "巴 比 布 达 迪 杜 法 菲 福 加 吉 古 卡 基 库 马 米 穆 纳 尼 努 拉 里 鲁 萨 西 苏 塔 蒂 图 扎 济 祖"
    )


def _table_of_hangul(leads: Sequence[int]) -> dict[str, str]:
    vowels = (0, 20, 13)
    return {
        c + v: chr(0xAC00 + (lead * 21 + vowel) * 28)
        for c, lead in zip(_CONSONANTS, leads, strict=True)
        for v, vowel in zip(_VOWELS, vowels, strict=True)
    }


SCRIPTS = {
    "ru": "cyrillic",
    "uk": "cyrillic",
    "el": "greek",
    "ar": "arabic",
    "fa": "persian",
    "hi": "devanagari",
    "ja": "kana",
    "ko": "hangul",
    "zh": "han",
}


def write_in_script(name: str, language: str) -> str:
    """Write an invented name in the script of a language, syllable by syllable; one to one, so that it can be read
    back."""
    script = SCRIPTS.get(language)
    if script is None:
        return name
    table = _script_table(script)
    lower = name.lower()
    written = "".join(table[lower[i : i + 2]] for i in range(0, len(lower), 2))
    return written.capitalize() if script in ("cyrillic", "greek") else written
