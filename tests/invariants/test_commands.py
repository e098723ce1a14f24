"""The public commands and their options: growth is a decision, made by editing the list beside this test."""

import inspect
import json
from pathlib import Path

from polyloom.cli import doctor, runs, serve, world
from polyloom.core.registry import card, rooms

LIST = Path(__file__).with_name("commands.json")


def current() -> dict[str, list[str]]:
    """Return the options of every verb by its command."""
    found = {}
    for room in [card("tour"), *rooms().values()]:
        for verb in room.verbs:
            found[f"{room.name} {verb.name}"] = sorted(verb.load_config().model_fields)
    own = {"rerun": runs.rerun, "report": runs.report, "doctor": doctor.doctor, "serve": serve.serve}
    for app in (runs.app, world.app):
        own |= {f"{app.name[0]} {name}": app[name].default_command for name in app if not name.startswith("-")}
    return found | {name: sorted(inspect.signature(command).parameters) for name, command in own.items()}


def test_commands_and_options_are_those_of_the_list():
    assert current() == json.loads(LIST.read_text()), "run: python -m tests.invariants.test_commands"


if __name__ == "__main__":
    LIST.write_text(json.dumps(current(), indent=1) + "\n")
