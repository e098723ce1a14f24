"""From conversations to token ids around a suffix, and the rule that a suffix must survive the way back through
text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.files import read_text
from polyloom.core.seeding import python_random
from polyloom.methods.redteam.data import SUFFIX_MARK, Behaviour
from polyloom.models.tokenizers import encode

MARK = "\ue000suffix\ue001"
UNITS = ("!", " !", "x", " x", " the", "a", " a")
MAX_DRAWS = 2000


@dataclass(frozen=True)
class Prompt:
    """A behaviour in its rendered conversation.

    Attributes:
        head: rendered text before the suffix, without the space that may separate it.
        separator: a space, or nothing.
        tail: rendered text behind the suffix.
        before: token ids before the suffix.
        after: token ids behind it, up to the assistant's first token.
        target: token ids of the wanted opening.
    """

    head: str
    separator: str
    tail: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    target: tuple[int, ...]

    def text(self, suffix: str) -> str:
        """Return the whole rendered conversation with `suffix` in its place."""
        separator = "" if suffix.startswith(" ") else self.separator
        return f"{self.head}{separator}{suffix}{self.tail}"


def use_template(tokenizer: PreTrainedTokenizerBase, file: str, where: str) -> None:
    """Set the chat template from a file, and refuse a tokenizer that has none.

    Raises:
        UserError: no chat template.
    """
    if file:
        tokenizer.chat_template = read_text(Path(file))
    if tokenizer.chat_template is None:
        hint = "Save the template of the model's training there, or name its file with --chat-template."
        raise UserError("has no chat template (tokenizer_config.json, chat_template.jinja).", where=where, hint=hint)
    if not tokenizer.is_fast:
        raise UserError("has a tokenizer without character offsets.", where=where, hint="Convert it to tokenizer.json.")


def render(tokenizer: PreTrainedTokenizerBase, content: str, system: str = "") -> str:
    """Write a conversation of one user turn as text, up to the assistant's first token.

    A template without a system role gets the system text in front of the user's.

    Raises:
        UserError: the template refuses the conversation.
    """
    turns = [{"role": "user", "content": content}]
    options = ([{"role": "system", "content": system}, *turns], [{"role": "user", "content": f"{system}\n{content}"}])
    error: TemplateError | None = None
    for messages in options if system else [turns]:
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as refused:
            error = refused
            continue
        if not system or system in text:
            return text
    raise UserError(f"the chat template refuses the conversation: {error or 'the system turn is dropped'}.")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a rendered conversation, whose special tokens stand in the text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and ids.count(bos) > 1 and ids[:2] == [bos, bos]:
        raise UserError("the chat template writes two start tokens.", hint="Write it once in the template.")
    return ids


def content_of(behaviour: Behaviour, suffix: str) -> str:
    """Put a suffix into the user's turn: at the behaviour's mark, or behind it after a space."""
    if SUFFIX_MARK in behaviour.prompt:
        return behaviour.prompt.replace(SUFFIX_MARK, suffix)
    return f"{behaviour.prompt} {suffix.removeprefix(' ')}" if suffix else behaviour.prompt


@lru_cache(maxsize=16)
def banned_tokens(tokenizer: PreTrainedTokenizerBase, num_rows: int, allow_non_ascii: bool = False) -> Tensor:
    """Return which ids no suffix may hold, bool [num_rows].

    Args:
        tokenizer: its special and added tokens (chat roles among them) are banned, and what is no printable ASCII.
        num_rows: rows of the model's embeddings; those beyond the tokenizer are banned.
        allow_non_ascii: any text that decodes to whole characters is allowed.
    """
    banned = torch.ones(num_rows, dtype=torch.bool)
    never = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), num_rows))])
    for i, text in enumerate(texts):
        plain = (
            "\ufffd" not in text and text.isprintable() if allow_non_ascii else text.isascii() and text.isprintable()
        )
        banned[i] = i in never or not text or not plain
    return banned


class TokenRules:
    """Which suffixes are allowed: no banned token, and the same ids again after decoding and encoding, alone and in
    every conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], banned: Tensor) -> None:
        self.tokenizer, self.prompts, self.banned = tokenizer, tuple(prompts), banned
        self.num_checked = self.num_kept = 0

    def keep(self, candidates: Tensor) -> Tensor:
        """Return bool [candidates]: which of the suffixes [candidates, positions] survive."""
        rows = candidates.tolist()
        texts = self.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        alone = self._encode(texts)
        alive = [i for i, ids in enumerate(rows) if alone[i] == ids]
        for prompt in self.prompts:
            again = self._encode([prompt.text(texts[i]) for i in alive])
            before, after = list(prompt.before), list(prompt.after)
            alive = [i for i, ids in zip(alive, again, strict=True) if ids == before + rows[i] + after]
        self.num_checked += len(rows)
        self.num_kept += len(alive)
        kept = torch.zeros(len(rows), dtype=torch.bool)
        kept[alive] = True
        return kept & ~self.banned[candidates.cpu()].any(dim=-1)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def make_prompts(
    tokenizer: PreTrainedTokenizerBase,
    behaviours: Sequence[Behaviour],
    num_tokens: int,
    banned: Tensor,
    *,
    system: str = "",
    init: str = "",
    seed: int = 0,
) -> tuple[list[Prompt], Tensor]:
    """Find the place of a suffix in every conversation, and an initial suffix that survives in all of them.

    Args:
        tokenizer: with a chat template.
        behaviours: what is asked, and the opening that is aimed at.
        num_tokens: S.
        banned: [vocabulary] ids that are not allowed.
        system: text of a system turn.
        init: text that is repeated as the initial suffix; by default "!" or the next unit that survives.
        seed: of random initial suffixes, tried when no repeated unit survives.

    Returns:
        The prompts, and the initial suffix [S].

    Raises:
        UserError: an empty target, a template that loses the suffix, or a tokenizer that gives no suffix back.
    """
    rendered = [_split(tokenizer, behaviour, system) for behaviour in behaviours]
    targets = [tuple(encode(tokenizer, behaviour.target)) for behaviour in behaviours]
    for behaviour, target in zip(behaviours, targets, strict=True):
        if not target:
            raise UserError(f"the target of {behaviour.goal[:40]!r} is empty.", hint="Give each goal a target.")
    for ids in _initial(tokenizer, num_tokens, banned, init, seed):
        prompts = [_place(tokenizer, parts, ids, target) for parts, target in zip(rendered, targets, strict=True)]
        whole = [prompt for prompt in prompts if prompt is not None]
        suffix = torch.tensor(ids)
        if len(whole) == len(prompts) and bool(TokenRules(tokenizer, whole, banned).keep(suffix[None])[0]):
            return whole, suffix
    raise UserError(
        f"no suffix of {num_tokens} tokens comes back unchanged from text: the tokenizer does not round-trip.",
        hint="Try another --suffix-tokens or --init; one that rewrites text (lower case, say) cannot be searched.",
    )


def decode_suffix(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return a suffix as text, its spaces as they are."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _split(tokenizer: PreTrainedTokenizerBase, behaviour: Behaviour, system: str) -> tuple[str, str, str]:
    content = content_of(behaviour, MARK)
    pieces = render(tokenizer, content, system).split(MARK)
    if len(pieces) != 2:
        raise UserError(f"the chat template writes the user's text {len(pieces) - 1} times.", hint="It has to once.")
    head, tail = pieces
    return (head[:-1], " ", tail) if head.endswith(" ") else (head, "", tail)


def _initial(
    tokenizer: PreTrainedTokenizerBase, num_tokens: int, banned: Tensor, init: str, seed: int
) -> list[list[int]]:
    units = [ids for unit in ([init] if init else UNITS) if (ids := encode(tokenizer, unit))]
    repeated = [(ids * num_tokens)[:num_tokens] for ids in units]
    allowed = (~banned).nonzero().flatten().tolist()
    if not allowed:
        raise UserError("every token is banned.", hint="Add --allow-non-ascii.")
    rng = python_random(seed, "initial suffix")
    drawn = [] if init else [rng.choices(allowed, k=num_tokens) for _ in range(MAX_DRAWS // num_tokens)]
    return [ids for ids in repeated + drawn if not banned[torch.tensor(ids)].any()]


def _place(
    tokenizer: PreTrainedTokenizerBase, parts: tuple[str, str, str], ids: list[int], target: tuple[int, ...]
) -> Prompt | None:
    """Cut the encoded conversation at the suffix; None where its tokens do not stand alone."""
    head, separator, tail = parts
    suffix = decode_suffix(tokenizer, ids)
    text = Prompt(head, separator, tail, (), (), target).text(suffix)
    whole = prompt_ids(tokenizer, text)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    first = next((i for i, (_, end) in enumerate(offsets) if end > len(head) and whole[i : i + len(ids)] == ids), None)
    if first is None:
        return None
    return Prompt(head, separator, tail, tuple(whole[:first]), tuple(whole[first + len(ids) :]), target)
