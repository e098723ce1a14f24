"""From a configuration to priors: each source by its name, fall-backs between them, and what was missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import Coverage, Dictionary, coverage, language_name, read_dictionary
from polyloom.generation.decode import Decoding, decode
from polyloom.methods.prefix import priors as made
from polyloom.methods.prefix.config import DictionaryOptions, PriorOptions, Task
from polyloom.methods.prefix.inputs import (
    TEMPLATES,
    Item,
    Loaded,
    first_difference,
    fit_prompts,
    load,
    read_items,
    read_json_lines,
    render_prompts,
)
from polyloom.methods.prefix.priors import Prior, text_prior


@dataclass
class Session:
    """A base model with its inputs and prompts; tuned and small models are opened when a source asks for them.

    `shared` holds what the parts of a session have in common: opened models, the dictionary, all source texts.
    """

    config: PriorOptions
    task: Task
    template: str
    base: Loaded
    items: list[Item]
    texts: list[str]
    prompts: list[list[int]]
    notes: list[str] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)

    def part(self, start: int, end: int) -> Session:
        """Return the session of some rows."""
        rows = slice(start, end)
        return replace(self, items=self.items[rows], texts=self.texts[rows], prompts=self.prompts[rows], notes=[])

    @property
    def sources(self) -> list[str]:
        """The source texts."""
        return [item.source for item in self.items]

    def other(self, option: str) -> Loaded:
        """Open the model behind `--sft` or `--small`."""
        if option not in self.shared:
            source = str(getattr(self.config, option))
            self.shared[option] = load(source, f"--{option}", trust_remote_code=self.config.trust_remote_code)
        found: Loaded = self.shared[option]
        return found


def open_session(config: PriorOptions, task: Task) -> Session:
    """Load the base model, read the inputs and write the prompts.

    Args:
        config: the verb's configuration.
        task: gives the template where the configuration has none.

    Raises:
        UserError: a prior beyond the budget, a bad template or language, no model, no texts.
    """
    made.check_budget(config.k, config.max_new_tokens)
    check_sources(config)
    items = read_items(config.input, config.text_field, config.reference_field, config.encoding)
    template = task_template(config.template, task)
    texts = render_prompts(template, items, config.source_language, config.target_language)
    base = load(config.base, "--base", trust_remote_code=config.trust_remote_code)
    session = Session(config, task, template, base, items, texts, [], shared={"sources": [i.source for i in items]})
    set_prompts(session, [base.encode_prompt(text) for text in texts])
    return session


def set_prompts(session: Session, prompts: list[list[int]]) -> None:
    """Give a session its prompts, cut where they leave no room for the answer, and say how many were."""
    config = session.config
    budget = config.max_new_tokens + max(config.k, made.MAX_INFORMATIVE_TOKENS)
    session.prompts, num_cut = fit_prompts(session.base, prompts, budget)
    note = "prompts were cut at their beginning to fit the model's positions."
    session.notes = [one for one in session.notes if not one.endswith(note)]
    if num_cut:
        session.notes.append(f"{num_cut} {note}")


def task_template(template: str, task: Task) -> str:
    """Return the user's template, or the task's own."""
    return template or TEMPLATES[task]


NEEDS = {
    "sft": "sft",
    "wrong-language": "sft",
    "foreign-content": "sft",
    "refined": "small",
    "small-lm": "small",
    "pseudo": "dictionary",
    "lexicon-gate": "dictionary",
    "language-gate": "memory",
    "translation-memory": "memory",
    "file": "priors",
    "constant": "constant",
}


def check_sources(config: PriorOptions) -> None:
    """Refuse a source whose material is absent, before anything is loaded.

    Raises:
        UserError: it names the option.
    """
    for name in config.prior:
        need = NEEDS.get(name, "")
        if need and not getattr(config, need):
            raise UserError(f"the prior source {name!r} needs --{need}.", where="--prior")
    if "wrong-language" in config.prior and config.target_language == config.wrong_language:
        raise UserError("the control needs another language than the target.", where="--wrong-language")
    if config.wrong_language:
        language_name(config.wrong_language, "--wrong-language")


def build_priors(session: Session, names: Sequence[str], k: int) -> list[Prior]:
    """Build each row's prior: the first of the named sources that has tokens.

    Args:
        session: model and inputs.
        names: sources in order of preference.
        k: tokens.

    Raises:
        UserError: material that is absent or does not fit.
    """
    columns = [_SOURCES[name](session, k) for name in names]
    return made.with_fallback(columns)


def open_dictionary(
    config: DictionaryOptions, target_language: str, texts: Sequence[str]
) -> tuple[Dictionary, Coverage]:
    """Read the dictionary and measure its hit rate on the source texts.

    Raises:
        UserError: none named, unreadable, empty, or running the other way.
    """
    if config.dictionary is None:
        raise UserError("needs a dictionary.", where="--dictionary", hint="Name a bilingual dictionary's file.")
    found = read_dictionary(
        config.dictionary,
        format=config.dictionary_format,
        encoding=config.encoding,
        target_language=target_language if config.dictionary_format in ("auto", "wiktextract") else "",
    )
    if config.invert:
        found = found.inverted()
    hits = coverage(found, texts)
    if hits.is_reversed:
        raise UserError(
            f"{hits.hit_rate:.0%} of the texts' words are headwords, {hits.reversed_hit_rate:.0%} are translations.",
            where=str(config.dictionary),
            hint="Did you swap source and target? Turn it round with --invert.",
        )
    return found, hits


def _dictionary(session: Session) -> Dictionary:
    """Return the dictionary, read once and measured on all texts."""
    if "dictionary" not in session.shared:
        texts = session.shared["sources"]
        session.shared["dictionary"] = open_dictionary(session.config, session.config.target_language, texts)
    found, hits = cast("tuple[Dictionary, Coverage]", session.shared["dictionary"])
    note = f"The dictionary has {hits.hit_rate:.1%} of the {hits.num_words} words of the texts."
    if note not in session.notes:
        session.notes.append(note)
    return as_tagged(found) if session.task == "tag" else found


def as_tagged(lexicon: Dictionary) -> Dictionary:
    """Return a lexicon of words and their tags as a dictionary from a word to `word_TAG`, as tagged text is written."""
    entries = {
        word: tuple(replace(one, text=f"{word}_{one.text.upper()}") for one in tags)
        for word, tags in lexicon.entries.items()
    }
    return Dictionary(entries, lexicon.format, lexicon.num_lines)


def _none(session: Session, k: int) -> list[Prior]:
    return [Prior((), "none") for _ in session.items]


def _sft(session: Session, k: int) -> list[Prior]:
    return _tuned(session, session.texts, k, "sft")


def _tuned(session: Session, texts: Sequence[str], k: int, source: str) -> list[Prior]:
    """Take the tuned model's first tokens; with another tokenizer its first text, encoded again."""
    tuned, base = session.other("sft"), session.base
    prompts = [tuned.encode_prompt(text) for text in texts]
    difference = first_difference(base.tokenizer, tuned.tokenizer)
    if not difference and tuned.encoder_decoder == base.encoder_decoder:
        return made.model_priors(tuned.model, prompts, k, source, session.config.batch_size)
    note = f"Tokenizers differ ({difference or 'other family'}): the SFT model's priors are passed as text."
    if note not in session.notes:
        session.notes.append(note)
    found = decode(tuned.model, prompts, Decoding(max(8, 4 * k)), tokenizer=tuned.tokenizer)
    return [
        text_prior(base.tokenizer, prompt, one.text, k, source)
        for prompt, one in zip(session.prompts, found, strict=True)
    ]


def _refined(session: Session, k: int) -> list[Prior]:
    return made.refined_priors(_small_texts(session, k), session.base.tokenizer, session.prompts, k)


def _small_texts(session: Session, k: int) -> list[str]:
    small, config = session.other("small"), session.config
    texts = render_prompts(config.small_template, session.items, config.source_language, config.target_language)
    found = decode(
        small.model,
        [small.encode_prompt(text) for text in texts],
        Decoding(max(8, 4 * k)),
        tokenizer=small.tokenizer,
        batch_size=config.batch_size,
    )
    return [one.text.split("\n")[0] if one.text.strip() else "" for one in found]


def _small_lm(session: Session, k: int) -> list[Prior]:
    proposed = [
        text_prior(session.base.tokenizer, prompt, text, k, "small-lm")
        for prompt, text in zip(session.prompts, _small_texts(session, k), strict=True)
    ]
    return made.accepted_priors(session.base.model, session.prompts, proposed, session.config.max_rank)


def _pseudo(session: Session, k: int) -> list[Prior]:
    config = session.config
    return made.pseudo_priors(
        session.base.model,
        session.base.tokenizer,
        session.prompts,
        session.sources,
        _dictionary(session),
        k,
        informative=config.informative,
        heal=config.heal,
        batch_size=config.batch_size,
    )


def _lexicon_gate(session: Session, k: int) -> list[Prior]:
    gates = made.dictionary_gates(session.base.tokenizer, session.prompts, session.sources, _dictionary(session))
    return made.gate_priors(session.base.model, session.prompts, gates, "lexicon-gate")


def _language_gate(session: Session, k: int) -> list[Prior]:
    pairs = read_memory(session.config)
    sources, targets = zip(*pairs, strict=True)
    gate = made.language_gate(session.base.tokenizer, session.prompts[0], targets, sources)
    return made.gate_priors(session.base.model, session.prompts, [gate] * len(session.items), "language-gate")


def _from_texts(name: str, find: Callable[[Session], Sequence[str]]) -> Callable[[Session, int], list[Prior]]:
    def source(session: Session, k: int) -> list[Prior]:
        heal = session.config.heal and name not in ("gold", "translation-memory")
        return [
            text_prior(session.base.tokenizer, prompt, text, k, name, heal=heal)
            for prompt, text in zip(session.prompts, find(session), strict=True)
        ]

    return source


def _references(session: Session) -> list[str]:
    if not any(item.reference for item in session.items):
        raise UserError(
            f"the inputs have no references under {session.config.reference_field!r}.",
            where=str(session.config.input),
            hint="Gold priors need JSON lines with references.",
        )
    return [item.reference for item in session.items]


def _prior_texts(session: Session) -> list[str]:
    assert session.config.priors is not None
    stored = {
        str(row.get("id", number)): row.get("prior")
        for number, row in enumerate(read_json_lines(session.config.priors, session.config.encoding), start=1)
    }
    return [text if isinstance(text := stored.get(item.id), str) else "" for item in session.items]


def read_memory(config: PriorOptions) -> list[tuple[str, str]]:
    """Read `--memory`: pairs of source and target.

    Raises:
        UserError: none named, or a line without both.
    """
    if config.memory is None:
        raise UserError("needs examples.", where="--memory", hint="Name JSON lines with text and reference.")
    items = read_items(config.memory, config.text_field, config.reference_field, config.encoding)
    pairs = [(item.source, item.reference) for item in items if item.reference]
    if not pairs:
        raise UserError(f"has no references under {config.reference_field!r}.", where=str(config.memory))
    return pairs


def _wrong_language(session: Session, k: int) -> list[Prior]:
    config = session.config
    if not config.wrong_language:
        raise UserError("the control wrong-language needs a language.", where="--wrong-language")
    texts = render_prompts(session.template, session.items, config.source_language, config.wrong_language)
    return _tuned(session, texts, k, "wrong-language")


def _foreign_content(session: Session, k: int) -> list[Prior]:
    return made.rotated(_sft(session, k), "foreign-content")


def candidate_priors(session: Session, names: Sequence[str], k: int, number: int) -> list[list[Prior]]:
    """Return up to `number` different priors for each text: each source's own, then a first word's translations.

    Args:
        session: model and inputs.
        names: sources in order of preference.
        k: tokens.
        number: priors kept.
    """
    columns = [_SOURCES[name](session, k) for name in names]
    rows = [[prior for prior in row if prior.tokens] for row in zip(*columns, strict=True)]
    if "pseudo" in names:
        dictionary, tokenizer = _dictionary(session), session.base.tokenizer
        for row, prompt, source in zip(rows, session.prompts, session.sources, strict=True):
            words = made.first_options(source, dictionary)
            row += [one for word in words if (one := text_prior(tokenizer, prompt, word, k, "pseudo")).tokens]
    return [_different(row)[:number] or [columns[-1][i]] for i, row in enumerate(rows)]


def _different(priors: Sequence[Prior]) -> list[Prior]:
    found: dict[tuple[int, ...], Prior] = {}
    for prior in priors:
        found.setdefault(prior.tokens, prior)
    return list(found.values())


def words_of(text: str, k: int) -> str:
    """Return the first k words of a text: what a prior is for a server, whose tokens are not known here."""
    return "".join(re.findall(r"\s*\S+", text.strip())[:k])


_SOURCES: dict[str, Callable[[Session, int], list[Prior]]] = {
    "none": _none,
    "sft": _sft,
    "refined": _refined,
    "pseudo": _pseudo,
    "lexicon-gate": _lexicon_gate,
    "language-gate": _language_gate,
    "gold": _from_texts("gold", _references),
    "file": _from_texts("file", _prior_texts),
    "translation-memory": _from_texts(
        "translation-memory", lambda session: made.nearest_targets(session.sources, read_memory(session.config))
    ),
    "constant": _from_texts("constant", lambda session: [session.config.constant] * len(session.items)),
    "small-lm": _small_lm,
    "wrong-language": _wrong_language,
    "foreign-content": _foreign_content,
}
