"""Beam search behind priors, and the choice among several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from polyloom.generation.decode import Decoding
from polyloom.generation.scoring import score_continuations
from polyloom.methods.prefix.beam import beam_answer, choose_answers, continue_all
from polyloom.methods.prefix.method import generate_with_priors
from polyloom.methods.prefix.priors import Prior, answer_tokens
from tests.methods.prefix.test_verbs import answered, common, lines

PROMPT, PRIOR = [1, 40, 41, 42], [50, 51]


def mean_log_probability(model: PreTrainedModel, prompt: list[int], tokens: tuple[int, ...]) -> float:
    (values,) = score_continuations(model, [prompt], [tokens])
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", ["base", "t5"])
def test_one_beam_is_greedy_decoding(
    kind: str, request: pytest.FixtureRequest, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = request.getfixturevalue(kind)
    settings = Decoding(6)
    (greedy,) = generate_with_priors(model, byte_tokenizer, [PROMPT], [PRIOR], settings)
    assert beam_answer(model, byte_tokenizer, PROMPT, PRIOR, settings, 1) == greedy


def test_as_many_beams_as_tokens_find_the_best_pair(
    base: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    vocabulary, whole = len(byte_tokenizer), [*PROMPT, *PRIOR]
    with torch.inference_mode():
        first = base(input_ids=torch.tensor([whole])).logits[0, -1].log_softmax(-1)
        rows = torch.tensor([[*whole, token] for token in range(vocabulary)])
        second = base(input_ids=rows).logits[:, -1].log_softmax(-1)
    pairs = (first[:, None] + second) / 2
    ended = base.config.eos_token_id
    pairs[ended] = float("-inf")
    found = beam_answer(base, byte_tokenizer, PROMPT, PRIOR, Decoding(2), vocabulary)
    best = divmod(int(pairs.argmax()), vocabulary)
    assert found.tokens == (best if pairs.max() > first[ended] else (ended,))


def test_a_stop_text_ends_an_answer(base: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    (free,) = generate_with_priors(base, byte_tokenizer, [PROMPT], [PRIOR], Decoding(12))
    stop = next(letter for letter in free.text[3:] if letter.isascii())
    settings = Decoding(12, stop=(stop,))
    (greedy,) = generate_with_priors(base, byte_tokenizer, [PROMPT], [PRIOR], settings)
    assert beam_answer(base, byte_tokenizer, PROMPT, PRIOR, settings, 1) == greedy
    assert greedy.finish_reason == "stop"
    assert stop not in beam_answer(base, byte_tokenizer, PROMPT, PRIOR, settings, 3).text


def test_a_prior_that_ends_is_the_whole_answer(base: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    done = beam_answer(base, byte_tokenizer, PROMPT, [50, base.config.eos_token_id], Decoding(4), 2)
    assert (done.tokens, done.finish_reason) == ((), "eos")


def test_the_most_probable_answer_is_kept_and_reconstruction_can_change_it(
    base: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    options = [[Prior((token,), "pseudo") for token in (50, 60, 70, 80)]]

    def answer(prompts: Any, priors: Any) -> Any:
        return continue_all(base, byte_tokenizer, prompts, [p.tokens for p in priors], Decoding(4), num_beams=2)

    answers = answer([PROMPT] * 4, options[0])
    own = [mean_log_probability(base, PROMPT, one.all_tokens) for one in answers]
    (chosen,) = choose_answers(base, byte_tokenizer, [PROMPT], options, answer)
    assert chosen.prior == options[0][own.index(max(own))]
    assert chosen.num_tried == 4
    worst = own.index(min(own))

    def back(row: int, text: str) -> list[int]:
        return [1, 90] if text == answers[worst].text.strip() else [1, 91]

    # The source is by far more probable behind the worst answer, as its weight says.
    values = [
        mean_log_probability(base, [1, token], tuple(answer_tokens(byte_tokenizer, [1, token], "the dog")))
        for token in (90, 91)
    ]
    weight = 1e6 if values[0] > values[1] else -1e6
    (other,) = choose_answers(base, byte_tokenizer, [PROMPT], options, answer, back=(weight, back, ["the dog"]))
    assert other.prior == options[0][worst]


def test_candidates_come_from_every_source(
    cli: Callable[..., Any], tmp_path: Path, folders: dict[str, Path], texts: Path, muse: Path
) -> None:
    words = ["--prior", "pseudo", "--prior", "gold", "--dictionary", muse, "--candidates", 4, "--beams", 2]
    words += ["--reconstruction", 0.5]
    answered(cli, "translate", *common(folders, texts), *words)
    rows = lines(tmp_path, "answers.jsonl")
    assert {row["prior_source"] for row in rows} <= {"pseudo", "gold"}
    assert all("best of" in row["note"] for row in rows)
