"""OpenAI-compatible completions over HTTP, on loopback unless told otherwise: one text at a time, streamed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from polyloom.core.errors import MissingExtra, PolyloomError, UserError
from polyloom.core.result import Result, Scalar
from polyloom.generation.decode import max_positions
from polyloom.generation.layer_range import LayerRange, open_range
from polyloom.generation.sampling import Decoding
from polyloom.generation.speculative import PLAIN, Controller, Counts, Fixed, Generated, check_request, generate
from polyloom.methods.layerskip.adaptive import Adaptive, describe
from polyloom.methods.layerskip.calibration import best_plan, calibrate
from polyloom.methods.layerskip.config import ServeConfig
from polyloom.methods.layerskip.data import prompt_tokens
from polyloom.methods.layerskip.embedded import Prepared, choose_prompts, prepare
from polyloom.methods.layerskip.notes import read_plan
from polyloom.runs.folder import Run

LONGEST_POSITIONS = 4096
LARGEST_BODY = 4 * 2**20
MODEL_NAME = "polyloom"


@dataclass
class Engine:
    """A model behind the server: one runner, so one text at a time."""

    prepared: Prepared
    runner: LayerRange
    controller: Controller
    num_positions: int
    counts: Counts = field(default_factory=Counts)
    num_requests: int = 0

    def complete(self, prompt: list[int], settings: Decoding, on_text: Callable[[str], None] | None) -> Generated:
        """Continue one prompt."""
        result = generate(
            self.runner,
            prompt,
            settings,
            self.controller,
            ends=self.prepared.ends,
            tokenizer=self.prepared.tokenizer,
            on_text=on_text,
        )
        self.counts.add(result.counts)
        return result


def open_engine(config: ServeConfig, run: Run) -> Engine:
    """Load the model, calibrate it, and make it ready."""
    prepared = prepare(config, run)
    num_positions = min(max_positions(prepared.model) or LONGEST_POSITIONS, LONGEST_POSITIONS)
    runner = open_range(prepared.model, num_positions)
    controller: Controller = Fixed(PLAIN)
    noted = read_plan(config.model, runner.num_layers)
    if config.mode == "speculative" and noted is not None:
        controller = Fixed(noted)
        sys.stderr.write(f"noted beside the model: {describe(noted)}\n")
    elif config.mode != "plain":
        prompts = [one.prompt for one in choose_prompts(config, prepared)]
        cells, costs, traces, _ = calibrate(runner, prompts, config.max_new_tokens, prepared.ends)
        plan = best_plan(cells)[0]
        controller = Fixed(plan) if config.mode == "speculative" else Adaptive(runner, costs, traces=traces)
        sys.stderr.write(f"calibrated: {describe(plan)}\n")
    return Engine(prepared, runner, controller, num_positions)


def read_request(engine: Engine, body: Any) -> tuple[list[int], Decoding, bool]:
    """Turn a request's JSON into a prompt, settings and whether to stream.

    Raises:
        UserError: a field that is missing, of the wrong kind, or not supported.
    """
    if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
        raise UserError("the request needs a prompt, one text.")
    for name, only in (("n", 1), ("best_of", 1), ("echo", False), ("logprobs", None)):
        if body.get(name, only) not in (only, None):
            raise UserError(f"{name} is not supported.")
    stop = body.get("stop") or []
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    try:
        settings = Decoding(
            int(body.get("max_tokens") or 16),
            float(body.get("temperature") or 0.0),
            int(body.get("top_k") or 0),
            float(body.get("top_p") or 1.0),
            int(body.get("seed") or 0),
            stops,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"a field has the wrong kind: {error}.") from error
    prompt = prompt_tokens(engine.prepared.tokenizer, body["prompt"])
    check_request(prompt, settings, engine.runner.vocab_size, engine.num_positions)
    return prompt, settings, bool(body.get("stream"))


def completion(name: str, text: str, finish_reason: str | None, usage: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a completion (or a piece of one) in the protocol's form."""
    reason = "stop" if finish_reason in ("eos", "stop") else finish_reason
    value: dict[str, Any] = {
        "id": name,
        "object": "text_completion",
        "created": int(time.time()),
        "model": MODEL_NAME,
        "choices": [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None}],
    }
    return value if usage is None else value | {"usage": usage}


def make_app(engine: Engine, on_request: Callable[[], None] | None = None) -> Any:
    """Return the aiohttp application: GET /v1/models, POST /v1/completions.

    Raises:
        MissingExtra: aiohttp is not installed.
    """
    try:
        from aiohttp import web
    except ImportError as error:
        raise MissingExtra("aiohttp", extra="api") from error
    worker = ThreadPoolExecutor(max_workers=1)

    async def models(request: Any) -> Any:
        return web.json_response({"object": "list", "data": [{"id": MODEL_NAME, "object": "model"}]})

    async def completions(request: Any) -> Any:
        try:
            prompt, settings, stream = read_request(engine, await request.json())
        except json.JSONDecodeError:
            return _refused(web, "the body is not JSON.")
        except UserError as error:
            return _refused(web, str(error))
        engine.num_requests += 1
        name = f"cmpl-{engine.num_requests}"
        loop = asyncio.get_running_loop()
        try:
            if stream:
                return await _stream(web, request, engine, worker, name, prompt, settings)
            result = await loop.run_in_executor(worker, engine.complete, prompt, settings, None)
            return web.json_response(completion(name, result.text, result.finish_reason, _usage(prompt, result)))
        except PolyloomError as error:
            return web.json_response({"error": {"message": str(error), "type": "server_error"}}, status=500)
        finally:
            if on_request:
                on_request()

    async def close(app: Any) -> None:
        worker.shutdown(wait=False)

    app = web.Application(client_max_size=LARGEST_BODY)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", completions)
    app.on_cleanup.append(close)
    return app


def _refused(web: Any, message: str) -> Any:
    return web.json_response({"error": {"message": message, "type": "invalid_request_error"}}, status=400)


def _usage(prompt: list[int], result: Generated) -> dict[str, int]:
    new = len(result.tokens)
    return {"prompt_tokens": len(prompt), "completion_tokens": new, "total_tokens": len(prompt) + new}


async def _stream(
    web: Any, request: Any, engine: Engine, worker: ThreadPoolExecutor, name: str, prompt: list[int], settings: Decoding
) -> Any:
    """Send pieces of text as server-sent events while the worker decodes."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)

    def work() -> Generated:
        try:
            return engine.complete(prompt, settings, lambda one: _hand_over(loop, pieces, one))
        finally:
            _hand_over(loop, pieces, None)

    done = loop.run_in_executor(worker, work)
    while (piece := await pieces.get()) is not None:
        await _send(response, completion(name, piece, None))
    result = await done
    await _send(response, completion(name, "", result.finish_reason, _usage(prompt, result)))
    await response.write(b"data: [DONE]\n\n")
    return response


def _hand_over(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None], piece: str | None) -> None:
    loop.call_soon_threadsafe(pieces.put_nowait, piece)


async def _send(response: Any, value: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode())


def run_serve(config: ServeConfig, run: Run) -> Result:
    """Serve completions until stopped, or until so many requests were answered.

    Args:
        config: model, address and port.
        run: asked to stop by SIGTERM or SIGINT.

    Returns:
        Requests, tokens and acceptance.

    Raises:
        MissingExtra: aiohttp is not installed.
        UserError: the address cannot be used.
    """
    engine = open_engine(config, run)
    asyncio.run(_serve(config, run, engine))
    counts = engine.counts
    return run.result(
        scalars={
            "num_requests": Scalar(value=engine.num_requests),
            "tokens_per_round": Scalar(value=counts.tokens_per_round),
            "acceptance": Scalar(value=counts.acceptance, unit="share"),
        },
        verdicts=[f"{engine.num_requests} requests, {counts.tokens_per_round:.2f} tokens per round."],
        limitations=engine.prepared.limitations,
    )


async def _serve(config: ServeConfig, run: Run, engine: Engine) -> None:
    enough = asyncio.Event()

    def answered() -> None:
        if config.max_requests and engine.num_requests >= config.max_requests:
            enough.set()

    app = make_app(engine, answered)
    from aiohttp import web

    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(
                f"cannot listen there ({error.strerror}).", where=f"{config.host}:{config.port}", hint="Try --port 0."
            ) from error
        port = runner.addresses[0][1]
        sys.stderr.write(f"listening on http://{config.host}:{port}/v1\n")
        while not enough.is_set() and not run.stop_requested:
            try:
                await asyncio.wait_for(enough.wait(), timeout=0.2)
            except TimeoutError:
                continue
    finally:
        await runner.cleanup()


__all__ = ["Engine", "make_app", "open_engine", "read_request", "run_serve"]
