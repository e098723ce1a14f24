"""Senses of a dictionary's line and their labels, by hand."""

from __future__ import annotations

import pytest

from polyloom.data.senses import labelled_senses, labels_of


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("Hund {m}, Köter {m} /ˈkøːtɐ/ [pejorative]", [("Hund", ()), ("Köter", ("pejorative",))]),
        ("[Swiss German] Juchart {m} {f}; Morgen", [("Juchart", ("Swiss German",)), ("Morgen", ())]),
        (
            "manejar [Latin America, colloquial], conducir",
            [("manejar", ("Latin America", "colloquial")), ("conducir", ())],
        ),
        ("Wort, dated: Vokabel", [("Wort", ()), ("Vokabel", ("dated",))]),
        ("Gans {f} [1], Gänserich {m} [\u2642]", [("Gans", ()), ("Gänserich", ())]),
        ("地図 /ちず, chizu/, 地圖 [traditional]", [("地図", ()), ("地圖", ("traditional",))]),
        ("-bar, H[2]O", [("H[2]O", ())]),
        ("", []),
    ],
)
def test_senses_have_their_own_labels(line: str, wanted: list[tuple[str, tuple[str, ...]]]) -> None:
    assert list(labelled_senses(line)) == wanted


def test_labels_are_words() -> None:
    assert labels_of("Austria; rare, 2, \u2642") == ("Austria", "rare")
    assert labels_of("") == ()
