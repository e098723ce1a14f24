"""Text metrics: BLEU, chrF and spBLEU by sacrebleu, language identification, off-target, copy and empty rates, LaSE."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyloom.core.errors import MissingExtra, UserError

CHARACTER_LANGUAGES = {"zh": "zh", "ja": "char", "th": "char", "lo": "char", "km": "char", "my": "char"}
NGRAM_ORDERS = (1, 2, 3)
MAX_ORDER = 4
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtra("sacrebleu", extra="text") from error
    return sacrebleu


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references) or not hypotheses:
        raise UserError(f"{len(hypotheses)} outputs and {len(references)} references cannot be compared.")


def bleu_tokenizer(language: str) -> str:
    """Return sacrebleu's tokenizer for a language: by character where no blanks are written, else `13a`."""
    return CHARACTER_LANGUAGES.get(language.split("-")[0].split("_")[0], "13a")


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenizer: str = "13a") -> float:
    """Return corpus BLEU, 0 to 100.

    Args:
        hypotheses: outputs.
        references: one for each.
        tokenizer: sacrebleu's name of one.

    Raises:
        UserError: no texts, or numbers that differ.
        MissingExtra: sacrebleu is absent.

    Source: Papineni et al. (2002) as in sacrebleu (Post, 2018).
    """
    _check(hypotheses, references)
    # Outputs of tiny models and of empty rows trigger its hint on tokenised text, which says nothing here.
    score: float = _sacrebleu().corpus_bleu(hypotheses, [references], tokenize=tokenizer, force=True).score
    return score


def sentence_bleu(hypothesis: str, reference: str, tokenizer: str = "13a") -> float:
    """Return BLEU of one sentence with effective order, so that a short one is not 0 by its length alone."""
    metric = _sacrebleu().BLEU(effective_order=True, tokenize=tokenizer, force=True)
    score: float = metric.sentence_score(hypothesis, [reference]).score
    return score


def bleu_statistics(hypotheses: Sequence[str], references: Sequence[str], tokenizer: str = "13a") -> Counts:
    """Return what corpus BLEU is computed from, so that sentences can be drawn again for an interval.

    Args:
        hypotheses: outputs.
        references: one for each.
        tokenizer: sacrebleu's name of one.

    Returns:
        [texts, 10]: matching n-grams of orders 1 to 4, n-grams of the output of orders 1 to 4, both lengths.
    """
    _check(hypotheses, references)
    metric = _sacrebleu().BLEU(tokenize=tokenizer, force=True)
    rows = []
    for pair in zip(hypotheses, references, strict=True):
        tokens, reference = (metric.tokenizer(text.rstrip()).split() for text in pair)
        counts = [(_ngrams(tokens, order), _ngrams(reference, order)) for order in range(1, MAX_ORDER + 1)]
        matches = [(own & other).total() for own, other in counts]
        rows.append([*matches, *(own.total() for own, _ in counts), len(tokens), len(reference)])
    return np.array(rows)


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def bleu_of(statistics: Counts) -> Floats:
    """Return BLEU, 0 to 100, of summed statistics [..., 10]; equal to sacrebleu's with its exponential smoothing."""
    sums = np.asarray(statistics, dtype=float)
    matches, totals = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    length, reference = sums[..., 8], sums[..., 9]
    # Each order without a match counts as half of what the order before it was smoothed to.
    halvings = 2.0 ** np.cumsum((matches == 0) & (totals > 0), axis=-1)
    smoothed = np.where(matches > 0, matches, 1 / halvings)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.where(totals > 0, smoothed / totals, 0.0))
        penalty = np.exp(np.minimum(0.0, 1 - reference / length))
    nothing = (totals.min(axis=-1) == 0) | (matches[..., 0] == 0)
    return np.where(nothing, 0.0, 100 * penalty * np.exp(logs.mean(axis=-1)))


def chrf(hypotheses: Sequence[str], references: Sequence[str], word_order: int = 0) -> float:
    """Return corpus chrF, 0 to 100; `word_order=2` is chrF++.

    Source: Popovic (2015, 2017) as in sacrebleu.
    """
    _check(hypotheses, references)
    score: float = _sacrebleu().corpus_chrf(hypotheses, [references], word_order=word_order).score
    return score


def spbleu(hypotheses: Sequence[str], references: Sequence[str], sentencepiece: Path) -> float:
    """Return spBLEU: BLEU over the pieces of a SentencePiece model, such as that of FLORES-200, from a local file.

    Raises:
        UserError: the file is absent or no SentencePiece model.
        MissingExtra: the sentencepiece library is absent.
    """
    _check(hypotheses, references)
    try:
        import sentencepiece as library
    except ImportError as error:
        raise MissingExtra("sentencepiece", extra="text") from error
    try:
        model = library.SentencePieceProcessor(model_file=str(sentencepiece))
    except (OSError, RuntimeError) as error:
        raise UserError("is no SentencePiece model that can be read.", where=str(sentencepiece)) from error
    pieces = [[" ".join(model.encode(text, out_type=str)) for text in side] for side in (hypotheses, references)]
    return bleu(pieces[0], pieces[1], "none")


def copy_rate(outputs: Sequence[str], sources: Sequence[str]) -> float:
    """Return the share of outputs that are their source, blanks at the ends aside."""
    return sum(a.strip() == b.strip() for a, b in zip(outputs, sources, strict=True)) / max(1, len(outputs))


def empty_rate(outputs: Sequence[str]) -> float:
    """Return the share of outputs without text."""
    return sum(not one.strip() for one in outputs) / max(1, len(outputs))


# ---- language identification


@lru_cache(maxsize=32)
def _langid(languages: tuple[str, ...]) -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtra("py3langid", extra="text") from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = set(identifier.labels)
    unknown = [code for code in languages if code not in known]
    if unknown:
        raise UserError(f"the language identifier does not know {unknown[0]!r}.", hint="Leave that language out.")
    if languages:
        identifier.set_languages(list(languages))
    return identifier


def identify(texts: Iterable[str], languages: Iterable[str] = ()) -> list[dict[str, float]]:
    """Identify the language of texts by py3langid.

    Args:
        texts: the texts.
        languages: codes to choose from; all that it knows where none is given.

    Returns:
        For each text the probability of each language; empty for a text without letters.
    """
    identifier = _langid(tuple(sorted({code.split("-")[0].split("_")[0] for code in languages})))
    return [dict(identifier.rank(text)) if any(c.isalpha() for c in text) else {} for text in texts]


def off_target_rate(outputs: Sequence[str], target: str, languages: Iterable[str] = ()) -> float:
    """Return the share of outputs whose most probable language is not the target; one without letters is off target.

    Args:
        outputs: the texts.
        target: code of the language asked for.
        languages: codes to choose from, the target among them.
    """
    code = target.split("-")[0].split("_")[0]
    wanted = {code, *languages} if languages else ()
    guesses = identify(outputs, wanted)
    return sum(not one or max(one, key=lambda c: one[c]) != code for one in guesses) / max(1, len(outputs))


@dataclass(frozen=True)
class LanguageProfiles:
    """Character n-grams of languages: a naive Bayes identifier for texts like those that it was made from."""

    log_probability: Mapping[str, Mapping[str, float]]
    unseen: Mapping[str, float]

    def identify(self, text: str) -> str:
        """Return the most probable language; empty for a text without letters."""
        if not any(c.isalpha() for c in text):
            return ""
        grams = list(_grams(text))
        scores = {
            code: sum(known.get(gram, self.unseen[code]) for gram in grams)
            for code, known in self.log_probability.items()
        }
        return max(scores, key=lambda code: scores[code])


def language_profiles(texts: Mapping[str, Sequence[str]]) -> LanguageProfiles:
    """Learn an identifier from texts of each language (add-one smoothing)."""
    counts = {code: Counter(gram for text in own for gram in _grams(text)) for code, own in texts.items()}
    vocabulary = len(set().union(*counts.values())) + 1
    totals = {code: sum(own.values()) + vocabulary for code, own in counts.items()}
    learnt = {
        code: {gram: math.log((number + 1) / totals[code]) for gram, number in own.items()}
        for code, own in counts.items()
    }
    return LanguageProfiles(learnt, {code: -math.log(total) for code, total in totals.items()})


def _grams(text: str) -> Iterable[str]:
    padded = f" {text.casefold()} "
    return (padded[i : i + order] for order in NGRAM_ORDERS for i in range(len(padded) - order + 1))


# ---- LaSE


def length_penalty(num_predicted: int, num_reference: int, tolerance: int = 6) -> float:
    """Return LaSE's penalty lp = exp(min(0, 1 - n_pred / (n_ref + 6))) of a summary that is too long.

    Source: LaSE, CrossSum (Bhattacharjee et al., arXiv 2112.08804).
    """
    return math.exp(min(0.0, 1.0 - num_predicted / (num_reference + tolerance)))


def language_confidence(probabilities: Mapping[str, float], target: str) -> float:
    """Return LaSE's lc: 1 where the target is the most probable language, else its probability."""
    if not probabilities:
        return 0.0
    top = max(probabilities, key=lambda code: probabilities[code])
    return 1.0 if top == target else probabilities.get(target, 0.0)


def lase(meaning_similarity: float, confidence: float, penalty: float) -> float:
    """Return LaSE = ms * lc * lp, of the similarity of two sentence vectors, the language and the length."""
    return meaning_similarity * confidence * penalty
