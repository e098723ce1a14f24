"""One seed of the embedded experiment: train, answer by every method, compare decisions, check the identities."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.seeding import python_random
from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.data.world import records
from polyloom.generation.decode import Decoding, decode
from polyloom.methods.prefix import priors as sources
from polyloom.methods.prefix.data import ALL_THINGS, SOURCE, Corpus, Example, Things, examples, instruction, make_corpus
from polyloom.methods.prefix.data import pretraining_documents as make_documents
from polyloom.methods.prefix.experiment import as_rows, build_llama, fit
from polyloom.methods.prefix.method import agreement, decision_space, generate_with_priors
from polyloom.methods.prefix.positions import position_means
from polyloom.methods.prefix.priors import Prior
from polyloom.metrics.text import LanguageProfiles, bleu_statistics, copy_rate, empty_rate, language_profiles
from polyloom.models.tokenizers import encode, train_tokenizer
from polyloom.runs.folder import Run

MAX_ANSWER_TOKENS = 48
NUM_POSITIONS = 6
SHOTS = 3
SFT_BATCH = 16
METHODS = (
    "base, zero-shot",
    "base, few-shot",
    "base, URIAL-style",
    "SFT",
    "SFT prior, k=1",
    "SFT prior, k=2",
    "SFT prior, k=3",
    "gold prior, k=2",
    "small model alone",
    "refined prior, k=2",
    "dictionary prior, k=1",
    "dictionary prior, k=2",
    "dictionary prior, informative",
    "dictionary gate",
    "language gate",
    "control: other language, k=2",
    "control: other sentence, k=1",
)


@dataclass(frozen=True)
class Plan:
    """What one seed costs: meanings, test sentences a language, steps and batches of the base, SFT and small models.

    Fine-tuning goes on by rounds of `sft_steps` until on development sentences `fidelity` of the answers are in the
    language asked for, at most `sft_rounds` of them: a tuned model that has not learned which language to answer in
    is no reference for what a prior of another language does.
    """

    num_train: int = 2500
    num_test: int = 40
    vocab_size: int = 1000
    width: int = 128
    num_layers: int = 2
    base_steps: int = 3000
    base_batch: int = 16
    base_lr: float = 3e-3
    sft_steps: int = 250
    sft_lr: float = 1e-3
    sft_rounds: int = 4
    fidelity: float = 0.95
    small_width: int = 64
    small_steps: int = 400
    things: Things = ALL_THINGS


@dataclass(frozen=True)
class Models:
    """The seed's models with their tokenizer, the CPU seconds that each took to train, and how fine-tuning went.

    `fidelity` holds after each round of fine-tuning the share of development answers in the language asked for.
    """

    tokenizer: PreTrainedTokenizerBase
    base: PreTrainedModel
    sft: PreTrainedModel
    small: PreTrainedModel
    seconds: dict[str, float]
    fidelity: list[float]


@dataclass(frozen=True)
class Bench:
    """Everything that the methods of one language share."""

    models: Models
    corpus: Corpus
    rows: list[Example]
    prompts: list[list[int]]
    dictionary: Dictionary

    def answer(self, given: Sequence[Prior], prompts: Sequence[Sequence[int]] | None = None) -> list[str]:
        """Let the base model answer behind priors."""
        settings = Decoding(MAX_ANSWER_TOKENS, stop=("\n",))
        tokens = [prior.tokens for prior in given]
        found = generate_with_priors(
            self.models.base, self.models.tokenizer, prompts or self.prompts, tokens, settings, batch_size=64
        )
        return [one.text for one in found]


def run_seed(seed: int, plan: Plan, targets: Sequence[str], run: Run, advance: Callable[[int], None]) -> dict[str, Any]:
    """Run one seed.

    Args:
        seed: of corpus, models and training.
        plan: sizes.
        targets: languages to translate into.
        run: where training keeps its checkpoints, and what asks to stop.
        advance: called with training steps done.

    Returns:
        JSON: outputs' BLEU statistics by method and language, rates, decisions by position, identities and costs.
    """
    corpus = make_corpus(targets, plan.num_train, plan.num_test, seed, plan.things)
    profiles = language_profiles({code: [line[code] for line in corpus.train] for code in corpus.world.languages})
    models = train_models(corpus, plan, seed, profiles, run, advance)
    found: dict[str, Any] = {"methods": {}, "decisions": {}, "base_decisions": {}, "failures": {}}
    for language in targets:
        rows = examples(corpus.test, language)
        prompts = [prompt_tokens(models.tokenizer, row.prompt) for row in rows]
        bench = Bench(models, corpus, rows, prompts, world_dictionary(corpus, language))
        outputs, failures = _answers(bench, seed)
        found["methods"][language] = {name: _scores(texts, rows, language, profiles) for name, texts in outputs.items()}
        found["failures"][language] = failures
        found["decisions"][language] = _decisions(bench)
        run.check_stop()
    found["identities"] = _identities(bench)
    found["prefill_cost_ratio"] = _prefill_cost(bench)
    found["seconds"], found["fidelity"] = models.seconds, models.fidelity
    found["parameters"] = {name: getattr(models, name).num_parameters() for name in models.seconds}
    rounds = {"base": 1, "sft": len(models.fidelity), "small": 1}
    steps = {"base": plan.base_steps, "sft": plan.sft_steps, "small": plan.small_steps}
    batches = {"base": plan.base_batch, "sft": SFT_BATCH, "small": SFT_BATCH}
    found["texts"] = {name: rounds[name] * steps[name] * batches[name] for name in steps}
    found["example"] = {name: texts[0] for name, texts in outputs.items()} | {
        "source": rows[0].source,
        "reference": rows[0].target,
    }
    return found


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Encode a prompt behind one beginning-of-text token."""
    return [int(tokenizer.bos_token_id), *encode(tokenizer, prompt)]


def train_models(
    corpus: Corpus, plan: Plan, seed: int, profiles: LanguageProfiles, run: Run, advance: Callable[[int], None]
) -> Models:
    """Train the base model, its fine-tuned twin and the small translator; a stopped run goes on where it was."""
    seconds = {"base": 0.0, "sft": 0.0, "small": 0.0}
    documents = make_documents(corpus, min(plan.base_steps * plan.base_batch, 40_000), seed)
    tokenizer = train_tokenizer(documents[:6000], plan.vocab_size)
    tasks = _tasks(corpus, seed)
    base = build_llama(len(tokenizer), plan.width, plan.num_layers, 4, seed)
    small = build_llama(len(tokenizer), plan.small_width, 1, 2, seed + 1)

    def work(name: str, model: Any, texts: list[tuple[str, str]], steps: int, lr: float, turn: int = 0) -> None:
        started = time.process_time()
        fit(
            model,
            as_rows(texts, tokenizer, all_tokens=name == "base"),
            steps=steps,
            batch_size=plan.base_batch if name == "base" else SFT_BATCH,
            lr=lr,
            seed=seed + turn,
            checkpoints=run.checkpoints / (f"{seed}-{name}-{turn}" if turn else f"{seed}-{name}"),
            on_step=None if turn else advance,
            check_stop=run.check_stop,
        )
        seconds[name] += time.process_time() - started

    work("base", base, [("", text) for text in documents], plan.base_steps, plan.base_lr)
    sft = copy.deepcopy(base)
    fidelity: list[float] = []
    while len(fidelity) < plan.sft_rounds and (not fidelity or fidelity[-1] < plan.fidelity):
        work("sft", sft, tasks, plan.sft_steps, plan.sft_lr, len(fidelity))
        fidelity.append(_fidelity(sft, tokenizer, corpus, profiles))
    work("small", small, tasks, plan.small_steps, 3e-3)
    return Models(tokenizer, base, sft, small, seconds, fidelity)


def _fidelity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, profiles: LanguageProfiles
) -> float:
    """Return the share of development answers that are in the language asked for."""
    rows = [row for language in corpus.targets for row in examples(corpus.dev, language)]
    prompts = [prompt_tokens(tokenizer, row.prompt) for row in rows]
    settings = Decoding(MAX_ANSWER_TOKENS, stop=("\n",))
    answers = decode(model, prompts, settings, tokenizer=tokenizer, batch_size=64)
    return mean(float(profiles.identify(one.text) == row.language) for one, row in zip(answers, rows, strict=True))


def _tasks(corpus: Corpus, seed: int) -> list[tuple[str, str]]:
    rng = python_random(seed, "sft")
    tasks = []
    for _ in range(4000):
        line, language = rng.choice(corpus.train), rng.choice(corpus.targets)
        tasks.append((instruction(line[SOURCE], language), line[language]))
    return tasks


def world_dictionary(corpus: Corpus, language: str) -> Dictionary:
    """Return the world's own dictionary from English: names, months, weekdays and units."""
    entries: dict[str, tuple[Translation, ...]] = {}
    for record in records(corpus.world, "dictionary", (SOURCE, language), _num_entries(corpus), split="all"):
        entries.setdefault(record["source"], ())
        entries[record["source"]] += (Translation(record["target"]),)
    return Dictionary(entries, "world")


def _num_entries(corpus: Corpus) -> int:
    from polyloom.data.world import supply

    return supply(corpus.world, "dictionary", corpus.world.languages[:2]) or 1


def _answers(bench: Bench, seed: int) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Answer every test sentence by every method; count the rows for which a prior source had nothing."""
    models, prompts, rows = bench.models, bench.prompts, bench.rows
    tokenizer, texts = models.tokenizer, [row.source for row in bench.rows]
    language = rows[0].language
    settings = Decoding(MAX_ANSWER_TOKENS, stop=("\n",))

    def decoded(model: PreTrainedModel) -> list[Any]:
        return decode(model, prompts, settings, tokenizer=tokenizer, batch_size=64)

    sft_answers, small_answers = decoded(models.sft), decoded(models.small)
    none = [Prior((), "none") for _ in rows]
    others = [code for code in bench.corpus.targets if code != language]
    rng = python_random(seed, "wrong language", language)
    wrong = [prompt_tokens(tokenizer, instruction(row.source, rng.choice(others))) for row in rows]
    gold = [sources.text_prior(tokenizer, p, row.target, 2, "gold") for p, row in zip(prompts, rows, strict=True)]
    words = {
        k: sources.pseudo_priors(models.base, tokenizer, prompts, texts, bench.dictionary, k, informative=False)
        for k in (1, 2)
    }
    informed = sources.pseudo_priors(models.base, tokenizer, prompts, texts, bench.dictionary, 2)
    gates = sources.dictionary_gates(tokenizer, prompts, texts, bench.dictionary)
    sides = [[line[code] for line in bench.corpus.train[:600]] for code in (language, SOURCE)]
    gate = sources.language_gate(tokenizer, prompts[0], *sides)
    first = [Prior(one.tokens[:1], "sft") for one in sft_answers]
    given = {
        "base, zero-shot": none,
        **{f"SFT prior, k={k}": [Prior(one.tokens[:k], "sft") for one in sft_answers] for k in (1, 2, 3)},
        "gold prior, k=2": gold,
        "refined prior, k=2": sources.refined_priors([one.text for one in small_answers], tokenizer, prompts, 2),
        "dictionary prior, k=1": words[1],
        "dictionary prior, k=2": words[2],
        "dictionary prior, informative": informed,
        "dictionary gate": sources.gate_priors(models.base, prompts, gates, "dictionary gate"),
        "language gate": sources.gate_priors(models.base, prompts, [gate] * len(prompts), "language gate"),
        "control: other language, k=2": sources.model_priors(models.sft, wrong, 2, "wrong language"),
        "control: other sentence, k=1": sources.rotated(first, "other sentence"),
    }
    outputs = {name: bench.answer(chosen) for name, chosen in given.items()}
    outputs["SFT"] = [one.text for one in sft_answers]
    outputs["small model alone"] = [one.text for one in small_answers]
    outputs["base, few-shot"] = bench.answer(none, _shots(bench, seed, "{prompt}{answer}\n"))
    outputs["base, URIAL-style"] = bench.answer(none, _shots(bench, seed, "Query: {prompt}Answer: {answer}\n"))
    failures = {name: sum(not prior.tokens for prior in chosen) for name, chosen in given.items() if chosen is not none}
    return {name: outputs[name] for name in METHODS}, failures


def _shots(bench: Bench, seed: int, pattern: str) -> list[list[int]]:
    """Write fixed training examples before each prompt."""
    rng = python_random(seed, "shots", bench.rows[0].language)
    shown = examples(rng.sample(bench.corpus.train, SHOTS), bench.rows[0].language)
    head = "".join(pattern.format(prompt=one.prompt, answer=one.target) for one in shown)
    open_pattern = pattern.partition("{answer}")[0]
    return [
        prompt_tokens(bench.models.tokenizer, head + open_pattern.format(prompt=row.prompt).rstrip(" "))
        for row in bench.rows
    ]


def _scores(texts: Sequence[str], rows: Sequence[Example], language: str, profiles: LanguageProfiles) -> dict[str, Any]:
    given = [row.source for row in rows]
    return {
        "bleu": bleu_statistics(texts, [row.target for row in rows]).tolist(),
        "exact": mean(float(text == row.target) for text, row in zip(texts, rows, strict=True)),
        "copy": copy_rate(texts, given),
        "empty": empty_rate(texts),
        "off_target": mean(float(profiles.identify(text) != language) for text in texts),
    }


def _decisions(bench: Bench) -> list[dict[str, float]]:
    """Average the decision measures of each position along the tuned model's own answers."""
    models = bench.models
    answers = [one.tokens for one in decode(models.sft, bench.prompts, Decoding(NUM_POSITIONS))]
    rows = decision_space(models.base, models.sft, bench.prompts, answers, NUM_POSITIONS)
    return position_means(rows, NUM_POSITIONS)


def _identities(bench: Bench) -> dict[str, Any]:
    """Check what must hold exactly, on this seed's models."""
    models, prompts, tokenizer = bench.models, bench.prompts[:12], bench.models.tokenizer
    settings = Decoding(MAX_ANSWER_TOKENS)
    plain = decode(models.base, prompts, settings, tokenizer=tokenizer)
    no_prior = generate_with_priors(models.base, tokenizer, prompts, [()] * len(prompts), settings)
    sft = decode(models.sft, prompts, settings, tokenizer=tokenizer)
    whole = generate_with_priors(models.base, tokenizer, prompts, [one.tokens for one in sft], settings)
    two = [one.tokens[:2] for one in sft]
    batch = generate_with_priors(models.base, tokenizer, prompts, two, settings)
    single = [
        generate_with_priors(models.base, tokenizer, [prompt], [prior], settings)[0]
        for prompt, prior in zip(prompts, two, strict=True)
    ]
    same = generate_with_priors(models.sft, tokenizer, prompts, two, settings)
    rows = decision_space(models.base, models.base, prompts, [one.tokens for one in sft], NUM_POSITIONS)
    flat = [one for row in rows for one in row]
    return {
        "no_prior_equals_generate": all(a.tokens == b.tokens for a, b in zip(plain, no_prior, strict=True)),
        "full_prior_equals_sft": all(
            a.text == b.text for a, b in zip(sft, whole, strict=True) if a.finish_reason == "eos"
        ),
        "batch_equals_single": all(a.tokens == b.tokens for a, b in zip(batch, single, strict=True)),
        # The prior is no part of the budget: an answer that does not end goes on two tokens longer behind it.
        "sft_keeps_its_answer": all(a.tokens == b.all_tokens[: len(a.tokens)] for a, b in zip(sft, same, strict=True)),
        "self_agreement": agreement([one["rank"] for one in flat], 1),
        "self_kl": max(one["kl"] for one in flat),
    }


def _prefill_cost(bench: Bench, num_new: int = 24, rounds: int = 7) -> float:
    """Return the median ratio of CPU time: two forced tokens and 22 free ones against 24 free ones."""
    models, prompts = bench.models, bench.prompts[:16]
    tokens = [one.tokens for one in decode(models.base, prompts, Decoding(num_new), eos_tokens=())]
    forced = [[*prompt, *own[:2]] for prompt, own in zip(prompts, tokens, strict=True)]

    def seconds(rows: Sequence[Sequence[int]], new: int) -> float:
        started = time.process_time()
        decode(models.base, rows, Decoding(new), eos_tokens=())
        return time.process_time() - started

    ratios = []
    for turn in range(rounds + 1):
        pair = [seconds(forced, num_new - 2), 0.0] if turn % 2 else [0.0, seconds(prompts, num_new)]
        pair = [pair[0] or seconds(forced, num_new - 2), pair[1] or seconds(prompts, num_new)]
        ratios.append(pair[0] / pair[1])
    return float(median(ratios[1:]))


def pinned() -> None:
    """Use one thread: faster for tiny models, and the same bits every time."""
    torch.set_num_threads(1)
