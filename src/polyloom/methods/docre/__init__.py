"""Document-level relations in a new language: read, train, recommend, count edits, build a graph with evidence.

Public names (imported on first use, so that reading the card needs no torch):

- `read_documents`, `write_documents`, `Document`, `Mention`, `Triple`: DocRED's JSON, checked and repaired.
- `train_model`, `predict`: the embedded log-linear model of pairs.
- `adaptive_threshold_loss`, `evidence_loss`, `group_bilinear`, `PairHead`, `predict_classes`: ATLOP and DREEAM.
- `query_knowledge_base`, `count_edits`, `reduction`: recommendations and the edit steps that they leave.
- `AnnotationStore`, `Event`, `edits_of_log`, `triple_agreement`, `estimate_total`: the annotators' log.
- `Graph`, `to_turtle`, `to_cypher`, `to_csv`: the knowledge graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names
from polyloom.core.registry import Equation, Paper, RoomCard, TourStep, Verb

if TYPE_CHECKING:
    from polyloom.methods.docre.annotation_store import AnnotationStore
    from polyloom.methods.docre.annotations import (
        Event,
        edits_of_log,
        estimate_total,
        triple_agreement,
    )
    from polyloom.methods.docre.data import Document, Mention, Triple, read_documents, write_documents
    from polyloom.methods.docre.graph import Graph, to_csv, to_cypher, to_turtle
    from polyloom.methods.docre.loglinear import predict, train_model
    from polyloom.methods.docre.method import (
        PairHead,
        adaptive_threshold_loss,
        evidence_loss,
        group_bilinear,
        predict_classes,
    )
    from polyloom.methods.docre.recommend import count_edits, query_knowledge_base, reduction

__all__ = [
    "CARD",
    "AnnotationStore",
    "Document",
    "Event",
    "Graph",
    "Mention",
    "PairHead",
    "Triple",
    "adaptive_threshold_loss",
    "count_edits",
    "edits_of_log",
    "estimate_total",
    "evidence_loss",
    "group_bilinear",
    "predict",
    "predict_classes",
    "query_knowledge_base",
    "read_documents",
    "reduction",
    "to_csv",
    "to_cypher",
    "to_turtle",
    "train_model",
    "triple_agreement",
    "write_documents",
]

_ROOM = "polyloom.methods.docre"
_METHOD = f"{_ROOM}.method"
_METRICS = "polyloom.metrics"
_HOME = {
    "AnnotationStore": ".annotation_store",
    **dict.fromkeys(("Event", "edits_of_log", "estimate_total", "triple_agreement"), ".annotations"),
    **dict.fromkeys(("Document", "Mention", "Triple", "read_documents", "write_documents"), ".data"),
    **dict.fromkeys(("Graph", "to_csv", "to_cypher", "to_turtle"), ".graph"),
    **dict.fromkeys(("predict", "train_model"), ".loglinear"),
    **dict.fromkeys(("count_edits", "query_knowledge_base", "reduction"), ".recommend"),
}

__getattr__ = lazy_names(__name__, {**dict.fromkeys(__all__, ".method"), **_HOME})


def _verb(name: str, summary: str, config: str, module: str) -> Verb:
    return Verb(name, summary, f"{_ROOM}.config:{config}", f"{_ROOM}.{module}:run_{name}")


CARD = RoomCard(
    name="docre",
    title="Document-level relations in a new language",
    question="How do I build and annotate a dataset of document-level relations in a new language?",
    papers=(
        Paper(
            "Building a Japanese Document-Level Relation Extraction Dataset Assisted by Cross-Lingual Transfer",
            "2404.16506",
            2024,
            "Ma, Wang, Okazaki",
        ),
        Paper(
            "DREEAM: Guiding Attention with Evidence for Improving Document-Level Relation Extraction",
            "2302.08675",
            2023,
            "Ma, Wang, Okazaki",
        ),
        Paper(
            "Document-Level Relation Extraction with Adaptive Thresholding and Localized Context Pooling",
            "2010.11304",
            2021,
            "Zhou, Huang, Ma, Huang",
        ),
    ),
    verbs=(
        _verb("check", "Read a DocRED-style file: totals, defects, repairs.", "CheckConfig", "study"),
        _verb("train", "Train a model: log-linear in seconds, or ATLOP, DREEAM.", "TrainConfig", "modelling"),
        _verb("predict", "Write predicted triples with evidence.", "PredictConfig", "modelling"),
        _verb("evaluate", "Score as the official script, or cross-validate.", "EvaluateConfig", "study"),
        _verb("project", "Translate with marked mentions and project labels.", "ProjectConfig", "projecting"),
        _verb("recommend", "Pre-fill triples and count the edits they leave.", "RecommendConfig", "editing"),
        _verb("extract", "Let a language model extract, under a JSON schema.", "ExtractConfig", "tools"),
        _verb("graph", "Build, update, query and export the graph.", "GraphConfig", "graphs"),
        _verb("explain", "Errors by class, and a page of evidence.", "ExplainConfig", "tools"),
        _verb("convert", "To and from brat, doccano and Label Studio.", "ConvertConfig", "tools"),
        _verb("bench", "Time a training step; memory of the pair head.", "BenchConfig", "bench"),
        _verb("study", "Recommend, count edits, draw the graph.", "DocreStudyConfig", "pipeline"),
    ),
    order=80,
    equations=(
        Equation("e_i = log sum_m exp h_m", "entity from its mentions (ATLOP 2)", f"{_METHOD}:pool_mentions"),
        Equation("A_i = mean_m A[m]", "attention of an entity", f"{_METHOD}:pool_attention"),
        Equation("q_st = A_s * A_t / 1'(A_s * A_t)", "attention of a pair (ATLOP 7)", f"{_METHOD}:pair_attention"),
        Equation("sum_g z_s^g' W_r^g z_t^g", "group bilinear logits (ATLOP 5)", f"{_METHOD}:group_bilinear"),
        Equation("L_RE = L_1 + L_2", "adaptive threshold (ATLOP 10, 11)", f"{_METHOD}:adaptive_threshold_loss"),
        Equation("l_r > l_TH", "prediction, at most k labels", f"{_METHOD}:predict_classes"),
        Equation("s_st", "attention of a pair on a sentence (DREEAM 4)", f"{_METHOD}:sentence_attention"),
        Equation("L_ER = KL(v || s)", "evidence guidance (DREEAM 5)", f"{_METHOD}:evidence_loss"),
        Equation("KL(q^T || q)", "self-training on attention (DREEAM 7)", f"{_METHOD}:attention_distillation"),
        Equation("AFL", "adaptive focal loss (KD-DocRE)", f"{_METHOD}:adaptive_focal_loss"),
        Equation("balanced softmax", "threshold 0 (DocuNet 10)", f"{_METHOD}:balanced_softmax_loss"),
        Equation("ISF", "inference-stage fusion (EIDER)", f"{_METHOD}:fuse"),
        Equation("|G \\ Q| + |Q \\ G|", "edit steps", f"{_METRICS}.relations:edit_steps"),
        Equation("F1, Ign F1", "the official scores (DocRED)", f"{_METRICS}.relations:score_relations"),
        Equation("1 - (|A&S| + |A&P|) / (|A| + |S|)", "AER", f"{_METRICS}.alignment:alignment_error_rate"),
    ),
    tour=TourStep(verb="study", cpu_seconds=30),
    report=f"{_ROOM}.report:figures",
)
