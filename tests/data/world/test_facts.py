"""Facts: containment, invented worlds, what is left out."""

import pytest
from babel.core import get_global

from polyloom.data.world import CONTESTED, LANGUAGES, World
from polyloom.data.world.facts import CONTESTED_ZONES, containment, invented_facts, real_facts, write_in_script

PREFIX = {"Africa": "002", "America": "019", "Asia": "142", "Europe": "150", "Pacific": "009", "Australia": "009"}


def test_containment_agrees_with_the_time_zones():
    table = containment()
    assert len(table) >= 164
    differ = set()
    for territory, (_, continent) in table.items():
        zones = [zone for zone, owner in get_global("zone_territories").items() if owner == territory]
        said = {PREFIX[zone.split("/")[0]] for zone in zones if zone.split("/")[0] in PREFIX}
        if said and continent not in said:
            differ.add(territory)
    assert differ <= {"IS", "MV", "TR", "MG", "MU"}


def test_contested_entries_are_left_out_by_default_and_can_be_put_back():
    facts = real_facts()
    assert not CONTESTED & set(facts.territories)
    assert not CONTESTED_ZONES & set(facts.country)
    assert "TW" in real_facts(frozenset()).territories


def test_every_fact_can_be_named_in_every_language():
    world = World(list(LANGUAGES))
    assert sum(1 for _ in world.facts.all()) > 1_000
    for item in world.lexicons.values():
        for fact in world.facts.all():
            kinds = {"P38": "currency", "P37": "language", "P361": "region", "P30": "region", "P17": "territory"}
            item.name("city" if fact.relation == "P17" else "territory", fact.subject)
            item.name(kinds[fact.relation], fact.object)


def test_no_name_is_shared_by_two_codes():
    world = World(list(LANGUAGES))
    pools = {
        "currency": world.facts.currencies,
        "language": world.facts.official,
        "territory": world.facts.territories,
        "city": tuple(world.facts.country),
    }
    for code, item in world.lexicons.items():
        for kind, members in pools.items():
            names = [item.name(kind, member) for member in members]
            assert len(names) == len(set(names)), (code, kind)


def test_currencies_have_one_tender():
    facts = real_facts()
    for code in ("BT", "ZW", "LS", "NA", "PA", "HT"):
        assert code not in facts.currency


def test_history_is_dated_and_ordered():
    for tenders in real_facts().history.values():
        starts = [tender.start for tender in tenders]
        assert starts == sorted(starts)
        assert len({tender.currency for tender in tenders}) == len(tenders)
    germany = real_facts().history["DE"]
    assert [(tender.currency, tender.start) for tender in germany] == [("DEM", (1948, 6, 20)), ("EUR", (1999, 1, 1))]


def test_cities_have_their_own_script():
    world = World(["ru", "ja", "en"])
    assert world.lexicons["ru"].name("city", "Asia/Kolkata") == "Калькутта"
    latin = [code for code in world.facts.country if world.lexicons["ja"].name("city", code).isascii()]
    assert not latin


def test_invented_worlds_share_no_name_with_the_real_one():
    world = World(["en"], facts="invented")
    real = World(["en"])
    invented = {name for names in world.facts.names.values() for name in names.values()}
    assert not invented & {
        name
        for kind in ("territory", "city", "currency", "language")
        for name in real.lexicons["en"].names[kind].values()
    }
    assert len(invented) == sum(len(names) for names in world.facts.names.values())


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_invented_names_can_be_read_back(language):
    facts = invented_facts(1)
    names = [name for members in facts.names.values() for name in members.values()]
    assert len({write_in_script(name, language) for name in names}) == len(names)


def test_another_seed_invents_another_world():
    assert invented_facts(1).names != invented_facts(2).names
    assert invented_facts(1).names == invented_facts.__wrapped__(1).names
