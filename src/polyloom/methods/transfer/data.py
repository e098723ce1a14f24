"""Where examples, trees and dictionaries come from: the user's files, or the embedded world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.core.seeding import derive_seed
from polyloom.data.dictionaries import Dictionary
from polyloom.data.labelled import read_labelled
from polyloom.data.records import Example, Sentence, split_words, surface
from polyloom.data.treebanks import read_conllu
from polyloom.data.world import World
from polyloom.data.world.frames import Frame
from polyloom.data.world.labelled import COARSE
from polyloom.data.world.monolingual import any_frame
from polyloom.data.world.render import Token, bio
from polyloom.data.world.trees import tree
from polyloom.methods.transfer.config import TransferEvaluateConfig, TransferTrainConfig
from polyloom.methods.transfer.induction import InductionOptions, induce
from polyloom.methods.transfer.inflection import Inflector, read_inflector
from polyloom.methods.transfer.lexicon import (
    hits_of,
    lexicon_notices,
    open_lexicons,
    phrased,
    read_weights,
    world_lexicon,
)

WORLD = "world"
DEV_SHARE = 10
WORLD_KINDS = ("fact", "fact", "diary", "question", "question")
ASKED = ("P37", "P38", "P361", "P17")
WORLD_TRAIN, WORLD_DEV, WORLD_TEST = 600, 150, 300


@dataclass
class Data:
    """Everything that a comparison reads.

    `source` is the language of `train` and `dev`; `tests` and `oracles` are by language; `texts` are sentences for
    masked language modelling, the target languages' among them; `notices` are sentences for the report.
    """

    source: str
    train: list[Example]
    dev: list[Example]
    tests: dict[str, list[Example]]
    oracles: dict[str, list[Example]] = field(default_factory=dict)
    lexicons: dict[str, Dictionary] = field(default_factory=dict)
    translations: dict[str, list[Example]] = field(default_factory=dict)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    has_trees: bool = False
    inflector: Inflector | None = None
    notices: list[str] = field(default_factory=list)


def split_specs(specs: Sequence[str], option: str) -> dict[str, list[Path]]:
    """Read `LANGUAGE=FILE` items; a language may have several files.

    Raises:
        UserError: an item without `=`.
    """
    found: dict[str, list[Path]] = {}
    for spec in specs:
        language, equals, name = spec.partition("=")
        if not (equals and language and name):
            raise UserError(f"{spec!r} names no language.", where=option, hint="Write LANGUAGE=FILE.")
        found.setdefault(language, []).append(Path(name))
    return found


def read_data(config: TransferTrainConfig, needs_trees: bool) -> Data:
    """Read what a configuration names.

    Args:
        config: the files; `world` for the embedded world.
        needs_trees: an arm has a graph: every language needs trees.

    Raises:
        UserError: a file that cannot be read, or a test language without trees.
    """
    if config.data == [WORLD]:
        return world_data(config.language, ["de", "es"], config.seed)
    notices: Counter[str] = Counter()
    read = partial(read_examples, config=config, notices=notices)
    train = read([Path(name) for name in config.data], config.language)
    dev = read([Path(name) for name in config.dev], config.language)
    if not dev:
        train, dev = split_dev(train)
    data = Data(config.language, train, dev, {})
    data.tests = {code: read(paths, code) for code, paths in split_specs(config.test, "--test").items()}
    data.oracles = {code: read(paths, code) for code, paths in split_specs(config.target_dev, "--target-dev").items()}
    data.translations = {code: read(p, code) for code, p in split_specs(config.translations, "--translations").items()}
    if not config.dev and data.translations:
        raise UserError("translations need --dev: a split would part them from the data.", where="--translations")
    for code, examples in data.translations.items():
        if len(examples) != len(train):
            what = f"{len(examples)} translations into {code} for {len(train)} examples."
            raise UserError(what, where="--translations", hint="Translate line by line.")
        # A translation has the class of its source; word tags only where the file gives them.
        examples[:] = [replace(one, label=of.label) for one, of in zip(examples, train, strict=True)]
    data.notices = [f"{count} {what}." for what, count in notices.items()]
    _add_trees(data, split_specs(config.trees, "--trees"), needs_trees, config.strict)
    _add_lexicons(data, config)
    if config.inflect:
        source = split_specs(config.trees, "--trees").get(config.language, [])
        if not source:
            hint = f"Add --trees {config.language}=FILE."
            raise UserError("forms are chosen by the features of the source's trees.", where="--inflect", hint=hint)
        data.inflector = read_inflector(source, split_specs(config.inflect, "--inflect"))
    data.texts = read_texts(config.pretrain) if config.pretrain else data.texts
    return data


def read_examples(
    paths: Sequence[Path],
    language: str,
    config: TransferTrainConfig | TransferEvaluateConfig,
    notices: Counter[str],
) -> list[Example]:
    """Read labelled files of a language; what was repaired or dropped is added to the notices."""
    examples = []
    for number, path in enumerate(paths):
        found = read_labelled(path, format=config.format, language=language, strict=config.strict)
        notices.update(found.notices)
        # Ids name random streams and cached trees: those of two files must not meet.
        examples += [replace(one, id=f"{number}/{one.id}" if number else one.id) for one in found.examples]
    return unique_ids(examples)


def unique_ids(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with a number behind ids that occur before."""
    seen: Counter[str] = Counter()
    result = []
    for one in examples:
        seen[one.id] += 1
        result.append(one if seen[one.id] == 1 else replace(one, id=f"{one.id}#{seen[one.id]}"))
    return result


def split_dev(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Hold a tenth out by the hash of its words, so that equal texts are on one side."""

    def is_dev(example: Example) -> bool:
        return derive_seed(0, "dev", *(word for one in example.sentences for word in one.words)) % DEV_SHARE == 0

    dev = [example for example in examples if is_dev(example)]
    return [example for example in examples if not is_dev(example)], dev


def read_trees(code: str, paths: Sequence[Path], strict: bool) -> tuple[list[Sentence], list[str]]:
    """Read treebanks of a language, and say what was repaired, with the first place of each file."""
    banks = [read_conllu(path, strict=strict) for path in paths]
    notices = [
        f"Trees of {code}: {', '.join(f'{count} {what}' for what, count in bank.repairs.items())} repaired, "
        f"first in {bank.places[0]}."
        for bank in banks
        if bank.places
    ]
    return [one for bank in banks for one in bank.sentences], notices


def _add_trees(data: Data, files: Mapping[str, Sequence[Path]], needs_trees: bool, strict: bool) -> None:
    parts = [(data.source, data.train), (data.source, data.dev), *data.tests.items(), *data.oracles.items()]
    parts += list(data.translations.items())
    for code in files:
        trees, notices = read_trees(code, files[code], strict)
        data.notices += notices
        index = tree_index(trees)
        # Without a text of its own the tiny encoder reads the treebanks' sentences.
        data.texts += [one.words for one in trees]
        for language, examples in parts:
            if language == code:
                examples[:], missing = with_trees(examples, index)
                if missing:
                    data.notices.append(f"{missing} sentences of {code} have no tree: their words hang on [CLS].")
    data.has_trees = True
    for language, examples in parts:
        share = sum(bool(one.heads) for e in examples for one in e.sentences) if examples else 1
        data.has_trees &= share > 0
        if needs_trees and not share:
            hint = f"Add --trees {language}=FILE, train a parser with `transfer parse`, or leave the syntax arms out."
            raise UserError(
                f"the data of {language!r} have no trees, and the graph needs them.", where="--arms", hint=hint
            )


Index = dict[tuple[str, ...], list[Sentence]]


def tree_index(trees: Iterable[Sentence]) -> Index:
    """Return trees by their words: syntactic words first, and the words of the written text where they differ."""
    index: Index = {}
    for one in trees:
        index.setdefault(one.words, []).append(one)
        if one.ranges:
            written = surface(one)
            index.setdefault(written.words, []).append(written)
    return index


def with_trees(examples: Sequence[Example], index: Index) -> tuple[list[Example], int]:
    """Give examples the trees of a treebank, matched by their words: ids and order may differ.

    Args:
        examples: labels are kept.
        index: of `tree_index`; words that occur several times take the trees in turn.

    Returns:
        All examples in their order, and the number of sentences for which there was none.
    """
    used: Counter[tuple[str, ...]] = Counter()
    missing = 0
    result = []
    for example in examples:
        sentences = []
        for one in example.sentences:
            found = index.get(one.words)
            if found:
                bank = found[used[one.words] % len(found)]
                used[one.words] += 1
                sentences.append(replace(one, upos=bank.upos, heads=bank.heads, deprels=bank.deprels))
            else:
                missing += not one.heads
                sentences.append(one)
        result.append(replace(example, sentences=tuple(sentences)))
    return result, missing


def _add_lexicons(data: Data, config: TransferTrainConfig) -> None:
    if not config.dictionaries:
        return
    data.lexicons = open_lexicons(
        config.dictionaries,
        scripts=config.scripts,
        reverse=config.reverse,
        avoid=config.avoid,
        prefer=config.prefer,
    )
    if config.phrases:
        data.train = phrased(data.train, data.lexicons)
    read_weights(config.weights, data.lexicons)
    hits = hits_of(data.lexicons, data.train)
    targets = [code for code in data.tests if code != data.source]
    data.notices += lexicon_notices(hits, targets)
    data.notices += [f"The dictionary into {one.language} has {one.rate:.0%} of the training words." for one in hits]


def read_texts(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Read sentences for masked language modelling: CoNLL-U files as their words, others line by line."""
    texts: list[tuple[str, ...]] = []
    for name in names:
        path = Path(name)
        if path.suffix == ".conllu":
            texts += [one.words for one in read_conllu(path).sentences]
        else:
            texts += [split_words(line) for line in read_text(path).splitlines() if line.strip()]
    if not texts:
        raise UserError("holds no text.", where="--pretrain")
    return texts


# ---- the embedded world


def world_example(world: World, language: str, index: int, split: str) -> Example:
    """Say one meaning in a language, with its tree, its entity tags and the kind of statement as class.

    Args:
        world: of the language; the same index has the same meaning in all of its languages.
        language: to say it in.
        index: number of the meaning.
        split: `train`, `valid` or `test`.
    """
    draw = world.draw("transfer", index, split)
    kind = draw.rng.choice(WORLD_KINDS)
    if kind == "question":
        asked = draw.rng.choice(ASKED)
        subject = draw.city() if asked == "P17" else draw.rng.choice(draw.territories())
        frame = Frame("question", (asked, subject))
    else:
        frame = any_frame(draw, kind)
    said = world.text(frame, language, variant=draw.rng.randint(0, 1) if frame.args[0] != "P17" else 0)
    nodes = tree(said)
    places, at = [], 0
    for node in nodes:
        at = said.text.index(node.form, at)
        places.append(Token(node.form, at, at + len(node.form)))
        at += len(node.form)
    tags = [tag if tag == "O" else tag[:2] + COARSE[tag[2:]] for tag in bio(said, places)]
    relation = str(frame.args[0]) if frame.kind in ("fact", "question") else ""
    sentence = Sentence(
        tuple(node.form for node in nodes),
        upos=tuple(node.upos for node in nodes),
        heads=tuple(node.head for node in nodes),
        deprels=tuple(node.deprel for node in nodes),
        labels=tuple(tags),
        id=f"{language}-{split}-{index}",
        text=said.text,
    )
    return Example(f"{split}-{index}", (sentence,), f"{frame.kind}{relation and ' ' + relation}", language)


def world_data(
    source: str, targets: Sequence[str], seed: int, num_train: int = WORLD_TRAIN, num_test: int = WORLD_TEST
) -> Data:
    """Make training data in the source language, and test data that say other meanings in all languages.

    Args:
        source: the language with labels.
        targets: the languages without.
        seed: of the meanings.
        num_train: labelled sentences, and unlabelled ones of each language.
        num_test: test sentences of each language.
    """
    codes = [source, *(code for code in targets if code != source)]
    world = World(codes, seed)

    def make(language: str, split: str, number: int, first: int = 0) -> list[Example]:
        return [world_example(world, language, first + index, split) for index in range(number)]

    train, dev = make(source, "train", num_train), make(source, "valid", WORLD_DEV)
    tests = {code: make(code, "test", num_test) for code in codes}
    # Unlabelled text says other meanings than the training data and the test, the same ones in all languages.
    raw = {code: make(code, "valid", num_train, WORLD_DEV) for code in codes}
    lexicons = {code: _world_dictionary(world, source, code, raw) for code in codes[1:]}
    texts = [one.sentences[0].words for examples in (train, *raw.values()) for one in examples]
    return Data(source, train, dev, tests, lexicons=lexicons, texts=texts, has_trees=True)


def _world_dictionary(world: World, source: str, target: str, raw: Mapping[str, Sequence[Example]]) -> Dictionary:
    """Return the world's names, and behind them what parallel unlabelled sentences teach of the other words."""
    texts = zip(raw[source], raw[target], strict=True)
    pairs = [(_alphabetic(a), _alphabetic(b)) for a, b in texts]
    names = world_lexicon(world, source, target)
    return replace(names, entries={**induce(pairs, InductionOptions()).entries, **names.entries}, _folded={})


def _alphabetic(example: Example) -> tuple[str, ...]:
    return tuple(word for word in example.sentences[0].words if word[0].isalpha())
