"""Few-shot prompts for decoders: labelled examples of the source, switched into the language of the question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, write_text
from polyloom.core.result import Artifact, Scalar
from polyloom.core.seeding import python_random
from polyloom.data.labelled import from_record, read_labelled
from polyloom.data.records import Example, Sentence
from polyloom.data.world import World, records
from polyloom.methods.transfer.data import split_specs, unique_ids
from polyloom.methods.transfer.data_config import SwitchConfig
from polyloom.methods.transfer.lexicon import Lexicons
from polyloom.methods.transfer.switching import Aids, SwitchPlan, switch_example
from polyloom.metrics.tagging import Span, bootstrap_difference, label_counts, score, spans
from polyloom.runs.folder import Run

NUM_WORLD_QUERIES = 20
SEPARATOR = "\n\n"


class Prompt(NamedTuple):
    """A question in a target language behind examples: switched into it, and as they are in the source."""

    id: str
    language: str
    switched: str
    plain: str
    answer: str


Parts = tuple[dict[str, Scalar], dict[str, Artifact], list[str]]
"""Scalars, artifacts and verdicts."""


def question(example: Example) -> str:
    """Return what an example asks: its text or texts, a line each."""
    texts = [sentence.written() for sentence in example.sentences]
    names = ["Text"] if len(texts) == 1 else [f"Text {number}" for number in range(1, len(texts) + 1)]
    return "".join(f"{name}: {text}\n" for name, text in zip(names, texts, strict=True))


def answer(example: Example) -> str:
    """Return an example's class, its spans as `TYPE: words`, or both in two lines."""
    lines = [f"Label: {example.label}"] if example.label else []
    sentence = example.sentences[0]
    if sentence.labels:
        named = [_named(one, sentence) for one in spans(sentence.labels)]
        lines.append(f"Spans: {'; '.join(named) or 'none'}")
    return "\n".join(lines)


def _named(span: Span, sentence: Sentence) -> str:
    return f"{span.type}: {' '.join(sentence.words[span.start : span.end + 1])}"


def draw_shots(examples: Sequence[Example], number: int, seed: int, name: str) -> list[Example]:
    """Draw examples for one question: as many of each class as there can be, in random order.

    Args:
        examples: of the source.
        number: how many.
        seed: with the name, of the random stream.
        name: of the question.
    """
    rng = python_random(seed, "shots", name)
    seen: Counter[str] = Counter()
    ranked = []
    for one in rng.sample(examples, len(examples)):
        ranked.append((seen[one.label], one))
        seen[one.label] += 1
    chosen = [one for _, one in sorted(ranked, key=lambda pair: pair[0])[:number]]
    return rng.sample(chosen, len(chosen))


def build_prompts(
    examples: Sequence[Example],
    queries: Mapping[str, Sequence[Example]],
    plan: SwitchPlan,
    lexicons: Lexicons,
    *,
    shots: int,
    seed: int,
    aids: Aids,
) -> list[Prompt]:
    """Write a prompt for each question: the same examples switched and plain, the question, and no answer.

    Args:
        examples: labelled, of the source.
        queries: questions by language; examples are switched into their language alone.
        plan: how words are switched.
        lexicons: by language.
        shots: examples before a question.
        seed: of the draws.
        aids: of the plan.
    """
    prompts = []
    for code, asked in queries.items():
        own = {code: lexicons[code]} if code in lexicons else {}
        for query in asked:
            name = f"{code}/{query.id}"
            chosen = draw_shots(examples, shots, seed, name)
            # The text as it was written is no longer that of the switched words.
            switched = [_unwritten(switch_example(one, plan, own, seed, 0, aids)) for one in chosen]
            asks = question(query)
            plain = [_unwritten(one) for one in chosen]
            with_switched, with_plain = (
                SEPARATOR.join([*(question(one) + answer(one) for one in shown), asks]) for shown in (switched, plain)
            )
            prompts.append(Prompt(name, code, with_switched, with_plain, answer(query)))
    return prompts


def _unwritten(example: Example) -> Example:
    return replace(example, sentences=tuple(replace(one, text="") for one in example.sentences))


def read_queries(config: SwitchConfig, codes: Sequence[str]) -> dict[str, list[Example]]:
    """Read the questions; of the embedded world, sentences of each target language.

    Raises:
        UserError: data of the user's own, and no questions.
    """
    if config.queries:
        return {
            code: unique_ids(
                [one for path in paths for one in read_labelled(path, format=config.format, language=code).examples]
            )
            for code, paths in split_specs(config.queries, "--queries").items()
        }
    if config.data != "world":
        raise UserError("there are no questions.", where="--shots", hint="Name files with --queries LANGUAGE=FILE.")
    world = World([config.language, *codes], seed=config.seed)
    return {
        code: [
            from_record(row, "world", f"world-{i}")
            for i, row in enumerate(records(world, "tagging", (code,), NUM_WORLD_QUERIES, split="test"))
        ]
        for code in codes
    }


def prompt_report(
    config: SwitchConfig, run: Run, examples: Sequence[Example], plan: SwitchPlan, lexicons: Lexicons, aids: Aids
) -> Parts:
    """Write the prompts; a decoder that is named answers them behind switched and behind plain examples."""
    if not config.shots:
        return {}, {}, []
    queries = read_queries(config, list(lexicons))
    prompts = build_prompts(examples, queries, plan, lexicons, shots=config.shots, seed=config.seed, aids=aids)
    write_text(run.artifact("prompts.jsonl"), json_lines(one._asdict() for one in prompts))
    artifact = Artifact(
        path="artifacts/prompts.jsonl",
        media_type="application/jsonl",
        description="few-shot prompts: examples switched into the language of the question, and plain",
    )
    scalars = {"num_prompts": Scalar(value=len(prompts))}
    verdicts: list[str] = []
    if config.decoder:
        found, verdict = _answered(config, prompts, queries, sorted({one.label for one in examples}))
        scalars |= found
        verdicts.append(verdict)
    return scalars, {"prompts": artifact}, verdicts


def _answered(
    config: SwitchConfig, prompts: Sequence[Prompt], queries: Mapping[str, Sequence[Example]], labels: Sequence[str]
) -> tuple[dict[str, Scalar], str]:
    if not all(labels) or len(labels) < 2:
        hint = "Give data with classes."
        raise UserError("a decoder's answers are scored for classes alone.", where="--decoder", hint=hint)
    gold = [one.label for asked in queries.values() for one in asked]
    both = [*(one.switched for one in prompts), *(one.plain for one in prompts)]
    said = choose_labels(config.decoder or "", both, labels)
    switched, plain = label_counts(gold, said[: len(gold)]), label_counts(gold, said[len(gold) :])
    difference = bootstrap_difference([([switched], [plain])], seed=config.seed)
    value, low, high = (100 * one for one in (difference.value, difference.low, difference.high))
    scalars = {
        "switched_prompt_accuracy": Scalar(value=100 * score(switched), unit="%"),
        "plain_prompt_accuracy": Scalar(value=100 * score(plain), unit="%"),
        "prompt_accuracy_gain": Scalar(value=value, low=low, high=high, unit="points"),
    }
    verdict = (
        f"The decoder answers {100 * score(switched):.1f} % of {len(gold)} questions behind switched examples and "
        f"{100 * score(plain):.1f} % behind plain ones: {value:+.1f} points [{low:+.1f}, {high:+.1f}]."
    )
    return scalars, verdict


def choose_labels(decoder: str, prompts: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return for each prompt the class whose tokens a causal language model finds most probable on the mean.

    Args:
        decoder: Hugging Face folder or hub id.
        prompts: texts that end with a question.
        labels: the classes.
    """
    from polyloom.generation.scoring import score_continuations
    from polyloom.models.load import load_model, load_tokenizer

    model = load_model(decoder, device="auto")
    tokenizer = load_tokenizer(decoder, model)
    texts = [_open_end(tokenizer(f"{prompt}Label:")["input_ids"], tokenizer.eos_token_id) for prompt in prompts]
    answers = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in labels]
    scores = score_continuations(
        model, [text for text in texts for _ in labels], [own for _ in texts for own in answers]
    )
    means = np.asarray([np.mean(one) for one in scores]).reshape(len(texts), len(labels))
    return [labels[best] for best in means.argmax(1)]


def _open_end(tokens: list[int], end: int | None) -> list[int]:
    """Return the tokens without the end that some tokenizers put behind every text."""
    return tokens[:-1] if len(tokens) > 1 and tokens[-1] == end else tokens
