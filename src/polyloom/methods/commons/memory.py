"""What an agent remembers, and which of it comes to mind: recency, importance and relevance."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Literal

from polyloom.methods.commons.arms import Rules

Kind = Literal["CHAT", "THOUGHT", "EVENT", "ACTION"]
WEIGHTS = (0.5, 3.0, 2.0)
DECAY = 0.99
KEPT_DAYS = 63
NUM_BUCKETS = 1 << 16
ACT_K, TALK_K, REFLECT_K, LAST_UTTERANCES = 10, 5, 10, 4


def month_start(month: int) -> datetime:
    """Return when month `month` (from 0) begins: the first day, 01:00; month 0 is January 2024."""
    return datetime(2024 + month // 12, month % 12 + 1, 1, 1)


def reflection_day(month: int) -> datetime:
    """Return the last day of the month."""
    return month_start(month + 1) - timedelta(days=1)


def talk_day(month: int) -> datetime:
    """Return the day before the last."""
    return month_start(month + 1) - timedelta(days=2)


@dataclass(frozen=True)
class Node:
    """One memory; `importance` is 1..10."""

    id: int
    kind: Kind
    text: str
    importance: int
    created: datetime
    expires: datetime
    always: bool = False


@lru_cache(maxsize=20_000)
def grams(text: str) -> dict[int, int]:
    """Count a text's character trigrams by hash bucket: an embedding without a model, equal everywhere."""
    padded = f"  {text.casefold()} "
    return dict(Counter(zlib.crc32(padded[i : i + 3].encode()) % NUM_BUCKETS for i in range(len(padded) - 2)))


@dataclass
class Memory:
    """The memories of one agent."""

    rules: Rules = "paper"
    nodes: list[Node] = field(default_factory=list)
    _documents: Counter[int] = field(default_factory=Counter)

    def add_event(self, text: str, month: int, created: datetime) -> Node:
        """Remember what happened. It is always at hand until the month is over.

        Under `reference` rules it expires at the very time of reflection, which then never sees it.
        """
        expires = reflection_day(month) if self.rules == "reference" else month_start(month + 1)
        return self._add("EVENT", text, 10, created, expires, always=True)

    def add_thought(self, text: str, importance: int, created: datetime, *, always: bool = False) -> Node:
        """Remember a thought, for 63 days."""
        return self._add("THOUGHT", text, importance, created, created + timedelta(days=KEPT_DAYS), always)

    def add_chat(self, text: str, importance: int, created: datetime) -> Node:
        """Remember a conversation's summary, which is stored and never retrieved."""
        return self._add("CHAT", text, importance, created, created + timedelta(days=KEPT_DAYS), always=False)

    def _add(self, kind: Kind, text: str, importance: int, created: datetime, expires: datetime, always: bool) -> Node:
        node = Node(len(self.nodes) + 1, kind, text, importance, created, expires, always)
        self.nodes.append(node)
        self._documents.update(grams(text).keys())
        return node

    def retrieve(self, focal_points: Sequence[str], k: int, now: datetime) -> list[Node]:
        """Return what comes to mind, oldest first.

        Args:
            focal_points: what the agent thinks of; each brings up to `k` memories.
            k: memories per focal point.
            now: the time; what has expired or is a CHAT stays away.
        """
        usable = [node for node in self.nodes if node.expires > now and node.kind != "CHAT"]
        found = {node.id: node for focus in focal_points for node in self._top(usable, focus, k)}
        return sorted(found.values(), key=lambda node: (node.created, node.id))

    def _top(self, usable: list[Node], focus: str, k: int) -> list[Node]:
        scores = self.scores(usable, focus)
        if not scores:
            return []
        most = max(scores) + 1
        ranked = sorted(zip(usable, scores, strict=True), key=lambda pair: -(most if pair[0].always else pair[1]))
        return [node for node, _ in ranked[:k]]

    def scores(self, usable: list[Node], focus: str) -> list[float]:
        """Return s = 0.5 recency + 3 importance' + 2 relevance of each memory.

        Recency is 0.99^rank with rank 0 for the newest (for the oldest under `reference` rules); importance' is
        (importance - 1) / 9; relevance the cosine of tf-idf vectors of character trigrams.
        """
        newest_first = self.rules == "paper"
        order = sorted(usable, key=lambda node: (node.created, node.id), reverse=newest_first)
        rank = {node.id: place for place, node in enumerate(order)}
        w_recency, w_importance, w_relevance = WEIGHTS
        relevance = self._cosines(focus, [node.text for node in usable])
        return [
            w_recency * DECAY ** rank[node.id] + w_importance * (node.importance - 1) / 9 + w_relevance * cosine
            for node, cosine in zip(usable, relevance, strict=True)
        ]

    def _cosines(self, focus: str, texts: Sequence[str]) -> list[float]:
        """Return the cosine of the focus with each text; the same grams are weighed once a call."""
        total, weights = len(self.nodes), dict[int, float]()

        def weigh(text: str) -> dict[int, float]:
            for gram in (counts := grams(text)):
                if gram not in weights:
                    weights[gram] = math.log((1 + total) / (1 + self._documents[gram])) + 1
            return {gram: count * weights[gram] for gram, count in counts.items()}

        def length(vector: dict[int, float]) -> float:
            return math.sqrt(sum(value * value for value in vector.values()))

        x = weigh(focus)
        x_length = length(x)
        cosines = []
        for y in map(weigh, texts):
            product = sum(value * y[gram] for gram, value in x.items() if gram in y)
            cosines.append(product / (x_length * length(y)) if product else 0.0)
        return cosines
