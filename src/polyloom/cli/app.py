"""The tree of commands: the rooms' verbs from their cards, and the workbench's own commands."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from polyloom import __version__
from polyloom.core import registry
from polyloom.core.config import Config, load_config
from polyloom.core.registry import RoomCard, Verb, card
from polyloom.core.result import Result

RunsOption = Annotated[Path | None, Parameter(help="The runs folder. [default: $POLYLOOM_RUNS, else ./runs]")]
JsonOption = Annotated[bool, Parameter(name="--json", negative="", help="Print the result alone, as JSON.")]
COMMON_OPTIONS: dict[str, tuple[Any, Any]] = {
    "config": (Annotated[Path | None, Parameter(help="A YAML file of options; the command line wins over it.")], None),
    "runs": (RunsOption, None),
    "run": (Annotated[str | None, Parameter(help="The run's name. [default: room, verb and time]")], None),
    "as_json": (JsonOption, False),
}


def build_app(words: list[str]) -> App:
    """Build the commands; only the room that `words` name gets its verbs, so that `--help` stays quick.

    Args:
        words: the words of the command line.
    """
    app = App(
        name="polyloom",
        version=__version__,
        help="A workbench for a multilingual language model's whole life. Errors show a traceback with --debug.",
    )
    first = next((word for word in words if not word.startswith("-")), "")
    app.command(verb_command("tour.run"), name="tour", help=card("tour").question, sort_key=0)
    for name, room in registry.rooms().items():
        app.command(_room_app(room, complete=name == first))
    from polyloom.cli import doctor, runs, serve, world

    app.command(runs.app)
    app.command(runs.rerun, sort_key=101)
    app.command(runs.report, sort_key=102)
    app.command(world.app)
    app.command(serve.serve, sort_key=99)
    app.command(doctor.doctor, sort_key=104)
    return app


def _room_app(room: RoomCard, complete: bool) -> App:
    app = App(
        name=room.name, sort_key=1 + room.order, help=f"{room.title}: {room.question}" if complete else room.question
    )
    if complete:
        for order, verb in enumerate(room.verbs):
            app.command(verb_command(f"{room.name}.{verb.name}"), name=verb.name, help=verb.summary, sort_key=order)
    return app


def verb_command(target: str) -> Callable[..., int]:
    """Make the command of a verb: its options are the fields of its configuration, and the common ones."""
    room_name, _, verb_name = target.partition(".")
    verb = card(room_name).verb(verb_name)

    def command(**given: Any) -> int:
        common = {name: given.pop(name, None) for name in COMMON_OPTIONS}
        return run_command(target, verb, given, common)

    command.__name__ = verb_name
    signature = _signature(verb.load_config())
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


def _signature(model: type[Config]) -> inspect.Signature:
    options = [_option(name, field) for name, field in model.model_fields.items()]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in COMMON_OPTIONS.items()
    ]
    return inspect.Signature([*options, *common])


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    default = field.get_default(call_default_factory=True)
    required = default is PydanticUndefined
    text = f"{field.description or ''}{' [required]' if required else ''}"
    annotation: Any = field.annotation
    if required:
        annotation, default = annotation | None, None
    shown = default not in (None, ())
    kind = Annotated[annotation, Parameter(help=text, consume_multiple=True, negative_iterable="", show_default=shown)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def run_command(target: str, verb: Verb, given: dict[str, Any], common: dict[str, Any]) -> int:
    """Resolve the configuration, run the verb, and show its result.

    Args:
        target: room and verb.
        verb: the verb.
        given: the options that the command line spelled out.
        common: the options that every verb has.

    Returns:
        The exit code; 1 when the result says that a part of it failed.
    """
    from polyloom.runs.execute import default_root, run_verb

    config = load_config(verb.load_config(), common["config"], given)
    root = common["runs"] or default_root()
    result = run_verb(target, config, runs=root, name=common["run"])
    return show(result, root, as_json=bool(common["as_json"]))


def show(result: Result, root: Path, *, as_json: bool) -> int:
    """Print a result, as JSON alone or for a person; returns 1 when the scalar `failed_steps` is above 0."""
    if as_json:
        sys.stdout.write(result.model_dump_json(indent=1) + "\n")
    else:
        from rich.console import Console

        from polyloom.reports import print_summary

        print_summary(result, Console(), report=root / result.run / "report.html")
    failed = result.scalars.get("failed_steps")
    return 1 if failed and failed.value else 0
