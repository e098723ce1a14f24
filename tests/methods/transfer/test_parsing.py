from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyloom.core.errors import MissingExtra, UserError
from polyloom.data.records import Sentence
from polyloom.data.treebanks import attachment, repair_heads
from polyloom.methods.transfer import parsing

pytest.importorskip("ufal.udpipe", reason="ufal.udpipe is not installed (extra parse)")
TREE = "1\ta\t_\tDET\t_\t_\t2\tdet\t_\t_\n2\tb\t_\tNOUN\t_\t_\t0\troot\t_\t_\n\n"
CYCLE = TREE.replace("\t0\troot", "\t1\troot")
TWO_ROOTS = TREE.replace("\t2\tdet", "\t0\tdet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parser") / "p.udpipe"
    parsing.train_udpipe(parsing.world_trainable("de", 40, 0).blocks, path, iterations=1)
    return path


def test_faulty_trees_are_left_out_of_training(tmp_path: Path) -> None:
    path = tmp_path / "t.conllu"
    path.write_text("# sent_id = x\n" + TREE + CYCLE + TWO_ROOTS + TREE)
    bank = parsing.read_trainable(path)
    assert len(bank.sentences) == len(bank.blocks) == 2
    assert bank.num_left_out == 2
    assert bank.faults == {"sentences without a root": 1, "cycles": 1, "extra roots": 1}
    assert bank.blocks[0].startswith("# sent_id = x")
    with pytest.raises(UserError, match="1 cycles in sentence 2"):
        parsing.read_trainable(path, strict=True)
    path.write_text(CYCLE)
    with pytest.raises(UserError, match="holds no sentence with a tree"):
        parsing.read_trainable(path)


def test_a_parser_learns_the_world(model: Path) -> None:
    gold = parsing.world_trainable("de", 60, 0).sentences[40:]
    bare = [Sentence(one.words, id=one.id, text=one.text) for one in gold]
    found = parsing.UDPipeParser(model)(bare)
    score = attachment(gold, found)
    chain = attachment(gold, [parsing.left_chain(one) for one in gold])
    assert score.uas > chain.uas + 0.3
    assert [(one.words, one.id, one.text) for one in found] == [(one.words, one.id, one.text) for one in gold]
    for one in found:
        assert one.heads.count(0) == 1
        assert not repair_heads(one.heads)[1]


def test_labels_stay_and_odd_words_are_parsed(model: Path) -> None:
    parser = parsing.UDPipeParser(model)
    sentence = Sentence(("New York", "7", "\u200b", "𝔘"), labels=("B-LOC", "O", "O", "O"))
    (found,) = parser([sentence])
    assert (found.words, found.labels) == (sentence.words, sentence.labels)
    assert len(found.heads) == 4
    assert parser([Sentence(())]) == [Sentence(())]


def test_every_sentence_of_a_text_has_its_root(model: Path) -> None:
    text = Sentence(("Es", "regnet", ".", "Wir", "gehen", "."), labels=("O",) * 6, id="t")
    (found,) = parsing.parse_texts(parsing.UDPipeParser(model), [text])
    assert (found.words, found.labels, found.id) == (text.words, text.labels, "t")
    assert found.heads.count(0) == 2
    for word, head in enumerate(found.heads, start=1):
        # No head lies in the other sentence.
        assert head == 0 or (head <= 3) == (word <= 3)


def test_what_is_no_model_or_treebank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.udpipe").write_bytes(b"no model")
    for name in ("m.udpipe", "absent"):
        with pytest.raises(UserError, match="is no UDPipe model"):
            parsing.UDPipeParser(tmp_path / name)
    with pytest.raises(UserError, match="3 sentences train no parser"):
        parsing.train_udpipe([TREE] * 3, tmp_path / "x")
    with pytest.raises(UserError, match="UDPipe cannot read the treebank"):
        parsing.train_udpipe(["1\ta"] * 20, tmp_path / "x")


@pytest.mark.parametrize(
    ("library", "extra", "call"),
    [
        ("ufal", "parse", parsing.udpipe),
        ("stanza", "stanza", lambda: parsing.StanzaParser("de")),
    ],
)
def test_a_missing_extra_names_its_command(
    monkeypatch: pytest.MonkeyPatch, library: str, extra: str, call: Callable[[], Any]
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=rf'pip install "polyloom\[{extra}\]"'):
        call()


class FakeStanza:
    """What the parser uses of stanza's pipeline: words given, one sentence out for each."""

    class Word:
        def __init__(self, i: int, number: int) -> None:
            self.upos, self.head, self.deprel = "NOUN", i if i < number else 0, "dep"

    def __call__(self, texts: list[list[str]]) -> Any:
        sentences = [
            type("Sentence", (), {"words": [self.Word(i + 1, len(text)) for i in range(len(text))]}) for text in texts
        ]
        return type("Document", (), {"sentences": sentences})


def test_stanza_is_given_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("stanza")
    calls: list[dict[str, Any]] = []

    def pipeline(language: str, **options: Any) -> FakeStanza:
        calls.append({"language": language, **options})
        return FakeStanza()

    module.Pipeline = pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stanza", module)
    (found,) = parsing.StanzaParser("de")([Sentence(("a", "b"), labels=("O", "O"))])
    # The fake's heads make a cycle, which is cut as anywhere.
    assert (found.upos, found.heads, found.labels) == (("NOUN", "NOUN"), (0, 0), ("O", "O"))
    assert calls[0]["tokenize_pretokenized"] is True
    assert calls[0]["download_method"] is None

    def absent(language: str, **options: Any) -> FakeStanza:
        raise FileNotFoundError(language)

    module.Pipeline = absent  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"no models of 'xx' here.*stanza\.download"):
        parsing.StanzaParser("xx")


def test_chains_and_resampled_scores() -> None:
    sentence = Sentence(("a", "b", "c"), ("X",) * 3, (2, 3, 0), ("x",) * 3)
    assert parsing.left_chain(sentence).heads == (0, 1, 2)
    assert parsing.right_chain(sentence).heads == (2, 3, 0)
    counts = parsing.sentence_counts([sentence], [parsing.left_chain(sentence)])
    np.testing.assert_array_equal(counts, [[3, 0, 0, 3]])
    low, high = parsing.resampled(np.array([[2, 1, 1, 2]] * 5 + [[2, 2, 1, 2]] * 5), seed=0)
    assert low.uas < 0.75 < high.uas
    assert (low.las, high.las, low.upos, low.num_words) == (0.5, 0.5, 1.0, 20)
