"""Features of an ordered pair of entities: types, order, distances, name endings, and the words around and between."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from polyloom.methods.docre.data import Document, Mention

BUCKETS = (0, 1, 2, 3, 5, 8, 13, 25, 50, 100)
MAX_BETWEEN = 6


@dataclass(frozen=True)
class Place:
    """What the pair features need to know of an entity."""

    type: str
    mentions: tuple[Mention, ...]
    name: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    in_title: bool
    rank: int


def bucket(value: int) -> str:
    """Return the bucket of a distance or count."""
    return str(next((edge for edge in BUCKETS if value <= edge), "+"))


class PairFeatures:
    """The features of a document's pairs; what belongs to one entity is worked out once."""

    def __init__(self, document: Document, *, lexical: bool = True) -> None:
        """Prepare a document.

        Args:
            document: any.
            lexical: names and words too, which speak one language; without them the features carry over to others.
        """
        self.document, self.lexical = document, lexical
        offsets = [0]
        for sentence in document.sentences:
            offsets.append(offsets[-1] + len(sentence))
        self.tokens = [token for sentence in document.sentences for token in sentence]
        self.places: list[Place] = []
        title = "".join(document.title.split())
        ranks: dict[str, int] = {}
        for number, mentions in enumerate(document.entities):
            ordered = tuple(sorted(mentions, key=lambda m: (m.sentence, m.start)))
            kind = document.entity_type(number)
            ranks[kind] = ranks.get(kind, -1) + 1
            self.places.append(
                Place(
                    kind,
                    ordered,
                    document.canonical(number),
                    tuple(offsets[m.sentence] + m.start for m in ordered),
                    tuple(offsets[m.sentence] + m.end for m in ordered),
                    any("".join(m.name.split()) in title for m in ordered),
                    0,
                )
            )
        self.first = sorted(range(len(self.places)), key=lambda i: self.places[i].starts[0])
        self.starts = sorted((start, self.places[i].type) for i in self.first for start in self.places[i].starts)
        self.order = {entity: i for i, entity in enumerate(self.first)}

    def pair(self, head: int, tail: int) -> list[str]:
        """Return the features of (head, tail)."""
        h, t = self.places[head], self.places[tail]
        types = f"{h.type}>{t.type}"
        gap, i, j = min((abs(a - b), i, j) for i, a in enumerate(h.starts) for j, b in enumerate(t.starts))
        first_gap = t.starts[0] - h.starts[0]
        nearest = t.starts[j] - h.starts[i]
        sentences = abs(h.mentions[i].sentence - t.mentions[j].sentence)
        between = self._types_between(min(h.ends[i], t.ends[j]), max(h.starts[i], t.starts[j]))
        shape = [
            "bias",
            f"order {first_gap > 0}",
            f"nearest {nearest > 0} {bucket(abs(nearest))}",
            f"first {first_gap > 0} {bucket(abs(first_gap))}",
            f"sentences {min(sentences, 6)} {nearest > 0}",
            f"mentions {min(len(h.mentions), 4)} {min(len(t.mentions), 4)}",
            f"title {h.in_title} {t.in_title}",
            f"title {h.in_title} {t.in_title} {min(sentences, 2)}",
            f"where {min(h.mentions[0].sentence, 3)} {min(t.mentions[0].sentence, 3)}",
            f"rank {min(self.order[head], 3)} {min(self.order[tail], 3)}",
            f"rank {self.order[tail] - self.order[head] if abs(self.order[tail] - self.order[head]) < 4 else 'far'}",
            f"between {between.count(h.type) > 0} {between.count(t.type) > 0} {min(sentences, 1)}",
            f"count between {bucket(len(between))} {nearest > 0}",
            f"contains {h.name in t.name} {t.name in h.name}",
            f"head sentence {min(h.mentions[i].sentence, 2)} {h.in_title} {bucket(gap)}",
        ]
        features = [f"{types}|{one}" for one in shape]
        features += [f"*|{one}" for one in shape[:5]]
        return features + self._words(types, h, t, i, j, sentences) if self.lexical else features

    def _types_between(self, start: int, end: int) -> list[str]:
        low = bisect_left(self.starts, (start, ""))
        return [kind for _, kind in self.starts[low : bisect_left(self.starts, (end, ""))]]

    def _words(self, types: str, h: Place, t: Place, i: int, j: int, sentences: int) -> list[str]:
        tokens = self.tokens
        a, b = h.mentions[i], t.mentions[j]
        side = "<" if h.starts[i] < t.starts[j] else ">"
        features = [
            f"{types}|h1 {h.name[-1:]}", f"{types}|h2 {h.name[-2:]}", f"{types}|h3 {h.name[-3:]}",
            f"{types}|t1 {t.name[-1:]}", f"{types}|t2 {t.name[-2:]}", f"{types}|t3 {t.name[-3:]}",
            f"{types}|ht {h.name[-1:]} {t.name[-1:]}", f"*|ht {h.name[-2:]} {t.name[-2:]}",
            f"*|hname {h.name}", f"*|tname {t.name}",
        ]  # fmt: skip
        for word, place, index in (("h", h, i), ("t", t, j)):
            after, before = place.ends[index], place.starts[index]
            one, two = "".join(tokens[after : after + 1]), "".join(tokens[after : after + 2])
            features += [
                f"{types}|{side}{word}+1 {one} {min(sentences, 1)}",
                f"{types}|{side}{word}+2 {two} {min(sentences, 1)}",
                f"{types}|{side}{word}+3 {''.join(tokens[after : after + 3])} {min(sentences, 1)}",
                f"{types}|{side}{word}-1 {''.join(tokens[max(0, before - 1) : before])}",
                f"{types}|{side}{word}-2 {''.join(tokens[max(0, before - 2) : before])}",
            ]
        low, high = min(h.ends[i], t.ends[j]), max(h.starts[i], t.starts[j])
        if a.sentence == b.sentence and high - low <= 40:
            words = tokens[low:high]
            if len(words) <= MAX_BETWEEN:
                features.append(f"{types}|{side}= {' '.join(words)}")
            features += [f"{types}|{side}w {word}" for word in dict.fromkeys(words)]
        return features
