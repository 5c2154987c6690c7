"""The click group. A command's module is imported when the command is used; the one place that catches FlError."""

from __future__ import annotations

import importlib
import sys
from typing import Final, cast

import click

from fl import __version__, ui
from fl.errors import FlError, UsageError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "run": ("fl.commands.run:run", "Train what a recipe says on this machine."),
    "hw": ("fl.commands.hw:hw", "Show the accelerators of this machine, with evidence."),
    "recipe": ("fl.commands.recipe:recipe", "Check, show and list recipes, and the rows that they train on."),
    "matrix": ("fl.commands.matrix:matrix", "List, show, check and update the compatibility matrix."),
    "images": ("fl.commands.images:images", "List, render, lock, build, verify and ship images."),
    "conform": ("fl.commands.conform:conform", "Try on this machine whether a stack does what the matrix says."),
    "pin": ("fl.commands.pin:pin", "Write or verify fl.lock: the stack that a project runs on."),
    "audit": ("fl.commands.audit:audit", "Say which model works on which lane, and how we know."),
    "fetch": ("fl.commands.fetch:fetch", "Fetch what a recipe needs, for a site without internet."),
    "ps": ("fl.commands.runs:ps", "List runs."),
    "logs": ("fl.commands.runs:logs", "Print the log of a run."),
    "attach": ("fl.commands.runs:attach", "Watch a run until it ends."),
    "stop": ("fl.commands.runs:stop", "Stop a run: checkpoint, then end."),
    "resume": ("fl.commands.runs:resume", "Go on with a run from its last checkpoint."),
    "rm": ("fl.commands.runs:rm", "Remove the folders of runs that are over."),
    "gc": ("fl.commands.gc:gc", "Remove caches that nothing needs."),
    "env": ("fl.commands.env:env", "Print what a bug report needs."),
    "doctor": ("fl.commands.doctor:doctor", "Check host, drivers, engines and permissions."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports them when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0])
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, list(COMMANDS), 1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            ctx.fail(f"No such command '{ui.clean(name)}'.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="fl %(version)s")
def group() -> None:
    """Fine-tune open models the same way on NVIDIA, AMD, Ascend, Intel and CPU machines.

    Start with `fl run quickstart`.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code (design: one class of error, one code)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    ui.any_encoding()
    try:
        group.main(arguments, prog_name="fl", standalone_mode=True)
    except FlError as error:
        _end(error, as_json="--json" in arguments)
    except FileNotFoundError:
        if _is_somewhere():
            raise
        _end(UsageError("the folder that you are in is gone: it was removed or made anew", "cd ~"), as_json="--json" in arguments)


def _end(error: FlError, *, as_json: bool) -> None:
    if as_json:
        ui.document({"error": {"exit": error.exit_code, "message": error.message, "remedy": error.remedy}})
    else:
        ui.error(error.message, error.remedy)
    sys.exit(error.exit_code)


def _is_somewhere() -> bool:
    from pathlib import Path

    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True
