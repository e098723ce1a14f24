"""Text out of models: batched decoding of local ones, and one chat interface for local models and servers.

`connect` opens a chat model from one string. Names are loaded when they are first used, so that importing this package
imports neither torch nor a web client. The function `decode` is in the module of its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyloom.core.lazy import lazy_names

if TYPE_CHECKING:
    from polyloom.generation.chat import Account as Account
    from polyloom.generation.chat import ChatModel as ChatModel
    from polyloom.generation.chat import ChatReply as ChatReply
    from polyloom.generation.chat import ChatRequest as ChatRequest
    from polyloom.generation.chat import Message as Message
    from polyloom.generation.chat import Usage as Usage
    from polyloom.generation.chat import ask as ask
    from polyloom.generation.chat import complete_all as complete_all
    from polyloom.generation.endpoints import connect as connect
    from polyloom.generation.fake_server import FakeServer as FakeServer
    from polyloom.generation.local import LocalChat as LocalChat
    from polyloom.generation.sampling import Decoding as Decoding
    from polyloom.generation.scoring import score_continuations as score_continuations
    from polyloom.generation.server import ServerChat as ServerChat

_MODULES = {
    "Account": ".chat",
    "ChatModel": ".chat",
    "ChatReply": ".chat",
    "ChatRequest": ".chat",
    "Message": ".chat",
    "Usage": ".chat",
    "ask": ".chat",
    "complete_all": ".chat",
    "connect": ".endpoints",
    "FakeServer": ".fake_server",
    "LocalChat": ".local",
    "Decoding": ".sampling",
    "score_continuations": ".scoring",
    "ServerChat": ".server",
}

__getattr__ = lazy_names(__name__, _MODULES)
