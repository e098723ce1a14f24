"""Trees for any text: a UDPipe parser trained offline from a treebank, stanza, or a CoNLL-U file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyloom.core.errors import MissingExtra, UserError
from polyloom.core.files import read_text, write_bytes
from polyloom.core.seeding import numpy_generator
from polyloom.data.records import UPOS, Sentence, split_sentences
from polyloom.data.treebanks import Attachment, conllu, read_conllu, repair_heads, universal
from polyloom.data.world import World, records

MIN_SENTENCES = 10
METHOD = "morphodita_parsito"
NUM_ITERATIONS = 5
# Trees need parts of speech and features; lemmas, other tag sets and searched transitions cost more than they give.
TAGGER = "use_lemma=0;provide_lemma=0;use_xpostag=0;provide_xpostag=0"
PARSER = "structured_interval=0"


class Trainable(NamedTuple):
    """Sentences of a treebank and their CoNLL-U blocks, each with a faultless tree of one root, and the faults met."""

    sentences: tuple[Sentence, ...]
    blocks: tuple[str, ...]
    faults: Counter[str]
    num_left_out: int


def read_trainable(path: Path, *, strict: bool = False) -> Trainable:
    """Read a treebank to train or score a parser on; sentences with a faulty tree are left out and counted.

    Args:
        path: a CoNLL-U file; lemmas and features are kept for the trainer.
        strict: refuse the first faulty tree.

    Raises:
        UserError: no treebank, or one without heads.
    """
    bank = read_conllu(path, strict=strict)
    text = read_text(path).replace("\r\n", "\n")
    lines = (line if line.strip() else "" for line in text.split("\n"))
    blocks = [block for block in "\n".join(lines).split("\n\n") if block.strip()]
    kept = [
        (sentence, block.strip("\n"))
        for sentence, block in zip(bank.sentences, blocks, strict=True)
        if sentence.heads and sentence.upos and not _faulty(sentence, block)
    ]
    if not kept:
        raise UserError(
            "holds no sentence with a tree and tags.", where=str(path), hint="Columns 4, 7 and 8 are needed."
        )
    sentences, written = zip(*kept, strict=True)
    return Trainable(tuple(sentences), tuple(written), bank.repairs, len(blocks) - len(kept))


def _faulty(sentence: Sentence, block: str) -> bool:
    """Tell whether the tree in the file is another than the repaired one, or has not one root."""
    rows = [line.split("\t") for line in block.split("\n") if line[:1].isdecimal()]
    written = [row[6] for row in rows if row[0].isdecimal()]
    return written != list(map(str, sentence.heads)) or sentence.heads.count(0) != 1


def world_trainable(language: str, number: int, seed: int) -> Trainable:
    """Return trees of the embedded world.

    Args:
        language: one of the world's sentence languages.
        number: how many.
        seed: the world's.
    """
    world = World([language], seed=seed)
    sentences = tuple(
        Sentence(
            tuple(record["tokens"]),
            tuple(record["upos"]),
            tuple(record["heads"]),
            tuple(record["deprels"]),
            id=record["sent_id"],
            text=record["text"],
        )
        for record in records(world, "trees", (language,), number)
    )
    return Trainable(sentences, tuple(conllu([one]).strip("\n") for one in sentences), Counter(), 0)


def udpipe() -> Any:
    """Import ufal.udpipe.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import ufal.udpipe as module
    except ImportError as error:
        raise MissingExtra("ufal.udpipe", extra="parse") from error
    return module


def train_udpipe(blocks: Sequence[str], path: Path, *, iterations: int = NUM_ITERATIONS) -> None:
    """Train a tagger and parser, and write the model (one file) for words that are given.

    Args:
        blocks: CoNLL-U sentences, as of `read_trainable`.
        path: where the model goes.
        iterations: passes of the tagger and of the parser.

    Raises:
        UserError: too few sentences, or UDPipe refuses them.
        MissingExtra: ufal.udpipe is not installed.
    """
    if len(blocks) < MIN_SENTENCES:
        raise UserError(f"{len(blocks)} sentences train no parser.", hint=f"At least {MIN_SENTENCES} are needed.")
    module = udpipe()
    error = module.ProcessingError()
    tagger, parser = (f"iterations={iterations};{options}" for options in (TAGGER, PARSER))
    treebank = _read_blocks(module, blocks)
    model = module.Trainer.train(METHOD, treebank, module.Sentences(), "none", tagger, parser, error)
    if error.occurred() or not model:
        raise UserError(f"UDPipe refuses the treebank: {error.message.strip()}.")
    write_bytes(path, model)


def _read_blocks(module: Any, blocks: Sequence[str]) -> Any:
    reader, error, found = module.InputFormat.newConlluInputFormat(), module.ProcessingError(), module.Sentences()
    reader.setText("\n\n".join(blocks) + "\n\n")
    sentence = module.Sentence()
    while reader.nextSentence(sentence, error):
        found.append(sentence)
        sentence = module.Sentence()
    if error.occurred():
        raise UserError(f"UDPipe cannot read the treebank: {error.message.strip()}.")
    return found


class UDPipeParser:
    """A trained model, called with sentences."""

    def __init__(self, path: Path) -> None:
        """Load a model file.

        Args:
            path: written by `train_udpipe`, or any UDPipe 1 model.

        Raises:
            UserError: no such file, or no model.
            MissingExtra: ufal.udpipe is not installed.
        """
        self._module = udpipe()
        self._model: Any = self._module.Model.load(str(path)) if path.is_file() else None
        if self._model is None:
            raise UserError("is no UDPipe model.", where=str(path), hint="`transfer parse` writes one.")

    def __call__(self, sentences: Iterable[Sentence]) -> list[Sentence]:
        """Return the sentences with tags, heads and relations; other columns stay."""
        return [self._parse(sentence) for sentence in sentences]

    def _parse(self, sentence: Sentence) -> Sentence:
        if not sentence.words:
            return sentence
        parsed = self._module.Sentence()
        for word in sentence.words:
            # A blank inside a word would end it.
            parsed.addWord(word.replace(" ", "\u00a0"))
        self._model.tag(parsed, "")
        self._model.parse(parsed, "")
        words = [parsed.words[i] for i in range(1, len(parsed.words))]
        heads = tuple(word.head for word in words)
        return replace(
            sentence,
            upos=tuple(word.upostag if word.upostag in UPOS else "_" for word in words),
            heads=repair_heads(heads)[0],
            deprels=tuple(word.deprel for word in words),
        )


class StanzaParser:
    """Stanza's pipeline of a language, called with sentences; its models have to be on this machine."""

    def __init__(self, language: str) -> None:
        """Load the pipeline; nothing is fetched.

        Args:
            language: its code.

        Raises:
            UserError: its models are not here.
            MissingExtra: stanza is not installed.
        """
        try:
            import stanza
        except ImportError as error:
            raise MissingExtra("stanza", extra="stanza") from error
        try:
            self._pipeline = stanza.Pipeline(
                language,
                processors="tokenize,pos,lemma,depparse",
                tokenize_pretokenized=True,
                download_method=None,
                verbose=False,
            )
        except Exception as error:
            hint = f"Fetch them once: python -c \"import stanza; stanza.download('{language}')\""
            raise UserError(f"stanza has no models of {language!r} here.", where="--language", hint=hint) from error

    def __call__(self, sentences: Iterable[Sentence]) -> list[Sentence]:
        """Return the sentences with tags, heads and relations; other columns stay."""
        given = list(sentences)
        document = self._pipeline([list(one.words) for one in given])
        return [
            replace(
                sentence,
                upos=tuple(word.upos for word in parsed.words),
                heads=repair_heads([word.head for word in parsed.words])[0],
                deprels=tuple(word.deprel for word in parsed.words),
            )
            for sentence, parsed in zip(given, document.sentences, strict=True)
        ]


Parser = Callable[[Iterable[Sentence]], list[Sentence]]


def parse_texts(parser: Parser, texts: Sequence[Sentence]) -> list[Sentence]:
    """Parse texts of one or more sentences; the root of each sentence is a root of the text.

    Args:
        parser: of sentences.
        texts: words with whatever else is known; other columns stay.
    """
    spans = [split_sentences(text.words) for text in texts]
    parts = [Sentence(text.words[a:b]) for text, own in zip(texts, spans, strict=True) for a, b in own]
    parsed = iter(parser(parts))
    found = []
    for text, own in zip(texts, spans, strict=True):
        trees = [(start, next(parsed)) for start, _ in own]
        found.append(
            replace(
                text,
                upos=tuple(tag for _, tree in trees for tag in tree.upos),
                heads=tuple(head + start if head else 0 for start, tree in trees for head in tree.heads),
                deprels=tuple(relation for _, tree in trees for relation in tree.deprels),
            )
        )
    return found


# ---- controls and scores


def left_chain(sentence: Sentence) -> Sentence:
    """Hang every word on the one before it."""
    return replace(sentence, heads=tuple(range(len(sentence.words))))


def right_chain(sentence: Sentence) -> Sentence:
    """Hang every word on the one behind it."""
    size = len(sentence.words)
    return replace(sentence, heads=(*range(2, size + 1), 0)[:size])


def sentence_counts(gold: Sequence[Sentence], predicted: Sequence[Sentence]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Count each sentence's words, right heads, right heads with relation, and right tags (n x 4), to resample them."""
    rows = []
    for one, other in zip(gold, predicted, strict=True):
        right = [a == b for a, b in zip(one.heads, other.heads, strict=True)]
        relations = [universal(a) == universal(b) for a, b in zip(one.deprels, other.deprels, strict=True)]
        labelled = sum(a and b for a, b in zip(right, relations, strict=True))
        tags = sum(a == b for a, b in zip(one.upos, other.upos, strict=True))
        rows.append((len(one.words), sum(right), labelled, tags))
    return np.array(rows, dtype=np.int64)


def resampled(counts: np.ndarray[Any, np.dtype[np.int64]], seed: int, num_resamples: int = 1000) -> list[Attachment]:
    """Return the scores of resampled sentences, lowest and highest 2.5 % cut: two `Attachment`s.

    Args:
        counts: of `sentence_counts`.
        seed: of the bootstrap.
        num_resamples: how many.
    """
    rng = numpy_generator(seed, "attachment bootstrap")
    sums = counts[rng.integers(len(counts), size=(num_resamples, len(counts)))].sum(1)
    low, high = np.quantile(sums[:, 1:] / sums[:, :1], (0.025, 0.975), axis=0)
    num_words = int(counts[:, 0].sum())
    return [Attachment(float(row[0]), float(row[1]), float(row[2]), num_words) for row in (low, high)]
