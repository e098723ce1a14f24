"""What a score hides: other trees at test time, attention on neighbours, gains by coverage and by word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.data.records import Example, Sentence
from polyloom.methods.transfer.config import TransferEvaluateConfig
from polyloom.methods.transfer.data import Data
from polyloom.methods.transfer.diagnosis import (
    attention_mass,
    coverage_parts,
    dictionary_report,
    other_trees,
    taught_words,
    tree_check,
    without_upos,
    word_gains,
)
from polyloom.methods.transfer.models import Loaded, Syntax, TransferModel
from polyloom.methods.transfer.protocol import Outcome
from polyloom.methods.transfer.sequences import Sequencer, Targets, TokenizerPieces, gold_heads
from polyloom.methods.transfer.study import _inside
from polyloom.models.tiny import build_tiny
from polyloom.models.tokenizers import train_tokenizer

TARGETS = Targets((), ("O", "B-X"))


def said(words: str, language: str = "de") -> Example:
    parts = tuple(words.split())
    sentence = Sentence(parts, ("NOUN",) * len(parts), (0, *(1,) * (len(parts) - 1)), labels=("O",) * len(parts))
    return Example(words, (sentence,), "", language)


def loaded(syntax: Syntax | None) -> Loaded:
    tokenizer = train_tokenizer(["der hund schlaeft", "eine katze"] * 5, 300)
    encoder = build_tiny("bert-2x64", len(tokenizer))
    model = TransferModel(encoder, TARGETS, syntax=syntax).eval()
    sequencer = Sequencer(TokenizerPieces(tokenizer, encoder), 32, TARGETS, gold_heads if syntax else None)
    return Loaded(model, sequencer, {})


def test_other_trees_are_trees_of_the_same_size() -> None:
    sentence = said("a b c d").sentences[0]
    found = {kind: list(heads(sentence, "x/0")) for kind, heads in other_trees(0).items()}
    assert found["given"] == [0, 1, 1, 1]
    assert found["chain"] == [0, 1, 2, 3]
    assert found["flat"] == [0, 0, 0, 0]
    assert sorted(found) == ["chain", "flat", "given", "random"]
    assert without_upos([said("a b")])[0].sentences[0].upos == ("_", "_")


def test_every_kind_of_trees_is_judged_with_its_own() -> None:
    one = loaded(Syntax(num_layers=1, num_heads=1))
    seen: list[list[int]] = []

    def judge(sequencer: Sequencer, examples: Any) -> float:
        batch = sequencer.batch(examples)
        seen.append(batch["depths"][0].tolist())
        return float(len(seen))

    table, scalars = tree_check(one, {"de": [said("hund hund hund")]}, judge, "span F1", 0)
    assert table.rows == [["de", 1.0, 2.0, 3.0, 4.0, 5.0]]
    assert scalars["de_span_f1_chain_trees"].value == 3.0
    assert scalars["de_span_f1_no_parts_of_speech"].value == 5.0
    assert max(seen[3]) < max(seen[0]) < max(seen[2])


def test_attention_on_neighbours_is_even_where_nothing_is_learned() -> None:
    one = loaded(Syntax(num_layers=1, num_heads=1, zero=True))
    with torch.no_grad():
        for name, parameter in one.model.encoder.named_parameters():
            if ".query." in name:
                parameter.zero_()
    found = attention_mass(one, [said("der hund schlaeft"), said("eine katze")])
    assert len(found) == 2
    for with_graph, without, even in found:
        assert with_graph == pytest.approx(even, abs=1e-5)
        assert without == pytest.approx(even, abs=1e-5)
        assert 0 < even < 1
    config: Any = one.model.encoder.config
    assert config._attn_implementation == "sdpa"
    # Queries of zero see no key: the graph has to change what they see once they are not.
    moved = loaded(Syntax(num_layers=1, num_heads=1))
    assert any(abs(a - b) > 1e-6 for a, b, _ in attention_mass(moved, [said("der hund schlaeft")]))


def test_a_model_without_a_graph_has_no_trees_to_check(tmp_path: Path) -> None:
    config = TransferEvaluateConfig(model="m", test=["de=x"], tree_check=True)
    with pytest.raises(UserError, match="no graph that could read a tree"):
        _inside(loaded(None), {}, config, "span F1")


def counts(*rows: tuple[int, int, int]) -> Any:
    return np.asarray(rows, dtype=np.int64)


def test_gains_by_coverage_and_by_word_by_hand() -> None:
    dictionary = Dictionary({"dog": (Translation("der Hund"),), "cat": (Translation("Katze"),)})
    taught = taught_words(dictionary, [said("dog runs", "en")])
    assert taught == {"der", "hund"}
    examples = [said("hund x"), said("y x"), said("hund hund"), said("z x z z")] * 2
    before = counts(*[(0, 1, 1)] * 8)
    after = counts((1, 1, 1), (0, 1, 1), (1, 1, 1), (0, 1, 1), (1, 1, 1), (0, 1, 1), (0, 2, 1), (0, 1, 1))
    parts = coverage_parts(examples, taught, before, after)
    assert [part.coverage for part in parts] == [0, 0, 0.5, 1]
    assert [part.num_sentences for part in parts] == [2, 2, 2, 2]
    assert parts[0].after == parts[0].before == 0
    assert parts[2].after == 100
    # "hund" is in four sentences: too few to be named; in five it is, with 2 + 2 + 2 - 1 + 0 errors fewer.
    assert word_gains(examples, taught, before, after) == []
    more = [*examples, said("hund")]
    found = word_gains(more, taught, counts(*before, (1, 1, 1)), counts(*after, (1, 1, 1)))
    assert found == [("hund", 5, 5.0)]


def test_the_report_takes_the_first_pair_that_differs_by_the_dictionary() -> None:
    examples = [said("hund x"), said("y x")] * 4
    data = Data(
        "en", [said("dog", "en")], [], {"de": examples}, lexicons={"de": Dictionary({"dog": (Translation("hund"),)})}
    )
    rows = {"base": [(0, 1, 1)] * 8, "lex": [(1, 1, 1), (0, 1, 1)] * 4}
    groups = {
        arm: [Outcome(arm, 0, {"de": {"span F1": counts(*rows[arm])}}, 1.0, 1, 0, 0.5, 1, {})]
        for arm in ("base", "lex")
    }
    found = dictionary_report(groups, data, "span F1")
    assert found.scalars["lex_gain_most_covered"].value == 100
    assert found.scalars["lex_gain_least_covered"].value == 0
    assert [row[0] for row in found.tables["coverage"].rows] == ["de"] * 4
    assert dictionary_report({"base": groups["base"]}, data, "span F1").tables == {}
