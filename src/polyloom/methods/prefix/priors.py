"""Where prior tokens come from: a tuned model, a small one, a dictionary, the reference, a memory, or a constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import Dictionary, segment, segment_spans
from polyloom.generation.decode import Decoding, decode
from polyloom.generation.scoring import score_continuations
from polyloom.generation.text import decode_tokens
from polyloom.methods.prefix.method import answer_logits, gated_choice, rank_of
from polyloom.models.tokenizers import encode

MAX_SOURCE_WORDS = 8
MAX_INFORMATIVE_TOKENS = 6
MAX_CANDIDATES = 12
# Blanks and quotation marks come before a first word in every language.
ANCHOR = "\n"


@dataclass(frozen=True)
class Prior:
    """The first tokens of an answer, and where they come from; without tokens `note` says why."""

    tokens: tuple[int, ...]
    source: str
    note: str = ""


def answer_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], text: str) -> list[int]:
    """Encode an answer as it stands behind its prompt.

    Prompt and answer are never merged into one token: the answer is encoded apart, in the form (with or without a
    leading blank or SentencePiece mark) whose decoding behind the prompt gives the prompt's text, a blank where the
    prompt does not end with white space, and the answer.

    Args:
        tokenizer: byte-level or SentencePiece-like.
        prompt: ids of the prompt.
        text: the answer.

    Returns:
        Its ids; decoding them behind the prompt gives exactly that text.

    Raises:
        UserError: the tokenizer cannot write the text (an unknown character).
    """
    context = list(prompt[-8:])
    before = decode_tokens(tokenizer, context)
    spaced = text if not before or before[-1].isspace() or text[:1].isspace() else " " + text
    anchored = encode(tokenizer, ANCHOR + spaced)
    anchor = encode(tokenizer, ANCHOR)
    candidates = [encode(tokenizer, text), encode(tokenizer, spaced)]
    if anchored[: len(anchor)] == anchor:
        candidates.append(anchored[len(anchor) :])
    for tokens in candidates:
        if decode_tokens(tokenizer, context + tokens) == before + spaced:
            return tokens
    # A tokenizer that normalises (case, Unicode forms) cannot give the exact text back; its own form is the answer.
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in candidates[1]:
        raise UserError(f"the tokenizer cannot write {text!r}.", where="prior", hint="Use another prior source.")
    return candidates[1]


def trim(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], k: int, source: str) -> Prior:
    """Keep k tokens and drop special ones, which would end or restart the answer; what was dropped is said."""
    special = set(tokenizer.all_special_ids)
    kept = [token for token in tokens if token not in special]
    note = f"{len(tokens) - len(kept)} special tokens dropped" if len(kept) < len(tokens) else ""
    return Prior(tuple(kept[:k]), source, note if kept else note or "empty")


def text_prior(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], text: str, k: int, source: str, *, heal: bool = False
) -> Prior:
    """Turn text into the first k tokens of an answer.

    Args:
        tokenizer: the base model's.
        prompt: ids before the answer.
        text: what the answer begins with.
        k: tokens kept.
        source: name of where it comes from.
        heal: drop the text's own last token, which may be another one when the word goes on ("Hund" in "Hunde").
    """
    if not text.strip():
        return Prior((), source, "empty")
    tokens = answer_tokens(tokenizer, prompt, text.strip())
    if heal and len(tokens) <= k and len(tokens) > 1 and text.strip()[-1].isalnum():
        tokens = tokens[:-1]
    return trim(tokenizer, tokens, k, source)


def model_priors(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], k: int, source: str = "sft", batch_size: int = 32
) -> list[Prior]:
    """Take the first k tokens of a model's greedy answers; one that ends within k keeps its end token.

    Args:
        model: the tuned model, or any that shares the tokenizer.
        prompts: ids of its prompts.
        k: tokens.
        source: name of the source.
        batch_size: rows decoded together.

    Source: PRETTY (arXiv 2404.16766), SFT prior.
    """
    if k == 0:
        return [Prior((), source) for _ in prompts]
    answers = decode(model, prompts, Decoding(k), batch_size=batch_size)
    return [Prior(answer.tokens, source) for answer in answers]


def refined_priors(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], k: int
) -> list[Prior]:
    """Take the first k base tokens of a small model's answers; its own tokenizer may be another one.

    Args:
        texts: the small model's answers.
        tokenizer: the base model's.
        prompts: ids of the base model's prompts.
        k: tokens.

    Source: PRETTY (arXiv 2404.16766), refined prior.
    """
    return [text_prior(tokenizer, prompt, text, k, "refined") for prompt, text in zip(prompts, texts, strict=True)]


# ---- pseudo priors


def pseudo_priors(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[str],
    dictionary: Dictionary,
    k: int,
    *,
    informative: bool = True,
    heal: bool = False,
    batch_size: int = 32,
) -> list[Prior]:
    """Translate the beginning of each source word by word until k base tokens stand.

    A word that the dictionary lacks is copied where it is a number or a name, else passed over. Tokens that the source
    itself holds do not tell the language: the prior is then extended, to 6 tokens at most, until one does.

    Args:
        model: chooses among a word's translations by mean log-probability; None takes the dictionary's first.
        tokenizer: the base model's.
        prompts: ids of the prompts.
        sources: the source texts.
        dictionary: source to target.
        k: tokens wanted.
        informative: apply the rule of informative tokens.
        heal: as in `text_prior`.
        batch_size: rows scored together.

    Returns:
        A prior for each source; an empty one where no word was found.

    Source: PRETTY (arXiv 2404.16766), pseudo prior; the algorithm in full is ours.
    """
    states = [_Words(source, dictionary) for source in sources]
    done: set[int] = set()
    for _ in range(MAX_SOURCE_WORDS):
        open_rows = [i for i in range(len(sources)) if i not in done]
        options = {i: found for i in open_rows if (found := states[i].next_options())}
        done |= set(open_rows) - set(options)
        chosen = _choose(model, tokenizer, prompts, states, options, batch_size)
        for i, word in chosen.items():
            states[i].text = states[i].continued(word)
            tokens = answer_tokens(tokenizer, prompts[i], states[i].text)
            if len(tokens) >= k and (not informative or _informative(tokenizer, tokens, k, sources[i])):
                done.add(i)
    return [
        _finish(tokenizer, prompt, state, source, k, informative, heal)
        for prompt, state, source in zip(prompts, states, sources, strict=True)
    ]


class _Words:
    """The translation of a source so far, and the words that are still to come."""

    def __init__(self, source: str, dictionary: Dictionary) -> None:
        self.source, self.dictionary = source, dictionary
        self.pending = segment_spans(source, dictionary)[:MAX_SOURCE_WORDS]
        self.text = ""
        self.end = 0
        self.separator = ""

    def next_options(self) -> list[str]:
        """Return the translations of the next word that has some; a number or a name stands for itself."""
        skipped = False
        while self.pending:
            start, end = self.pending.pop(0)
            word = self.source[start:end]
            found = [one.text for one in self.dictionary.lookup(word)][:MAX_CANDIDATES]
            if not found and (word[0].isnumeric() or (word[0].isupper() and self.text)):
                found = [word]
            if found:
                # Punctuation between neighbours is the same in most languages.
                between = " " if skipped else self.source[self.end : start]
                self.separator = between if self.text else ""
                self.end = end
                return found
            skipped = True
        return []

    def continued(self, word: str) -> str:
        """Return the translation with one more word."""
        return self.text + self.separator + word


def _choose(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    states: Sequence[_Words],
    options: Mapping[int, list[str]],
    batch_size: int,
) -> dict[int, str]:
    """Choose each row's translation: the only one, the first, or the most probable per token under the base model."""
    chosen = {i: words[0] for i, words in options.items()}
    several = [i for i, words in options.items() if len(words) > 1]
    if model is None or model.config.is_encoder_decoder or not several:
        return chosen
    pairs = [(i, word) for i in several for word in options[i]]
    rows = [answer_tokens(tokenizer, prompts[i], states[i].continued(word)) for i, word in pairs]
    scores = score_continuations(model, [prompts[i] for i, _ in pairs], rows, batch_size=batch_size)
    best: dict[int, float] = {}
    for (i, word), values in zip(pairs, scores, strict=True):
        mean = sum(values) / len(values)
        if i not in best or mean > best[i]:
            best[i], chosen[i] = mean, word
    return chosen


def _informative(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], k: int, source: str) -> bool:
    return bool(set(tokens[:k]) - _source_tokens(tokenizer, source))


def _source_tokens(tokenizer: PreTrainedTokenizerBase, source: str) -> set[int]:
    return {*encode(tokenizer, source), *encode(tokenizer, " " + source)}


def _finish(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    state: _Words,
    source: str,
    k: int,
    informative: bool,
    heal: bool,
) -> Prior:
    if not state.text:
        return Prior((), "pseudo", "no word of the source is in the dictionary")
    tokens = answer_tokens(tokenizer, prompt, state.text)
    known = _source_tokens(tokenizer, source)
    length = k
    if informative and k:
        while length < min(len(tokens), MAX_INFORMATIVE_TOKENS) and set(tokens[:length]) <= known:
            length += 1
    prior = text_prior(tokenizer, prompt, state.text, length, "pseudo", heal=heal)
    if informative and set(prior.tokens) <= known:
        return replace(prior, note="every token also stands in the source: it does not tell the language")
    return replace(prior, note=f"extended to {length} tokens") if length > k else prior


def first_options(source: str, dictionary: Dictionary) -> list[str]:
    """Return the translations of the first word of a source that has some."""
    return _Words(source, dictionary).next_options()


def dictionary_gates(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], sources: Sequence[str], dictionary: Dictionary
) -> list[list[int]]:
    """Return for each source the first tokens of the translations of all its words (word orders differ)."""
    gates = []
    for prompt, source in zip(prompts, sources, strict=True):
        words = {one.text for word in segment(source, dictionary) for one in dictionary.lookup(word)}
        firsts = {tokens[0] for word in sorted(words) if (tokens := answer_tokens(tokenizer, prompt, word))}
        own = _source_tokens(tokenizer, source)
        gates.append(sorted(firsts - own) or sorted(firsts))
    return gates


def language_gate(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], targets: Sequence[str], sources: Sequence[str]
) -> list[int]:
    """Return first tokens that are frequent in target-language text and rarer in source-language text.

    Args:
        tokenizer: the base model's.
        prompt: ids before the answer.
        targets: texts or words of the target language.
        sources: texts of the source language.
    """
    counts = [Counter(answer_tokens(tokenizer, prompt, t)[0] for t in side if t.strip()) for side in (targets, sources)]
    totals = [max(1, sum(one.values())) for one in counts]
    return sorted(t for t, n in counts[0].items() if n / totals[0] > 2 * counts[1][t] / totals[1])


def gate_priors(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], gates: Sequence[Sequence[int]], source: str
) -> list[Prior]:
    """Let the base model choose its first token within each row's gate."""
    logits = [row[0] for prompt in prompts for row in answer_logits(model, [prompt], [[0]])]
    priors = []
    for row, gate in zip(logits, gates, strict=True):
        tokens, masses = gated_choice(row[None], [gate])
        note = f"gate of {len(gate)} tokens with mass {masses[0]:.3f}"
        priors.append(Prior((tokens[0],), source, note) if gate else Prior((), source, "empty gate"))
    return priors


def accepted_priors(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], priors: Sequence[Prior], max_rank: int
) -> list[Prior]:
    """Keep of each proposed prior the tokens that the base model ranks below `max_rank` (speculative prefix)."""
    kept = []
    for prompt, prior in zip(prompts, priors, strict=True):
        accepted = 0
        if prior.tokens:
            logits = answer_logits(model, [prompt], [list(prior.tokens)])[0]
            ids = logits.new_tensor(prior.tokens).long()
            ranks = rank_of(logits, ids).tolist()
            accepted = next((i for i, rank in enumerate(ranks) if rank >= max_rank), len(ranks))
        note = f"{accepted} of {len(prior.tokens)} proposed tokens accepted"
        kept.append(replace(prior, tokens=prior.tokens[:accepted], note=note))
    return kept


# ---- other sources and controls


def nearest_targets(sources: Sequence[str], memory: Sequence[tuple[str, str]]) -> list[str]:
    """Return for each source the stored target whose source shares the most words with it (Jaccard)."""
    stored = [(frozenset(source.casefold().split()), target) for source, target in memory]
    found = []
    for source in sources:
        words = frozenset(source.casefold().split())
        found.append(max(stored, key=lambda pair: len(words & pair[0]) / max(1, len(words | pair[0])))[1])
    return found


def rotated(priors: Sequence[Prior], source: str) -> list[Prior]:
    """Give each row the prior of the next row that begins otherwise: right language, foreign content (a control)."""
    result = []
    for i, own in enumerate(priors):
        others = (priors[(i + step) % len(priors)] for step in range(1, len(priors)))
        other = next((one for one in others if one.tokens[:1] != own.tokens[:1] and one.tokens), Prior((), source))
        result.append(replace(other, source=source))
    return result


def with_fallback(choices: Sequence[Sequence[Prior]]) -> list[Prior]:
    """Take for each row the first source that has tokens; without any, the last one's reason stays."""
    return [next((one for one in row if one.tokens), row[-1]) for row in zip(*choices, strict=True)]


def check_budget(k: int, max_new_tokens: int) -> None:
    """Refuse a prior that is longer than the answer may be.

    Raises:
        UserError: k exceeds the budget.
    """
    if k > max_new_tokens:
        raise UserError(
            f"a prior of {k} tokens is longer than the answer's budget of {max_new_tokens}.",
            where="--k",
            hint="Lower --k or raise --max-new-tokens.",
        )
