"""Chat with a local model: requests that are waiting together are decoded together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polyloom.core.errors import UserError
from polyloom.core.seeding import derive_seed
from polyloom.generation.chat import Account, ChatReply, ChatRequest, Message, Progress, Usage, gather_replies
from polyloom.generation.decode import Decoded, decode, max_positions
from polyloom.generation.sampling import Decoding
from polyloom.models.tokenizers import encode

GATHER_SECONDS = 0.005
PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
PLAIN_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")


class _Abandoned(Exception):
    """Nobody waits for this batch any more."""


@dataclass(frozen=True)
class _Waiting:
    prompt: list[int]
    prefix: list[int]
    settings: Decoding
    future: asyncio.Future[Decoded]


class LocalChat:
    """A Hugging Face model on this machine.

    The conversation is written with the tokenizer's chat template. Without one the plain form is used: a line
    `System: ...`, `User: ...` or `Assistant: ...` per turn, then `Assistant:`; the reply ends where the model begins
    such a line itself, and its leading space is dropped. An encoder-decoder model gets the turns' texts alone, and a
    prefilled turn as the beginning of its decoder's text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "local",
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        """Wrap a model.

        Args:
            model: causal or encoder-decoder.
            tokenizer: its tokenizer.
            name: what replies call the model.
            batch_size: requests decoded together at most.
            seed: of the random streams of sampled requests that bring no seed of their own.
        """
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.batch_size, self.seed = batch_size, seed
        self.account = Account()
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._num_asked: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._waiting:
            one.future.cancel()
        if self._worker is not None:
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request, decoded together with the others that are waiting."""
        prompt, prefix = self.prompt_tokens(request)
        num_tokens = len(prefix) + 1 if self.model.config.is_encoder_decoder else len(prompt)
        limit = max_positions(self.model)
        budget = min(request.max_tokens, limit - num_tokens + 1) if limit else request.max_tokens
        if budget < 1:
            error = f"the prompt's {num_tokens} tokens exceed the model's {limit} positions."
            reply = ChatReply("", "rejected", self.name, error=error)
        else:
            reply = self._reply(await self._decoded(prompt, prefix, self._settings(request, budget)), prompt, prefix)
        self.account.add(reply)
        return reply

    async def complete_many(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> list[ChatReply]:
        """Answer requests together."""
        return await gather_replies(self.complete, requests, progress)

    def prompt_tokens(self, request: ChatRequest) -> tuple[list[int], list[int]]:
        """Return the tokens that the model reads for `request`, and those that its decoder begins with.

        The second is empty for a causal model, whose prompt ends with the prefilled text. That text is encoded on its
        own behind a chat template, so that no template can trim or rewrite it.

        Raises:
            UserError: the chat template refuses the conversation.
        """
        turns = request.messages[:-1] if request.messages[-1].role == "assistant" else request.messages
        if self.model.config.is_encoder_decoder:
            source = "\n".join(turn.content for turn in turns)
            return list(self.tokenizer(source, verbose=False)["input_ids"]), encode(self.tokenizer, request.prefill)
        if self.tokenizer.chat_template is None:
            tokens = list(self.tokenizer(plain_text(request.messages), verbose=False)["input_ids"])
            ends_itself = len(tokens) > 1 and tokens[-1] == self.tokenizer.eos_token_id
            return (tokens[:-1] if ends_itself else tokens), []
        conversation = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UserError(f"the chat template refuses the conversation: {error}", where=self.name) from error
        # The template writes the special tokens itself.
        tokens = list(self.tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"])
        return tokens + encode(self.tokenizer, request.prefill), []

    def _uses_plain_form(self) -> bool:
        return self.tokenizer.chat_template is None and not self.model.config.is_encoder_decoder

    def _settings(self, request: ChatRequest, budget: int) -> Decoding:
        seed = request.seed
        if seed is None:
            # Asking the same again is a fresh draw, yet the same program gives the same draws.
            key = request.key(self.name)
            seed = derive_seed(self.seed, key, self._num_asked[key])
            self._num_asked[key] += 1
        stop = request.stop + (PLAIN_STOPS if self._uses_plain_form() else ())
        return Decoding(budget, request.temperature, request.top_k, request.top_p, seed, stop)

    def _reply(self, decoded: Decoded, prompt: list[int], prefix: list[int]) -> ChatReply:
        text = decoded.text.removeprefix(" ") if self._uses_plain_form() else decoded.text
        usage = Usage(len(prompt) + len(prefix), len(decoded.tokens))
        if decoded.finish_reason == "length":
            return ChatReply(text, "length", self.name, usage)
        if not text.strip():
            return ChatReply(text, "empty", self.name, usage, error="the model ended its turn without text.")
        return ChatReply(text, "complete", self.name, usage)

    async def _decoded(self, prompt: list[int], prefix: list[int], settings: Decoding) -> Decoded:
        future: asyncio.Future[Decoded] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(prompt, prefix, settings, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            # Requests of other tasks that are about to come go into the same batch.
            await asyncio.sleep(GATHER_SECONDS)
            taken, self._waiting = self._waiting, []
            taken.sort(key=lambda one: len(one.prompt))
            for start in range(0, len(taken), self.batch_size):
                batch = [one for one in taken[start : start + self.batch_size] if not one.future.cancelled()]
                if batch:
                    await self._answer(batch)

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            results = await asyncio.to_thread(self._decode, batch)
        except _Abandoned:
            return
        except Exception as error:  # handed to those who wait
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        for one, result in zip(batch, results, strict=True):
            if not one.future.done():
                one.future.set_result(result)

    def _decode(self, batch: list[_Waiting]) -> list[Decoded]:
        def check() -> None:
            if all(one.future.cancelled() for one in batch):
                raise _Abandoned

        return decode(
            self.model,
            [one.prompt for one in batch],
            [one.settings for one in batch],
            tokenizer=self.tokenizer,
            decoder_prefixes=[one.prefix for one in batch],
            batch_size=self.batch_size,
            before_step=check,
        )


def plain_text(messages: Sequence[Message]) -> str:
    """Write a conversation for a model without a chat template: `Role: text` lines and an open assistant's turn."""
    lines = [f"{PLAIN_NAMES[message.role]}: {message.content}" for message in messages]
    if messages[-1].role != "assistant":
        lines.append("Assistant:")
    return "\n".join(lines)
