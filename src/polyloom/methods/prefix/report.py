"""The room's figures: every method beside its controls, and the two models' decisions position by position."""

from __future__ import annotations

from polyloom.core.result import Result
from polyloom.reports.figures import Figure, default_figures, series_figure, series_groups

CAPTIONS = {
    "methods": "BLEU in per cent of the fine-tuned model's, mean over languages, with 95 % intervals; controls last.",
    "agreement by position": "Share of the fine-tuned model's decisions that are among the base model's best 1 and 5.",
    "divergence by position": "How far the two next-token distributions are apart along the fine-tuned answers.",
    "prior length": "What each further token of the fine-tuned model's answer adds.",
}


def figures(result: Result) -> list[Figure]:
    """Draw a study: decisions first, then methods; other verbs as their groups say.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if result.verb != "study":
        return default_figures(result)
    groups = series_groups(result)
    order = ("agreement by position", "divergence by position", "prior length", "methods")
    return [series_figure(name, CAPTIONS[name], groups[name]) for name in order if name in groups]
