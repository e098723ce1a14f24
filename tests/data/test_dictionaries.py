"""Readers of dictionaries: each format by hand, what is malformed, real files, and round trips of any pairs."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import (
    Dictionary,
    Translation,
    coverage,
    dictd_number,
    language_name,
    read_dictionary,
    segment,
)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def words(dictionary: Dictionary, head: str) -> list[str]:
    return [one.text for one in dictionary.lookup(head)]


@pytest.mark.parametrize(("text", "value"), [("A", 0), ("c", 28), ("c/", 1855), ("BVBC", 348_226), ("", 0)])
def test_dictd_numbers(text: str, value: int) -> None:
    assert dictd_number(text) == value


def test_dictd_numbers_refuse_other_characters() -> None:
    with pytest.raises(ValueError, match="no digit"):
        dictd_number("a=")


def test_muse_takes_blanks_tabs_crlf_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeffdog Hund\r\ndog\tKöter\r\ncat Katze\r\nthree words here\r\n"
    found = read_dictionary(write(tmp_path / "en-de.txt", text))
    assert words(found, "dog") == ["Hund", "Köter"]
    assert words(found, "Cat") == ["Katze"]
    assert (found.num_lines, found.num_malformed, found.malformed) == (4, 1, ("line 4",))


def base64_of(value: int) -> str:
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = ""
    while value or not text:
        value, digit = divmod(value, 64)
        text = digits[digit] + text
    return text


@pytest.mark.parametrize("zipped", [True, False])
def test_dictd_entries_lose_their_marks(tmp_path: Path, zipped: bool) -> None:
    entries = {
        "00databaseinfo": "FreeDict\n",
        "dog": 'dog /dɒɡ/ <n>\n1. [zool.] Hund <masc>, Köter (ugs.)\n   "a dog barks"\n2. Klaue\n'
        "   see: {claw}\n Note: rare\n",
        "cat": "Cat /kæt/ <n>\nKatze <fem>; Kater\nSynonym(s): {kitty}\n",
    }
    body, index = b"", ""
    for head, entry in entries.items():
        data = entry.encode()
        index += f"{head}\t{base64_of(len(body))}\t{base64_of(len(data))}\n"
        body += data
    (tmp_path / "d.index").write_text(index + "broken\t=\t=\n", encoding="utf-8")
    name = "d.dict.dz" if zipped else "d.dict"
    (tmp_path / name).write_bytes(gzip.compress(body) if zipped else body)
    for given_name in ("d.index", name):
        found = read_dictionary(tmp_path / given_name)
        assert words(found, "dog") == ["Hund", "Köter", "Klaue"]
        assert words(found, "Cat") == ["Katze", "Kater"]
        assert found.lookup("dog")[0].pos == "n"
        assert found.num_malformed == 1


def test_dictd_without_its_body_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lies without d\.dict\.dz"):
        read_dictionary(write(tmp_path / "d.index", "dog\tA\tB\n"))


TEI = """<?xml version="1.0"?><TEI xmlns="http://www.tei-c.org/ns/1.0"><text><body>
<entry><form><orth>dog</orth></form><gramGrp><pos>n</pos></gramGrp>
<sense><cit type="trans"><quote>Hund</quote><quote>Köter</quote></cit>
<cit type="example"><quote>a dog</quote></cit></sense>
</entry><entry><form><orth>cat</orth></form><sense><cit type="trans"><quote>Katze</quote></cit></sense></entry>
</body></text></TEI>"""


def test_tei(tmp_path: Path) -> None:
    found = read_dictionary(write(tmp_path / "eng-deu.tei", TEI))
    assert words(found, "dog") == ["Hund", "Köter"]
    assert found.lookup("dog")[0] == Translation("Hund", "n")


@pytest.mark.parametrize(
    ("text", "message"), [('<!DOCTYPE a [<!ENTITY b "c">]><a/>', "declares entities"), ("<a><b></a>", "is not XML")]
)
def test_tei_refuses_entities_and_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_dictionary(write(tmp_path / "x.tei", text))


def test_wiktextract_takes_translations_of_the_language_asked_for(tmp_path: Path) -> None:
    rows = [
        {
            "word": "dog",
            "lang_code": "en",
            "pos": "noun",
            "translations": [
                {"code": "de", "word": "Hund", "tags": ["masculine", 3]},
                {"lang_code": "fr", "word": "chien"},
                {"word": 3},
            ],
            "senses": [{"translations": [{"code": "de", "word": "Rüde"}]}],
        },
        {"word": "Katze", "lang_code": "de", "senses": [{"glosses": ["cat (animal)", 3]}]},
        [1],
        {"lang": "x"},
    ]
    path = write(tmp_path / "w.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    assert words(read_dictionary(path, target_language="de"), "dog") == ["Hund", "Rüde"]
    assert read_dictionary(path, target_language="de").entries["dog"][0].labels == ("masculine",)
    whole = read_dictionary(path)
    assert words(whole, "dog") == ["Hund", "chien", "Rüde"]
    assert words(whole, "Katze") == ["cat"]
    assert whole.num_malformed == 3


def test_csv_with_and_without_a_header_ranks_by_score(tmp_path: Path) -> None:
    for header in ("", "source,target,score,pos\n"):
        found = read_dictionary(
            write(tmp_path / "d.csv", header + 'dog,"Hund, der",0.2,n\ndog,Köter,0.9,n\ncat,Katze,,\n')
        )
        assert words(found, "dog") == ["Köter", "Hund, der"]
        assert words(found, "cat") == ["Katze"]
    marked = read_dictionary(write(tmp_path / "m.csv", 'source,target,labels\ndog,Köter,"slang; rare"\n'))
    assert marked.entries["dog"][0].labels == ("slang", "rare")
    swapped = read_dictionary(write(tmp_path / "s.tsv", "target\tsource\nHund\tdog\n"))
    assert words(swapped, "dog") == ["Hund"]
    assert read_dictionary(write(tmp_path / "b.csv", "a,b,x\nc,d\n")).malformed == ("line 1",)


PAIR = st.text(st.characters(whitelist_categories=("L", "N")), min_size=1, max_size=8)


@given(st.lists(st.tuples(PAIR, PAIR), min_size=1, max_size=20))
def test_any_pairs_survive_muse_csv_and_tsv(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("source", "target"), *pairs])
    files = {
        "muse": write(folder / "m.txt", "".join(f"{a} {b}\n" for a, b in pairs)),
        "csv": write(folder / "c.csv", buffer.getvalue()),
        "tsv": write(folder / "t.tsv", "source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in pairs)),
    }
    wanted: dict[str, list[str]] = {}
    for a, b in pairs:
        if b not in wanted.setdefault(a, []):
            wanted[a].append(b)
    for name, path in files.items():
        found = read_dictionary(path, format=name)  # type: ignore[arg-type]
        assert {head: [one.text for one in own] for head, own in found.entries.items()} == wanted


def test_wiktionary_text(tmp_path: Path) -> None:
    text = (
        "# English :: German dictionary\n"
        "Amman {prop} /ɑːˈmɑːn/ (the capital (of Jordan)) :: Amman {n}\n"
        "dog {n} (animal) :: Hund {m}, Köter {m} /ˈkøːtɐ/\n"
        "map {n} (visual representation) :: 地図 /ちず, chizu/, マップ\n"
        "amiss {adj} (wrong) SEE: wrong ::\n"
        "a miss is as good as a mile {proverb} (x) :: Knapp daneben ist auch vorbei\n"
        "no separator\n"
    )
    found = read_dictionary(write(tmp_path / "w.txt", text))
    assert found.format == "wiktionary"
    assert words(found, "dog") == ["Hund", "Köter"]
    assert words(found, "map") == ["地図", "マップ"]
    assert words(found, "amman") == ["Amman"]
    assert found.lookup("dog", "n")[0].pos == "n"
    assert found.num_malformed == 1


@pytest.mark.parametrize(
    ("language", "head", "wanted"), [("de", "peace", "Frieden"), ("es", "dog", "perro"), ("ja", "map", "地図")]
)
def test_real_wiktionary(real_data: Callable[[str], Path], language: str, head: str, wanted: str) -> None:
    found = read_dictionary(real_data("wiktionary") / f"en-{language}-enwiktionary.txt.gz")
    assert found.format == "wiktionary"
    assert len(found.entries) > 15_000
    assert wanted in words(found, head)
    marks = sum(any(c in one.text for c in "{}[]/") for own in found.entries.values() for one in own)
    total = sum(map(len, found.entries.values()))
    assert marks / total < 0.01


def test_a_remark_that_a_language_has_no_such_word_is_no_translation(tmp_path: Path) -> None:
    path = tmp_path / "en-zh.txt"
    path.write_text("the {article} :: Not used in Chinese\nbe {v} :: Not used in Chinese\nbe {v} :: 是 /shì/\n")
    found = read_dictionary(path)
    assert {head: [one.text for one in own] for head, own in found.entries.items()} == {"be": ["是"]}


def test_real_wiktionary_through_every_other_format(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The same real pairs, written in each format, are read back equal."""
    whole = read_dictionary(real_data("wiktionary") / "en-sv-enwiktionary.txt.gz")
    pairs = [(h, t.text) for h, own in list(whole.entries.items())[:3000] for t in own if " " not in h + t.text]
    wanted = {a: [b for x, b in pairs if x == a] for a in list(dict(pairs))[:300]}
    body, index = b"", ""
    grouped: dict[str, list[str]] = {}
    for a, b in pairs:
        grouped.setdefault(a, []).append(b)
    for a, bs in grouped.items():
        data = f"{a} <n>\n{', '.join(bs)}\n".encode()
        index += f"{a}\t{base64_of(len(body))}\t{base64_of(len(data))}\n"
        body += data
    write(tmp_path / "f.index", index)
    (tmp_path / "f.dict.dz").write_bytes(gzip.compress(body))
    rows = [
        {"word": a, "lang_code": "en", "translations": [{"code": "sv", "word": b} for b in bs]}
        for a, bs in grouped.items()
    ]
    write(tmp_path / "w.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "m.txt", "".join(f"{a}\t{b}\n" for a, b in pairs))
    write(tmp_path / "p.tsv", "source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in pairs))
    for name in ("f.index", "w.jsonl", "m.txt", "p.tsv"):
        found = read_dictionary(tmp_path / name)
        plain = {a: bs for a, bs in wanted.items() if not any(c in "".join([a, *bs]) for c in ".:<>[](){}/,;")}
        assert {a: words(found, a) for a in plain} == plain


def test_hit_rates_of_real_text_see_the_direction(real_data: Callable[[str], Path]) -> None:
    rows = [json.loads(line) for line in (real_data("ud") / "pud_parallel_200.jsonl").read_text("utf-8").splitlines()]
    found = read_dictionary(real_data("wiktionary") / "en-de-enwiktionary.txt.gz")
    own = coverage(found, [row["en"] for row in rows])
    assert own.hit_rate > 0.5
    assert not own.is_reversed
    assert coverage(found, [row["de"] for row in rows]).reversed_hit_rate > 0.3


def test_a_reversed_dictionary_is_noticed() -> None:
    found = Dictionary({"Hund": (Translation("dog"),), "Katze": (Translation("cat"),)})
    hits = coverage(found, ["the dog and the cat"])
    assert (hits.num_words, hits.num_found, hits.num_found_reversed) == (5, 0, 2)
    assert hits.is_reversed
    assert not coverage(found.inverted(), ["the dog and the cat"]).is_reversed
    assert coverage(Dictionary({"New York": (Translation("Nueva York"),)}), ["New York"]).hit_rate == 1


def test_inversion_counts() -> None:
    found = Dictionary({"a": (Translation("x"), Translation("y")), "b": (Translation("x"),)}).inverted()
    assert [one.text for one in found.lookup("x")] == ["a", "b"]
    assert words(found, "y") == ["a"]


def test_segments_keep_headwords_together() -> None:
    found = Dictionary({"United States": (Translation("USA"),), "地図": (Translation("map"),)})
    assert segment("the United States, 1,000 people's", found) == ["the", "United States", "1,000", "people's"]
    assert segment("古い地図", found) == ["古", "い", "地図"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no dictionary entry"),
        ("one two three\n", "holds no dictionary entry"),
        ("dog\ncat\n", "has only one side: no translation in 2 lines"),
    ],
)
def test_empty_and_one_sided_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_dictionary(write(tmp_path / "d.txt", text))


def test_a_csv_without_headwords_is_one_sided(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no headword in 2 lines"):
        read_dictionary(write(tmp_path / "d.csv", ",Hund\n,Katze\n"))


def test_encodings_and_damage_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", "dog Köter\n", "latin-1")
    with pytest.raises(UserError, match=r"byte 0xf6 at offset 5 is not utf-8.*--encoding"):
        read_dictionary(path)
    assert words(read_dictionary(path, encoding="latin-1"), "dog") == ["Köter"]
    with pytest.raises(UserError, match="unknown encoding"):
        read_dictionary(path, encoding="klingon")
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b"dog Hund\n" * 99)[:20])
    with pytest.raises(UserError, match="damaged gzip"):
        read_dictionary(tmp_path / "bad.gz")
    with pytest.raises(UserError, match="Did you mean 'muse'"):
        read_dictionary(path, format="mus")  # type: ignore[arg-type]


def test_language_codes() -> None:
    assert (language_name("de"), language_name("zh"), language_name("pt-BR")) == (
        "German",
        "Chinese",
        "Brazilian Portuguese",
    )
    with pytest.raises(UserError, match=r"no language 'German'.*Did you mean 'de'"):
        language_name("German")
    with pytest.raises(UserError, match="no language 'xq9'"):
        language_name("xq9")
