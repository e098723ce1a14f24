"""City names: CLDR keeps them with the time zones, and only where they differ from the zone's id."""

from __future__ import annotations

import functools

from babel.core import get_global

from polyloom.data.world.locale_data import section

# Older ids of zones that were renamed, not merged.
_RENAMED = frozenset(
    {
        "Africa/Asmera",
        "America/Coral_Harbour",
        "Asia/Calcutta",
        "Asia/Katmandu",
        "Asia/Rangoon",
        "Asia/Saigon",
        "Europe/Kiev",
        "Pacific/Ponape",
        "Pacific/Truk",
        "Pacific/Enderbury",
    }
)


@functools.cache
def _older_zones() -> dict[str, tuple[str, ...]]:
    """Return zone -> its older ids: CLDR stores city names under the older ones (Asia/Calcutta)."""
    older: dict[str, list[str]] = {}
    for alias, zone in sorted(get_global("zone_aliases").items()):
        older.setdefault(zone, []).append(alias)
    return {zone: tuple(aliases) for zone, aliases in older.items()}


def city_names(language: str) -> dict[str, str]:
    """Return zone -> name of its city: CLDR's, else the last part of the id."""
    stored = section(language, "time_zones")
    names = {}
    for zone in get_global("zone_territories"):
        last = zone.rsplit("/", 1)[-1]
        # An older id that names another place (a merged zone) is not this city's name.
        ids = [zone, *(old for old in _older_zones().get(zone, ()) if old.endswith("/" + last) or old in _RENAMED)]
        found = [entry["city"] for key in ids if isinstance(entry := stored.get(key), dict) and "city" in entry]
        names[zone] = str(found[0]) if found else last.replace("_", " ")
    return names
