"""The verbs translate, generate and dictionary."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, write_text
from polyloom.core.result import Artifact, Result, Scalar, Table
from polyloom.data.dictionaries import language_name, read_dictionary
from polyloom.generation.chat import ask, complete_all
from polyloom.generation.decode import Decoding
from polyloom.generation.endpoints import connect
from polyloom.generation.text import decode_tokens
from polyloom.methods.prefix.beam import BackPrompt, choose_answers, continue_all
from polyloom.methods.prefix.checks import language_remarks, time_remarks
from polyloom.methods.prefix.config import DictionaryConfig, GenerateConfig, Task, TranslateConfig
from polyloom.methods.prefix.inputs import Item, in_context, read_items, render_prompts
from polyloom.methods.prefix.method import Generation
from polyloom.methods.prefix.priors import Prior, check_budget
from polyloom.methods.prefix.sources import (
    Session,
    build_priors,
    candidate_priors,
    check_sources,
    open_dictionary,
    open_session,
    read_memory,
    set_prompts,
    task_template,
    words_of,
)
from polyloom.metrics.text import copy_rate, empty_rate
from polyloom.models.device import pin_threads
from polyloom.runs.folder import Run

SHOWN_ROWS = 20
ROWS_PER_STEP = 64
SERVER_SOURCES = ("none", "gold", "file", "constant")


def run_translate(config: TranslateConfig, run: Run) -> Result:
    """Translate texts with prior tokens in front of each answer.

    Args:
        config: models, texts, prior sources, k.
        run: the run; answers are stored batch by batch, so that a stopped one goes on.

    Returns:
        Answers as JSON lines, what was missing, and a sample.

    Raises:
        UserError: anything that `open_session` and the sources refuse.
    """
    return _answer(config, run, "translate")


def run_generate(config: GenerateConfig, run: Run) -> Result:
    """Do any templated task with prior tokens; see `run_translate`."""
    return _answer(config, run, config.task)


def _answer(config: TranslateConfig, run: Run, task: Task) -> Result:
    if config.base.startswith(("http://", "https://")):
        rows = _server_answers(config, run, task_template(config.template, task))
        notes = [f"The server's tokens are not known here: k = {config.k} counts words, and the prior is sent as text."]
        return _answers_result(config, run, rows, notes)
    pin_threads()
    session = open_session(config, task)
    _add_examples(session, config)
    remarks(session)
    rows = []
    with run.progress("prefix: answers", len(session.items)) as advance:
        for start in range(0, len(session.items), ROWS_PER_STEP):
            part = session.part(start, start + ROWS_PER_STEP)
            step = run.once(f"answers {start}", lambda part=part: _answer_part(part, config))  # type: ignore[misc]
            rows += step["rows"]
            session.notes += [note for note in step["notes"] if note not in session.notes]
            advance(len(part.items))
            # Each batch is on the disk before the next begins.
            write_text(run.artifact("answers.jsonl"), json_lines(rows))
    return _answers_result(config, run, rows, session.notes)


def remarks(session: Session) -> None:
    """Note what a user should know first; how long it will take is said at once."""
    waiting = time_remarks(session)
    for line in waiting:
        sys.stderr.write(f"{line}\n")
    session.notes += waiting + language_remarks(session)


def _add_examples(session: Session, config: TranslateConfig) -> None:
    if not config.shots and config.in_context == "plain":
        return
    shown: list[tuple[str, str]] = []
    if config.shots:
        memory = read_memory(config)
        if len(memory) < config.shots:
            raise UserError(f"has {len(memory)} examples for {config.shots} shots.", where=str(config.memory))
        pairs = [Item(str(i), source, target) for i, (source, target) in enumerate(memory[: config.shots])]
        prompts = render_prompts(session.template, pairs, config.source_language, config.target_language)
        shown = [(prompt, pair.reference) for prompt, pair in zip(prompts, pairs, strict=True)]
    texts = in_context(session.texts, shown, config.in_context)
    set_prompts(session, [session.base.encode_prompt(text) for text in texts])


def _answer_part(session: Session, config: TranslateConfig) -> dict[str, Any]:
    settings = Decoding(config.max_new_tokens, stop=tuple(config.stop))
    model, tokenizer = session.base.model, session.base.tokenizer

    def answer(prompts: Sequence[Sequence[int]], priors: Sequence[Prior]) -> list[Generation]:
        tokens = [prior.tokens for prior in priors]
        return continue_all(
            model, tokenizer, prompts, tokens, settings, num_beams=config.beams, batch_size=config.batch_size
        )

    if config.candidates > 1:
        options = candidate_priors(session, config.prior, config.k, config.candidates)
        back = (config.reconstruction, _back_prompt(session), session.sources) if config.reconstruction else None
        chosen = choose_answers(
            model, tokenizer, session.prompts, options, answer, back=back, batch_size=config.batch_size
        )
        priors, answers = [one.noted for one in chosen], [one.answer for one in chosen]
    else:
        priors = build_priors(session, config.prior, config.k)
        answers = answer(session.prompts, priors)
    rows = [
        {
            "id": item.id,
            "source": item.source,
            "output": one.text.strip(),
            **({"reference": item.reference} if item.reference else {}),
            "prior": decode_tokens(tokenizer, prior.tokens),
            "prior_tokens": list(prior.tokens),
            "prior_source": prior.source,
            "note": prior.note,
            "finish_reason": one.finish_reason,
        }
        for item, prior, one in zip(session.items, priors, answers, strict=True)
    ]
    return {"rows": rows, "notes": session.notes}


def _back_prompt(session: Session) -> BackPrompt:
    """Return the prompt that asks for an answer's source: the same template with the languages changed over."""
    config = session.config

    def prompt(row: int, answer: str) -> list[int]:
        given = [Item(session.items[row].id, answer or "-")]
        (text,) = render_prompts(session.template, given, config.target_language, config.source_language)
        return session.base.encode_prompt(text)

    return prompt


def _server_answers(config: TranslateConfig, run: Run, template: str) -> list[dict[str, Any]]:
    """Answer through a server that continues a prefilled assistant turn."""
    check_budget(config.k, config.max_new_tokens)
    check_sources(config)
    unfit = [name for name in config.prior if name not in SERVER_SOURCES]
    if unfit:
        raise UserError(
            f"the prior source {unfit[0]!r} needs a local base model.",
            where="--prior",
            hint=f"For a server: {', '.join(SERVER_SOURCES)}; build others with `prefix prior` and give them as file.",
        )
    items = read_items(config.input, config.text_field, config.reference_field, config.encoding)
    texts = render_prompts(template, items, config.source_language, config.target_language)
    stored = _stored_priors(config) if "file" in config.prior else {}
    rows = []
    for item in items:
        texts_by_source = {
            "none": "",
            "gold": item.reference,
            "constant": config.constant,
            "file": stored.get(item.id, ""),
        }
        name = next((name for name in config.prior if texts_by_source[name]), config.prior[-1])
        rows.append((name, words_of(texts_by_source[name], config.k)))
    requests = [
        ask(text, prefill=prior, max_tokens=config.max_new_tokens, stop=tuple(config.stop))
        for text, (_, prior) in zip(texts, rows, strict=True)
    ]
    model = connect(config.base, cache=run.path / "replies.sqlite", seed=config.seed, prefill=config.prefill)
    with run.progress("prefix: answers", len(items)) as advance:
        replies = complete_all(model, requests, progress=advance)
    return [
        {
            "id": item.id,
            "source": item.source,
            "output": (prior + reply.text).strip(),
            **({"reference": item.reference} if item.reference else {}),
            "prior": prior,
            "prior_source": name,
            "note": "" if reply.ok else f"{reply.outcome}: {reply.error}",
            "finish_reason": reply.outcome,
        }
        for item, (name, prior), reply in zip(items, rows, replies, strict=True)
    ]


def _stored_priors(config: TranslateConfig) -> dict[str, str]:
    assert config.priors is not None
    return {item.id: item.source for item in read_items(config.priors, "prior", "", config.encoding)}


def _answers_result(config: TranslateConfig, run: Run, rows: list[dict[str, Any]], notes: list[str]) -> Result:
    write_text(run.artifact("answers.jsonl"), json_lines(rows))
    if config.output is not None:
        write_text(config.output, json_lines(rows))
    outputs = [str(row["output"]) for row in rows]
    missing = sum(not row["prior"] and not row.get("prior_tokens") for row in rows)
    used = Counter(str(row["prior_source"]) for row in rows if row["prior"])
    asked = config.prior != ["none"] and config.k > 0
    rates = {
        "copy_rate": copy_rate(outputs, [str(row["source"]) for row in rows]),
        "empty_rate": empty_rate(outputs),
    }
    verdict = (
        f"{len(rows)} answers, {missing} of them without a prior." if asked else f"{len(rows)} answers, no priors."
    )
    return run.result(
        scalars={
            "num_texts": Scalar(value=len(rows)),
            "num_without_prior": Scalar(value=missing),
            **{name: Scalar(value=value, unit="share") for name, value in rates.items()},
        },
        tables={
            "answers": Table(
                columns=["id", "source", "prior", "answer"],
                rows=[[r["id"], r["source"][:200], r["prior"], r["output"][:200]] for r in rows[:SHOWN_ROWS]],
                title=f"The first {min(SHOWN_ROWS, len(rows))} answers",
            ),
            "sources": counts_table(used, Counter(r["note"] for r in rows if r["note"])),
        },
        artifacts={
            "answers": Artifact(path="artifacts/answers.jsonl", media_type="application/jsonl", description=verdict)
        },
        verdicts=[verdict, *notes],
        limitations=[
            "Answers end at the stop texts; the prior counts as part of the answer and not towards its budget."
        ],
    )


def counts_table(used: Counter[str], notes: Counter[str]) -> Table:
    """Return which sources gave priors, and the commonest remarks on them."""
    rows: list[list[str | int | float | bool | None]] = [["used", name, number] for name, number in used.most_common()]
    rows += [["note", name, number] for name, number in notes.most_common(SHOWN_ROWS)]
    return Table(columns=["what", "prior source or note", "texts"], rows=rows, title="Where the priors come from")


# ---- dictionary


def run_dictionary(config: DictionaryConfig, run: Run) -> Result:
    """Read a bilingual dictionary, look words up, and measure its hit rate on texts.

    Args:
        config: the file, its format, texts.
        run: the run.

    Returns:
        Sizes, hit rates in both directions, malformed lines, translations of the words asked for.

    Raises:
        UserError: unreadable, empty, one-sided, or running the other way; an unknown language code.
    """
    language_name(config.source_language, "--source-language")
    if config.target_language:
        language_name(config.target_language)
    if config.dictionary is None:
        raise UserError("needs a dictionary.", where="--dictionary", hint="Name a bilingual dictionary's file.")
    texts = [i.source for i in read_items(config.text, config.text_field, "", config.encoding)] if config.text else []
    found, hits = (
        open_dictionary(config, config.target_language, texts)
        if texts
        else (
            read_dictionary(
                config.dictionary,
                format=config.dictionary_format,
                encoding=config.encoding,
                target_language=config.target_language,
            ),
            None,
        )
    )
    if config.invert and not texts:
        found = found.inverted()
    if config.output is not None:
        lines = [f"{head}\t{one.text}\n" for head, all_ in found.entries.items() for one in all_]
        write_text(config.output, "".join(lines))
    num_translations = sum(map(len, found.entries.values()))
    scalars = {
        "num_headwords": Scalar(value=len(found.entries)),
        "num_translations": Scalar(value=num_translations),
        "num_lines": Scalar(value=found.num_lines),
        "num_malformed": Scalar(value=found.num_malformed),
    }
    verdicts = [f"{len(found.entries)} headwords with {num_translations} translations, read as {found.format}."]
    if hits is not None:
        scalars |= {
            "num_words": Scalar(value=hits.num_words),
            "hit_rate": Scalar(value=hits.hit_rate, unit="share"),
            "reversed_hit_rate": Scalar(value=hits.reversed_hit_rate, unit="share"),
        }
        verdicts[0] += f" It has {hits.hit_rate:.1%} of the {hits.num_words} words of the texts."
    if found.num_malformed:
        verdicts.append(f"{found.num_malformed} places could not be read: {', '.join(found.malformed[:5])}.")
    words = config.word or list(found.entries)[:SHOWN_ROWS]
    rows: list[list[str | int | float | bool | None]] = [
        [word, ", ".join(one.text for one in found.lookup(word)[:10]) or None] for word in words
    ]
    return run.result(
        scalars=scalars,
        tables={"words": Table(columns=["word", "translations"], rows=rows, title="Words and their translations")},
        verdicts=verdicts,
        limitations=["An inverted dictionary ranks by counts and is poorer than one made for its direction."]
        * config.invert,
    )
