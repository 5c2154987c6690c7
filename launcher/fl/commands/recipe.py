"""`fl recipe`: what a recipe means, before anything runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fl import ui

if TYPE_CHECKING:
    from fl.recipe import Recipe
    from fl.recipe_check import OnLane

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_recipe = click.argument("source", metavar="RECIPE")
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.group()
def recipe() -> None:
    """Check, show and list recipes."""


@recipe.command()
@_recipe
@_overrides
@_json
@click.pass_context
def check(context: click.Context, source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what becomes of every key, and what the recipe means on every lane. Opens neither model nor data.

    Ends with 5 when a key is refused.
    """
    from fl import matrix, recipe_check, resolve

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
    from pathlib import Path

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


@recipe.command("list")
@_json
def list_(as_json: bool) -> None:
    """List the recipes that come with fl."""
    from fl import resolve

    rows = [{"name": name, "about": resolve.title(path), "path": str(path)} for name, path in resolve.shipped_recipes().items()]
    if as_json:
        ui.document({"recipes": rows})
    else:
        ui.table(("NAME", "ABOUT"), [(row["name"], row["about"]) for row in rows])


@recipe.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from fl import recipe_schema

    ui.document(recipe_schema.schema())


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
