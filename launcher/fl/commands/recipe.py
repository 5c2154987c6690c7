"""`fl recipe`: what a recipe means, before anything runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl import ui
from fl.commands.groups import Group

if TYPE_CHECKING:
    from fl.recipe import Recipe
    from fl.recipe_check import OnLane

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_recipe = click.argument("source", metavar="RECIPE")
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.group(cls=Group)
def recipe() -> None:
    """Check, show and list recipes, and the rows that they train on."""


@recipe.command()
@_recipe
@_overrides
@_json
@click.pass_context
def check(context: click.Context, source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what becomes of every key, and what the recipe means on every lane. Opens neither model nor data.

    RECIPE may be a folder: then a table says what each of its .yaml files means on every lane.

    Ends with 5 when a key is refused.
    """
    from fl import matrix, recipe_check, resolve

    if source not in resolve.shipped_recipes() and Path(source).expanduser().is_dir():
        _check_folder(context, Path(source).expanduser(), overrides, as_json)
        return
    found = resolve.read(source, overrides, tolerant=True)
    lanes = recipe_check.on_lanes(found, matrix.load())
    if as_json:
        ui.document(recipe_check.to_json(found, lanes))
    else:
        _print_check(found, lanes)
    if found.refused:
        context.exit(5)


@recipe.command()
@_recipe
@_overrides
@_json
def show(source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the config that a recipe becomes: complete, typed, with absolute paths."""
    from fl import matrix, resolve
    from fl.recipe_check import lane_and_stack

    found = resolve.read(source, overrides)
    lane, stack = lane_and_stack(found, matrix.load())
    config = resolve.resolve(found, run_name=found.name, lane=lane, stack=stack, events="/dev/null", cache=None, cwd=Path.cwd()).dump()
    if as_json:
        ui.document(config)
    else:
        import yaml

        del config["run"]
        ui.out(ui.clean(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=140)).rstrip())


@recipe.command()
@click.option("--rows", default=3, show_default=True, type=click.IntRange(0, 1000), help="How many rows to show.")
@click.option("--ids", is_flag=True, help="Show token ids too.")
@click.option("--hw", type=click.Choice(("auto", "cuda", "rocm", "ascend", "xpu", "cpu")), help="Lane whose environment is used.")
@click.option("--stack", metavar="ID", help="Row of the matrix whose environment is used.")
@click.option("--python", type=click.Path(path_type=Path), metavar="PATH", help="Use this interpreter as it is.")
@click.option("--trust", is_flag=True, help="Let a model's own code run on this machine without a container.")
@_recipe
@_overrides
@_json
def data(
    rows: int, ids: bool, hw: str | None, stack: str | None, python: Path | None, trust: bool, source: str, overrides: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Show the first rows as the model will see them: text, token ids, and which of them are trained; and what was cut or dropped.

    All rows are read and tokenized, in the environment that `fl run --engine host` uses. No weights are loaded.
    """
    from fl import recipe_data
    from fl.decide import Options, decide
    from fl.errors import UsageError
    from fl.host import environment_replay

    if environment_replay(os.environ) is not None:
        raise UsageError("FL_REPLAY is a recorded machine, on which nothing can be started", "unset FL_REPLAY")
    options = Options(engine="host", hw=hw, stack=stack, python=python.absolute() if python else None, trust=trust, force=True)
    found = recipe_data.look(decide(source, overrides, options), rows, ui.step)
    ui.document(found) if as_json else recipe_data.draw(found, ids=ids)


@recipe.command("list")
@_json
def list_(as_json: bool) -> None:
    """List the recipes that come with fl."""
    from fl import paths, resolve

    rows = [{"name": name, "about": resolve.title(path), "path": str(path)} for name, path in resolve.shipped_recipes().items()]
    if as_json:
        ui.document({"recipes": rows})
    else:
        ui.table(("NAME", "ABOUT"), [(row["name"], row["about"]) for row in rows])
        ui.say(f"\nthey are in {paths.recipes()}")


@recipe.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from fl import recipe_schema

    ui.document(recipe_schema.schema())


def _check_folder(context: click.Context, folder: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    from fl import matrix, recipe_check, resolve
    from fl.errors import RecipeError

    paths = [path for path in sorted(folder.rglob("*.y*ml")) if path.suffix in resolve.SUFFIXES and path.is_file()]
    if not paths:
        raise RecipeError(f"There is no recipe (.yaml, .yml) in the folder {folder}.", f"ls {folder}")
    files = [(str(path.relative_to(folder)), str(path.absolute())) for path in paths]
    found = recipe_check.on_folder(files, matrix.load(), overrides)
    if as_json:
        ui.document({"folder": str(folder.absolute()), "recipes": [one.to_json() for one in found]})
    else:
        lanes = recipe_check.LANE_NAMES
        rows = [(one.file, *one.verdicts) for one in found]
        ui.table(("RECIPE", *(lane.upper() for lane in lanes)), rows)
        refused = [(one.file, reason) for one in found for reason in one.reasons]
        adapted = [(one.file, how) for one in found for how in one.adaptations]
        for title, what, lines in (("REFUSED", "BECAUSE", refused), ("ADAPTED", "HOW", adapted)):
            if lines:
                ui.out()
                ui.table((title, what), lines)
    if any(one.refused for one in found):
        context.exit(5)


def _print_check(found: Recipe, lanes: tuple[OnLane, ...]) -> None:
    ui.table(("KEY", "VALUE", "", "NOTE"), [(n.key, _short(n.value), n.verdict, n.note) for n in found.keys])
    ui.out()
    ui.table(("LANE", "", "STACK", "NOTES"), [(o.lane, o.verdict, o.stack or "-", "; ".join(o.notes)) for o in lanes])
    for note in found.refused:
        ui.error(note.problem)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"
