"""A tiny model trained on the spot to answer the commons' prompts: plumbing for the local path, not a mind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from polyloom.core.seeding import python_random
from polyloom.generation.chat import ChatRequest, ask
from polyloom.methods.commons.mock import rule_reply
from polyloom.methods.commons.scenario import load_scenario

LANGUAGES = ("en", "de")


def training_pairs(num_pairs: int, seed: int) -> list[tuple[str, str]]:
    """Return short prompts with the reply that a rule gives, for stocks drawn from the seed."""
    random = python_random(seed, "tiny pairs")
    pairs = []
    for number in range(num_pairs):
        scenario = load_scenario("fishery", LANGUAGES[number % len(LANGUAGES)])
        words = scenario.words
        stock = random.randint(10, 100)
        name = words.names(5)[number % 5]
        question = words.say("question", stock=stock, name=name)
        memory = words.say("stock", stock=stock)
        task = words.say("act", question=question, high=stock)
        prompt = f"{words.say('place', place=words.place(0))}\n- {memory}\n\n{task}"
        pairs.append((prompt, rule_reply(prompt)))
    return pairs


def train_tiny(folder: Path, *, steps: int, seed: int, check_stop: Callable[[], None] | None = None) -> float:
    """Train a 2-layer model on prompts and replies and save it with its tokenizer.

    Args:
        folder: where the Hugging Face folder is written.
        steps: optimiser steps.
        seed: of the pairs, the weights and the batches.
        check_stop: raises when the verb is to stop.

    Returns:
        The last loss in nats.
    """
    from polyloom.generation.chat import Message
    from polyloom.generation.local import plain_text
    from polyloom.models.device import pin_threads
    from polyloom.models.load import save_model
    from polyloom.models.tiny import build_tiny
    from polyloom.models.tokenizers import train_tokenizer
    from polyloom.training.config import TrainConfig
    from polyloom.training.loop import train
    from polyloom.training.packing import pack, window_batches

    pin_threads()
    texts = [
        plain_text([Message("user", prompt), Message("assistant", reply)])
        for prompt, reply in training_pairs(240, seed)
    ]
    tokenizer = train_tokenizer(texts, 700)
    model = build_tiny("llama-2x64", len(tokenizer), seed)
    batches = window_batches(pack(texts, tokenizer), window_tokens=160, batch_size=8, seed=seed)
    config = TrainConfig(seed=seed, steps=steps, batch_size=8, lr=4e-3, warmup_steps=10, precision="float32")
    state = train(model, batches, config, check_stop=check_stop)
    save_model(model, folder, tokenizer)
    return float(state.loss or 0.0)


def batching(folder: Path, num_requests: int, batch_size: int, seed: int) -> tuple[float, bool, int]:
    """Decode requests one by one and in batches.

    Args:
        folder: the model's.
        num_requests: how many prompts.
        batch_size: of the batches.
        seed: of the prompts.

    Returns:
        CPU time one by one over CPU time batched, whether all replies are equal, and how many hold a number.
    """
    from polyloom.generation.local import LocalChat
    from polyloom.methods.commons.parsing import READABLE, quantity
    from polyloom.models.device import pin_threads
    from polyloom.models.load import load_model, load_tokenizer

    pin_threads()
    model = load_model(str(folder), kind="causal")
    tokenizer = load_tokenizer(str(folder), model)
    requests = [ask(prompt, max_tokens=32) for prompt, _ in training_pairs(num_requests, seed)]

    def replies(size: int, some: Sequence[ChatRequest]) -> tuple[list[str], float]:
        chat = LocalChat(model, tokenizer, batch_size=size)

        async def work() -> list[str]:
            async with chat:
                if size == 1:
                    return [(await chat.complete(request)).text for request in some]
                return [reply.text for reply in await chat.complete_many(some)]

        began = time.process_time()
        texts = asyncio.run(work())
        return texts, time.process_time() - began

    replies(batch_size, requests[:batch_size])
    alone, slow = replies(1, requests)
    together, fast = replies(batch_size, requests)
    read = sum(quantity(text, 0, 100).status in READABLE for text in together)
    return slow / fast, alone == together, read
