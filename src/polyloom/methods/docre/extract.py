"""Relations by a language model in context: prompts, replies read strictly, and decoding under the schema's grammar."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.generation.cache import cache_keyword, new_cache
from polyloom.methods.docre.data import Document, Triple
from polyloom.methods.docre.schema import NAMES
from polyloom.models.tokenizers import encode

Mode = Literal["list", "relation", "pairs"]
Pair = tuple[int, int]
MAX_EVIDENCE = 3
TASKS = {
    "en": "List the relations between the entities of the document as a JSON array.",
    "ja": "文書中のエンティティ間の関係をJSON配列で列挙してください。",
    "de": "Liste die Beziehungen zwischen den Entitäten des Dokuments als JSON-Array auf.",
    "zh": "请以JSON数组列出文档中实体之间的关系。",
}
_OBJECT = re.compile(r"\{[^{}]*\}")


def prompt(
    document: Document,
    relations: Sequence[str],
    demonstrations: Sequence[Document] = (),
    *,
    language: str = "en",
    signatures: Sequence[tuple[str, str, str]] = (),
    pairs: Sequence[Pair] = (),
) -> str:
    """Return the prompt for one document.

    Args:
        document: to be read.
        relations: ids that may be answered.
        demonstrations: solved documents, shown first.
        language: of the task line; English where we have no other.
        signatures: (head type, relation, tail type) to show as allowed types.
        pairs: ask about these pairs alone.
    """
    types: dict[str, set[str]] = {}
    for head, relation, tail in signatures:
        types.setdefault(relation, set()).add(f"{head}>{tail}")
    table = [f"{r}: {NAMES.get(r, r)} {' '.join(sorted(types.get(r, ())))}".rstrip() for r in relations]
    parts = [TASKS.get(language, TASKS["en"]), *table, 'Form: [{"h":0,"r":"P0","t":1,"evidence":[0]}]']
    for shown in demonstrations:
        parts += [body(shown), reply_text([t for t in shown.triples or () if t.relation in set(relations)])]
    parts.append(body(document))
    if pairs:
        parts.append("Pairs: " + " ".join(f"({h},{t})" for h, t in pairs))
    return "\n".join(parts)


def body(document: Document) -> str:
    """Return numbered sentences and entities."""
    lines = [f"({i}) {document.sentence_text(i)}" for i in range(len(document.sentences))]
    for i in range(len(document.entities)):
        lines.append(f"[{i}] {document.entity_type(i)} {' / '.join(sorted(document.names(i)))}")
    return "\n".join(lines)


def reply_text(triples: Sequence[Triple]) -> str:
    """Return triples in the form that a reply has."""
    rows = [{"h": t.head, "r": t.relation, "t": t.tail, "evidence": list(t.evidence)} for t in triples]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def read_reply(
    text: str, document: Document, relations: Sequence[str], pairs: Sequence[Pair] = ()
) -> tuple[list[Triple], Counter[str]]:
    """Read a reply; what does not fit the document or the schema is dropped and counted.

    Args:
        text: the model's words: an array, alone or within prose, or broken with whole objects in it.
        document: that was asked about.
        relations: ids of the schema.
        pairs: the only ones that were asked about; empty for any.

    Returns:
        The triples, and counts of `invalid_json`, `not_an_object`, `unknown_entity`, `unknown_relation`,
        `head_is_tail`, `pair_not_asked`, `bad_evidence`, `duplicate`.
    """
    faults: Counter[str] = Counter()
    kept: dict[tuple[int, str, int], Triple] = {}
    for row in _rows(text, faults):
        triple = _triple(row, document, relations, faults)
        if triple is None:
            continue
        if pairs and (triple.head, triple.tail) not in pairs:
            faults["pair_not_asked"] += 1
            continue
        key = (triple.head, triple.relation, triple.tail)
        if key in kept:
            faults["duplicate"] += 1
        kept.setdefault(key, triple)
    return list(kept.values()), faults


def _rows(text: str, faults: Counter[str]) -> list[Any]:
    start, end = text.find("["), text.rfind("]")
    try:
        value = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (json.JSONDecodeError, RecursionError):
        value = None
    if isinstance(value, list):
        return value
    faults["invalid_json"] += 1
    rows = []
    for match in _OBJECT.finditer(text):
        try:
            rows.append(json.loads(match.group(0)))
        except json.JSONDecodeError:
            continue
    return rows


def _triple(row: Any, document: Document, relations: Sequence[str], faults: Counter[str]) -> Triple | None:
    count = len(document.entities)
    if not isinstance(row, dict):
        faults["not_an_object"] += 1
        return None
    head, tail, relation = row.get("h"), row.get("t"), row.get("r")
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < count for i in (head, tail)):
        faults["unknown_entity"] += 1
        return None
    if relation not in relations:
        faults["unknown_relation"] += 1
        return None
    if head == tail:
        faults["head_is_tail"] += 1
        return None
    given = row.get("evidence")
    given = given if isinstance(given, list) else []
    evidence = sorted({i for i in given if isinstance(i, int) and 0 <= i < len(document.sentences)})
    if len(evidence) < len(given):
        faults["bad_evidence"] += 1
    assert isinstance(head, int)
    assert isinstance(tail, int)
    return Triple(head, str(relation), tail, tuple(evidence))


def is_valid(text: str, document: Document, relations: Sequence[str], pairs: Sequence[Pair] = ()) -> bool:
    """Say whether a reply is whole under the schema: an array of objects with nothing to drop or repair."""
    _, faults = read_reply(text, document, relations, pairs)
    return not faults and text.strip() == text and text.startswith("[")


def similar(documents: Sequence[Document], document: Document, count: int) -> list[Document]:
    """Return the `count` documents nearest by TF-IDF over character pairs, the most similar last."""

    def grams(one: Document) -> Counter[str]:
        text = "".join("".join(sentence) for sentence in one.sentences)
        return Counter(text[i : i + 2] for i in range(len(text) - 1))

    every = [grams(one) for one in documents]
    frequency = Counter(gram for one in every for gram in one)

    def weigh(one: Counter[str]) -> dict[str, float]:
        weights = {g: n * math.log((1 + len(every)) / (1 + frequency[g])) for g, n in one.items()}
        norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        return {g: w / norm for g, w in weights.items()}

    own = weigh(grams(document))
    scores = [sum(w * own.get(g, 0.0) for g, w in weigh(one).items()) for one in every]
    order = [i for i in sorted(range(len(every)), key=lambda i: scores[i]) if documents[i].title != document.title]
    return [documents[i] for i in order[len(order) - count :]] if count else []


class SchemaWriter:
    """Writes a reply of a local model token by token under the grammar, which leaves it nothing invalid to say.

    Fixed pieces are put in; at each choice (head, relation, tail, evidence, whether to go on) the tokens that some
    option can go on with are compared, and the most probable is taken.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        """Wrap a causal model.

        Args:
            model: causal, in evaluation mode.
            tokenizer: its own.
            max_tokens: positions that prompt and reply may take together.
        """
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens

    def _begin(self, text: str, room: int) -> None:
        self._cache = new_cache(self.model, self.max_tokens)
        self._num_tokens = 0
        self._feed(encode(self.tokenizer, text + "\n")[-room:])

    @torch.inference_mode()
    def choose(self, text: str, options: Sequence[str]) -> str:
        """Return the most probable of some answers to a prompt, whose beginning is cut where it is too long."""
        self._begin(text, self.max_tokens - 32)
        return self._choose(options)

    @torch.inference_mode()
    def write(
        self,
        text: str,
        document: Document,
        relations: Sequence[str],
        max_triples: int,
        least: int = 0,
        pairs: Sequence[Pair] = (),
    ) -> str:
        """Return a reply: a JSON array of `least` to `max_triples` objects, no triple twice.

        Args:
            text: the prompt; its beginning is cut where it is too long.
            document: that is asked about.
            relations: ids of the schema.
            max_triples: where to stop.
            least: objects before the array may end.
            pairs: the only (head, tail) that may be written; empty for any.
        """
        if len(document.entities) < 2 or not relations:
            return "[]"
        self._begin(text, max(32, self.max_tokens - max_triples * 64))
        asked = set(pairs) or set(document.pairs())
        written: list[str] = []
        used: set[tuple[int, str, int]] = set()
        self._feed_text("[")
        going = least > 0 or self._choose(["{", "]"]) == "{"
        while going and len(written) < max_triples and self._num_tokens + 64 < self.max_tokens:
            free = _free(asked, relations, used)
            if not free:
                break
            head = int(self._choose([f'{{"h":{h},' for h in free])[5:-1])
            relation = self._choose([f'"r":"{r}",' for r in free[head]])[5:-2]
            tail = int(self._choose([f'"t":{t},' for t in free[head][relation]])[4:-1])
            evidence = self._evidence(len(document.sentences))
            used.add((head, relation, tail))
            written.append(f'{{"h":{head},"r":"{relation}","t":{tail},"evidence":[{evidence}]}}')
            going = (len(written) < least) or self._choose([",", "]"]) == ","
        return "[" + ",".join(written) + "]"

    def _evidence(self, num_sentences: int) -> str:
        """Write a list of rising sentence numbers and its end; return it without brackets."""
        self._feed_text('"evidence":[')
        chosen: list[int] = []
        while True:
            comma = "," if chosen else ""
            free = range(chosen[-1] + 1 if chosen else 0, num_sentences if len(chosen) < MAX_EVIDENCE else 0)
            said = self._choose([*(f"{comma}{s}" for s in free), "]}"])
            if said == "]}":
                return ",".join(map(str, chosen))
            chosen.append(int(said.removeprefix(",")))

    def _feed(self, tokens: Sequence[int]) -> None:
        ids = torch.tensor([list(tokens)], device=self.model.device)
        cache = {str(cache_keyword(self.model)): self._cache}
        self._logits = self.model(input_ids=ids, use_cache=True, **cache).logits[0, -1]
        self._num_tokens += len(tokens)

    def _feed_text(self, text: str) -> None:
        self._feed(encode(self.tokenizer, text))

    def _choose(self, options: Sequence[str]) -> str:
        """Write one of the options: greedy over the tokens that keep at least one option possible."""
        alive = {option: encode(self.tokenizer, option) for option in options}
        position = 0
        while True:
            allowed = sorted({tokens[position] for tokens in alive.values() if len(tokens) > position})
            best = allowed[int(self._logits[allowed].argmax())]
            alive = {o: tokens for o, tokens in alive.items() if len(tokens) > position and tokens[position] == best}
            if len(alive) == 1:
                ((option, tokens),) = alive.items()
                self._feed(tokens[position:])
                return option
            self._feed([best])
            position += 1


def _free(
    pairs: set[Pair], relations: Sequence[str], used: set[tuple[int, str, int]]
) -> Mapping[int, Mapping[str, list[int]]]:
    """Return head to relation to tails that have not been written yet."""
    found: dict[int, dict[str, list[int]]] = {}
    for head, tail in sorted(pairs):
        for relation in relations:
            if (head, relation, tail) not in used:
                found.setdefault(head, {}).setdefault(relation, []).append(tail)
    return found


def verification(document: Document, triple: Triple) -> str:
    """Return the prompt that asks whether a triple holds."""
    head, tail = document.canonical(triple.head), document.canonical(triple.tail)
    claim = f"{head} | {NAMES.get(triple.relation, triple.relation)} | {tail}"
    return f"{body(document)}\nDoes the document say this? {claim}\nAnswer yes or no."


def covering(documents: Sequence[Document], count: int) -> list[Document]:
    """Return the `count` documents that together show most relations, chosen one after the other."""
    chosen: list[Document] = []
    shown: set[str] = set()
    left = list(documents)
    while left and len(chosen) < count:
        best = max(left, key=lambda one: len({t.relation for t in one.triples or ()} - shown))
        shown |= {t.relation for t in best.triples or ()}
        chosen.append(best)
        left.remove(best)
    return chosen


def requests_of(
    document: Document,
    mode: Mode,
    relations: Sequence[str],
    candidate_pairs: Callable[[], Sequence[Pair]],
) -> list[tuple[Sequence[str], Sequence[Pair]]]:
    """Return what to ask about a document: relations and pairs of each question.

    Args:
        document: to be read.
        mode: all at once, per relation type, or only about the classifier's candidate pairs.
        relations: of the schema.
        candidate_pairs: gives the pairs for the mode `pairs`.
    """
    if mode == "relation":
        return [([relation], ()) for relation in relations]
    if mode == "pairs":
        pairs = candidate_pairs()
        return [(relations, pairs)] if pairs else []
    return [(relations, ())]
