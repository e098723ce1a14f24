"""Lexicon and syntax for cross-lingual transfer without target labels: LS-mBERT.

Public names (imported on first use, so that reading the card needs no torch):

- `SyntaxAdaptor`: graph attention over dependency trees, hooked into any Hugging Face encoder.
- `tree_distances`, `piece_heads`, `sequence_heads`: trees over word pieces.
- `GraphAttention`, `SyntaxGraph`, `StructuralProbes`: the paper's modules.
- `switch`, `switch_all`, `SwitchPlan`, `paper_plan`: code-switching by dictionaries.
- `ibm1`, `induce`, `itermax_links`: dictionaries and word alignments from parallel text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.transfer.adaptor import SyntaxAdaptor
    from polyloom.methods.transfer.induction import ibm1, induce, itermax_links
    from polyloom.methods.transfer.method import (
        GraphAttention,
        StructuralProbes,
        SyntaxGraph,
        piece_heads,
        sequence_heads,
        tree_distances,
    )
    from polyloom.methods.transfer.switching import SwitchPlan, paper_plan, switch, switch_all

__all__ = [
    "CARD",
    "GraphAttention",
    "StructuralProbes",
    "SwitchPlan",
    "SyntaxAdaptor",
    "SyntaxGraph",
    "ibm1",
    "induce",
    "itermax_links",
    "paper_plan",
    "piece_heads",
    "sequence_heads",
    "switch",
    "switch_all",
    "tree_distances",
]

_ROOM = "polyloom.methods.transfer"
_METHOD = f"{_ROOM}.method"
_HOME = {
    "SyntaxAdaptor": f"{_ROOM}.adaptor",
    **dict.fromkeys(
        ("GraphAttention", "StructuralProbes", "SyntaxGraph", "piece_heads", "sequence_heads", "tree_distances"),
        _METHOD,
    ),
    **dict.fromkeys(("SwitchPlan", "paper_plan", "switch", "switch_all"), f"{_ROOM}.switching"),
    **dict.fromkeys(("ibm1", "induce", "itermax_links"), f"{_ROOM}.induction"),
}

__getattr__ = lazy_names(__name__, _HOME)


CARD = RoomCard(
    name="transfer",
    title="LS-mBERT: lexicon and syntax for zero-shot transfer",
    question="How do I carry labels from English to languages without labels, with a dictionary and a parser?",
    papers=(
        Paper(
            "Incorporating Lexical and Syntactic Knowledge for Unsupervised Cross-Lingual Transfer",
            "2404.16627",
            2024,
            "Zheng, Fan, Li",
        ),
        Paper("Syntax-augmented Multilingual BERT for Cross-lingual Transfer", "2106.02134", 2021, "Ahmad and others"),
        Paper("CoSDA-ML: Multi-Lingual Code-Switching Data Augmentation", "2006.06402", 2020, "Qin and others"),
        Paper(
            "SimAlign: High Quality Word Alignments Without Parallel Training Data", "2004.08728", 2020, "Jalili Sabet"
        ),
        Paper("Consistency Regularization for Cross-Lingual Fine-Tuning", "2106.08226", 2021, "Zheng and others"),
    ),
    verbs=(
        Verb(
            "train",
            "Train arms that differ by one setting (lexicon, syntax, both, controls) and compare them by language.",
            f"{_ROOM}.config:TransferTrainConfig",
            f"{_ROOM}.study:run_train",
        ),
        Verb(
            "evaluate",
            "Score a saved model on each language: gap, generalised pairs, XTREME submission.",
            f"{_ROOM}.config:TransferEvaluateConfig",
            f"{_ROOM}.study:run_evaluate",
        ),
        Verb(
            "switch",
            "Preview and export code-switched data, with the realised rates.",
            f"{_ROOM}.data_config:SwitchConfig",
            f"{_ROOM}.switch_verb:run_switch",
        ),
        Verb(
            "parse",
            "Train a parser offline from a treebank, check trees, and parse text.",
            f"{_ROOM}.data_config:ParseConfig",
            f"{_ROOM}.parse_verb:run_parse",
        ),
        Verb(
            "dictionary",
            "Read, check or turn round a dictionary, or induce one from parallel text.",
            f"{_ROOM}.data_config:TransferDictionaryConfig",
            f"{_ROOM}.dictionary_verb:run_dictionary",
        ),
        Verb(
            "study",
            "Train four arms on the embedded world and score them on two languages without labels.",
            f"{_ROOM}.config:TransferStudyConfig",
            f"{_ROOM}.lab:run_study",
        ),
    ),
    order=60,
    equations=(
        Equation("D_ij, depth_i", "tree distances over pieces", f"{_METHOD}:tree_distances"),
        Equation("A_ij = 1 iff D_ij <= delta", "who attends to whom", f"{_METHOD}:neighbours"),
        Equation("s_ij = LeakyReLU(Z_i a1 + Z_j a2), O = alpha Z", "graph attention", f"{_METHOD}:GraphAttention"),
        Equation("G^0 = E + U + R; g = LayerNorm(G^L)", "graph encoder", f"{_METHOD}:SyntaxGraph"),
        Equation("K += g Wk + bk, V += g Wv + bv", "fusion into attention", f"{_METHOD}:Fusion"),
        Equation("L_dist", "distance part of the structural loss", f"{_METHOD}:distance_loss"),
        Equation("L_depth", "depth part of the structural loss", f"{_METHOD}:depth_loss"),
        Equation("k = floor(n r), t ~ dict(w)", "code-switching", f"{_ROOM}.switching:switch"),
        Equation("p(t | s) p(s | t)", "IBM model 1 both ways", f"{_ROOM}.induction:ibm1"),
        Equation("argmax, itermax", "alignment by similarity", f"{_ROOM}.induction:itermax_links"),
        Equation("KL(p || q) + KL(q || p)", "consistency of a text and its switched form", f"{_METHOD}:symmetric_kl"),
    ),
    tour=TourStep(verb="study", inputs={"languages": "languages"}, cpu_seconds=40),
    report=f"{_ROOM}.report:figures",
)
