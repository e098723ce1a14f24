"""Oracles of the prior sources: token borders, dictionary priors by hand, gates, fall-backs, controls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from polyloom.core.errors import UserError
from polyloom.data.dictionaries import Dictionary, Translation
from polyloom.generation.decode import Decoding
from polyloom.generation.text import decode_tokens
from polyloom.methods.prefix import priors as made
from polyloom.methods.prefix.method import generate_with_priors
from polyloom.methods.prefix.priors import Prior, answer_tokens, pseudo_priors, text_prior
from polyloom.models.tokenizers import encode, train_tokenizer

DOG = Dictionary(
    {"dog": (Translation("Hund"),), "cat": (Translation("Katze"),), "United States": (Translation("USA"),)}
)


def prompt_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [1, *encode(tokenizer, text)]


@pytest.mark.parametrize("name", ["byte_tokenizer", "piece_tokenizer"])
@pytest.mark.parametrize("prompt", ["the dog\n", "to German:", "Hu", "to German: ", "German:\n\n"])
@pytest.mark.parametrize("text", ["Hund", "der Hund", "été", "犬と猫", "Hunde!"])
def test_prompt_and_answer_decode_to_exactly_their_text(
    request: pytest.FixtureRequest, name: str, prompt: str, text: str
) -> None:
    tokenizer = request.getfixturevalue(name)
    ids = prompt_of(tokenizer, prompt)
    before = decode_tokens(tokenizer, ids)
    tokens = answer_tokens(tokenizer, ids, text)
    blank = "" if prompt[-1].isspace() else " "
    assert decode_tokens(tokenizer, ids + tokens) == before + blank + text


TRAINED = train_tokenizer(["été à Paris, der Hund, 日本語の犬 the dog"] * 30, 300)


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1), st.sampled_from(["to:", "x\n", "日本"]))
def test_any_text_survives_the_border(text: str, prompt: str) -> None:
    text = text.strip() or "x"
    ids = [1, *encode(TRAINED, prompt)]
    blank = "" if prompt[-1].isspace() else " "
    assert decode_tokens(TRAINED, ids + answer_tokens(TRAINED, ids, text)) == prompt + blank + text


def test_a_prior_cut_inside_a_character_is_completed_by_what_follows(base: PreTrainedModel) -> None:
    prompt = [1, *encode(TRAINED, "x\n")]
    whole = answer_tokens(TRAINED, prompt, "語")
    assert len(whole) > 1 or len(whole) == 1
    rare = answer_tokens(TRAINED, prompt, "鯨")
    assert len(rare) == 3
    prior = text_prior(TRAINED, prompt, "鯨", 2, "gold")
    assert prior.tokens == tuple(rare[:2])
    # The last byte as the continuation makes the character whole: ids are kept, text is never encoded again.
    done = generate_with_priors(base, TRAINED, [prompt], [(*prior.tokens, rare[2], 2)], Decoding(2))
    assert done[0].text == "鯨"


def test_dictionary_prior_is_the_beginning_of_the_translation(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(byte_tokenizer, "German:\n")
    for k in (1, 2):
        found = pseudo_priors(None, byte_tokenizer, [prompt], ["dog"], DOG, k, informative=False)[0]
        assert "Hund".startswith(decode_tokens(byte_tokenizer, found.tokens).strip())
        assert len(found.tokens) <= k
    # The unknown word is passed over; a multiword headword is one; nothing known is said.
    second = pseudo_priors(None, byte_tokenizer, [prompt], ["zebra cat"], DOG, 9, informative=False)[0]
    assert decode_tokens(byte_tokenizer, second.tokens) == "Katze"
    third = pseudo_priors(None, byte_tokenizer, [prompt], ["the United States"], DOG, 9, informative=False)[0]
    assert decode_tokens(byte_tokenizer, third.tokens) == "USA"
    none = pseudo_priors(None, byte_tokenizer, [prompt], ["zebra"], DOG, 2)[0]
    assert none.tokens == ()
    assert "no word" in none.note


def test_neighbours_keep_their_punctuation(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(byte_tokenizer, "x\n")
    found = pseudo_priors(None, byte_tokenizer, [prompt], ["dog, cat"], DOG, 9, informative=False)[0]
    assert decode_tokens(byte_tokenizer, found.tokens) == "Hund, Katze"


def test_numbers_are_extended_until_a_token_tells_the_language(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(byte_tokenizer, "x\n")
    plain = pseudo_priors(None, byte_tokenizer, [prompt], ["7 dog"], DOG, 1, informative=False)[0]
    assert decode_tokens(byte_tokenizer, plain.tokens) == "7"
    told = pseudo_priors(None, byte_tokenizer, [prompt], ["7 dog"], DOG, 1)[0]
    assert decode_tokens(byte_tokenizer, told.tokens).startswith("7 ")
    assert "extended" in told.note


def test_the_model_chooses_the_most_probable_translation(
    base: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    from polyloom.generation.scoring import score_continuations

    words = ("Hund", "Katzen", "Paris")
    several = Dictionary({"dog": tuple(Translation(word) for word in words)})
    prompt = prompt_of(byte_tokenizer, "x\n")
    tokens = [answer_tokens(byte_tokenizer, prompt, word) for word in words]
    means = [sum(row) / len(row) for row in score_continuations(base, [prompt] * 3, tokens)]
    found = pseudo_priors(base, byte_tokenizer, [prompt], ["dog"], several, 9, informative=False)[0]
    assert decode_tokens(byte_tokenizer, found.tokens) == words[means.index(max(means))]


def test_healing_drops_the_last_token_of_a_whole_word(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(byte_tokenizer, "x\n")
    whole = answer_tokens(byte_tokenizer, prompt, "Katzenhund")
    assert len(whole) > 1
    assert text_prior(byte_tokenizer, prompt, "Katzenhund", 20, "t", heal=True).tokens == tuple(whole[:-1])
    assert (
        text_prior(byte_tokenizer, prompt, "Katzenhund!", 20, "t", heal=True).tokens[-1]
        == encode(byte_tokenizer, "!")[0]
    )


def test_special_tokens_are_dropped_and_said(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    found = made.trim(byte_tokenizer, [1, 50, 2, 51], 3, "file")
    assert found == Prior((50, 51), "file", "2 special tokens dropped")
    assert text_prior(byte_tokenizer, [1], "  ", 2, "file").note == "empty"


def test_sft_prior_is_the_beginning_of_its_answer(tuned: PreTrainedModel) -> None:
    prompts = [[1, 20, 21], [1, 40]]
    whole = made.model_priors(tuned, prompts, 6)
    for k in range(1, 6):
        assert [p.tokens for p in made.model_priors(tuned, prompts, k)] == [p.tokens[:k] for p in whole]
    assert made.model_priors(tuned, prompts, 0) == [Prior((), "sft")] * 2


def test_gates_hold_first_tokens_and_one_token_is_forced(
    base: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = prompt_of(byte_tokenizer, "x\n")
    gates = made.dictionary_gates(byte_tokenizer, [prompt], ["cat dog"], DOG)
    firsts = {answer_tokens(byte_tokenizer, prompt, word)[0] for word in ("Hund", "Katze")}
    assert set(gates[0]) <= firsts
    assert made.gate_priors(base, [prompt], [[77]], "g")[0].tokens == (77,)
    assert made.gate_priors(base, [prompt], [[]], "g")[0].tokens == ()
    gate = made.language_gate(byte_tokenizer, prompt, ["Hund", "Hunde", "the"], ["the", "the", "dog"])
    assert answer_tokens(byte_tokenizer, prompt, "Hund")[0] in gate
    assert answer_tokens(byte_tokenizer, prompt, "the")[0] not in gate


def test_proposed_tokens_are_kept_while_the_base_ranks_them(base: PreTrainedModel) -> None:
    prompt = [1, 20, 21]
    own = made.model_priors(base, [prompt], 3)
    assert made.accepted_priors(base, [prompt], own, 1)[0].tokens == own[0].tokens
    wrong = Prior((own[0].tokens[0], (own[0].tokens[1] + 1) % 300), "small-lm")
    assert made.accepted_priors(base, [prompt], [wrong], 1)[0].tokens == own[0].tokens[:1]


def test_memory_fallback_and_rotation() -> None:
    memory = [("the dog runs", "der Hund läuft"), ("a cat", "eine Katze")]
    assert made.nearest_targets(["the big dog", "cat"], memory) == ["der Hund läuft", "eine Katze"]
    a, b, none = Prior((1,), "a"), Prior((2,), "b"), Prior((), "a", "why")
    assert made.with_fallback([[a, none], [b, b]]) == [a, b]
    assert made.with_fallback([[none], [none]]) == [none]
    turned = made.rotated([Prior((1,), "s"), Prior((1,), "s"), Prior((2,), "s")], "foreign")
    assert [p.tokens for p in turned] == [(2,), (2,), (1,)]


def test_a_prior_beyond_the_budget_is_refused() -> None:
    made.check_budget(4, 4)
    with pytest.raises(UserError, match="5 tokens is longer than the answer's budget of 4"):
        made.check_budget(5, 4)
