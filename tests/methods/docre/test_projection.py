"""Lost marks found again by name, alignment or asking; documents dropped with their reasons; the verb's tables."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyloom.methods.docre.aligner import load_aligner, softmax_links
from polyloom.methods.docre.data import Document, Mention, Triple, load_documents
from polyloom.methods.docre.projection import project
from polyloom.models.load import save_model
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer


def document(title: str = "T") -> Document:
    mentions = ((Mention("Kyoto", 0, 0, 1, "LOC"),), (Mention("Japan", 0, 3, 4, "LOC"),))
    return Document(title, (("Kyoto", "is", "in", "Japan", "."),), mentions, (Triple(0, "P17", 1, (0,)),))


def without_marks(sentences: Sequence[str]) -> list[str]:
    """Translate into Japanese, losing all marks."""
    words = {"Kyoto": "京都", "Japan": "日本"}
    return [words.get(one, "京都は日本にある。") for one in sentences]


def test_a_lost_mention_is_asked_for_and_found() -> None:
    found = project([document()], without_marks, "ja", ask_again=True)
    assert found.statuses == {"asked again": 2}
    assert found.lost_share == 1
    assert [entity[0].name for entity in found.documents[0].entities] == ["京都", "日本"]
    assert found.documents[0].triples == (Triple(0, "P17", 1, (0,)),)


def test_a_lost_mention_is_found_by_links_without_its_particle() -> None:
    def align(source: Sequence[str], target: Sequence[str]) -> set[tuple[int, int]]:
        kyoto = {(0, target.index("京")), (0, target.index("都")), (0, target.index("は"))}
        return kyoto | {(3, target.index("日")), (3, len(target) - 1)}

    found = project([document()], without_marks, "ja", align=align, min_entities=0.0)
    assert found.statuses == {"aligned": 1, "missing": 1}  # the second one's links fill too little
    assert found.documents[0].entities[0][0].name == "京都"
    assert (found.num_dropped_entities, found.num_dropped_triples) == (1, 1)
    assert found.missing == [("T", "Japan", "京都は日本にある。")]


def test_documents_are_dropped_for_length_language_and_lost_entities() -> None:
    many = [document(str(i)) for i in range(12)]
    longer = replace(many[11], sentences=(("Kyoto", "is", "in", "Japan", "."),))

    def translate(sentences: Sequence[str]) -> list[str]:
        return [s * 9 if i == 11 else s for i, s in enumerate(sentences)]

    found = project([*many[:11], longer], translate, "en")
    assert found.dropped == {"odd length": 1}
    found = project(many[:2], list, "en", is_target=lambda texts: [text.startswith("Kyoto") for text in texts])
    assert not found.dropped
    found = project(many[:2], list, "en", is_target=lambda texts: [False for _ in texts])
    assert found.dropped == {"another language": 2}
    found = project(many[:2], without_marks, "ja")
    assert found.dropped == {"too few entities": 2}


def test_links_need_both_directions() -> None:
    similarity = torch.tensor([[9.0, 0.0, 0.0], [8.9, 0.0, 5.0]])
    assert softmax_links(similarity, least=0.1) == {(0, 0), (1, 0)}
    assert softmax_links(similarity, least=0.01) == {(0, 0), (1, 0), (1, 2)}


def test_an_encoder_aligns_a_sentence_with_itself(tmp_path: Path) -> None:
    texts = [d.text()[0] for d in load_documents("world", language="en", num_documents=4)[0]]
    tokenizer = train_tokenizer(texts, 400)
    save_model(build_tiny("bert-2x64", len(tokenizer), 0), tmp_path / "m", tokenizer)
    words = texts[0].split()[:8]
    links = load_aligner(str(tmp_path / "m"), "cpu")(words, words)
    assert {(i, i) for i in range(8)} <= links
    assert load_aligner(str(tmp_path / "m"), "cpu")([], words) == set()


def test_the_verb_counts_by_type_and_document(cli: Callable[..., Any]) -> None:
    answer = cli("docre", "project", "--num-documents", 4, "--drop-rate", 0.5, "--translator", "dictionary", "--json")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    scalars = {name: one["value"] for name, one in result["scalars"].items()}
    assert 0.3 < scalars["share_lost_marks"] < 0.7
    assert scalars["share_missing"] < 0.1  # the dictionary gives the same word again
    for name in ("by_type", "by_document"):
        assert sum(row[1] for row in result["tables"][name]["rows"]) == scalars["num_mentions"]


@pytest.mark.parametrize("words", [("--aligner", "nowhere"), ("--translator", "dictionary", "--data", "nowhere")])
def test_bad_projection_is_refused(cli: Callable[..., Any], words: tuple[str, ...]) -> None:
    answer = cli("docre", "project", "--num-documents", 1, *words)
    assert answer.exit_code == 2
    assert "Traceback" not in answer.stderr
