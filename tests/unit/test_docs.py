"""The documentation names only commands, flags, files and codes that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click
import pytest

from fl import errors, paths
from fl.cli import COMMANDS, group

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]


def subcommands(name: str) -> set[str]:
    """The subcommands of a command; empty for one that has none."""
    with click.Context(group) as context:
        command = group.get_command(context, name)
        return set(command.list_commands(context)) if isinstance(command, click.Group) else set()


def options(name: str) -> set[str]:
    with click.Context(group) as context:
        command = group.get_command(context, name)
    assert command is not None
    return {option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts}


def typed(text: str) -> list[tuple[str, list[str]]]:
    """(command, its first subcommands) of everything that is shown to be typed: `fl hw`, `fl matrix list|show`."""
    shown = re.findall(r"^    (?:\.venv/bin/)?fl ([a-z]+)(?: ([a-z|]+)\b)?", text, re.M)
    shown += re.findall(r"`fl ([a-z]+)(?: ([a-z|\\]+))?[^`]*`", text)
    return [(command, [word for word in rest.replace("\\", "").split("|") if word]) for command, rest in shown]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    for command, rest in typed(page.read_text("utf-8")):
        assert command in COMMANDS, f"{page.name}: fl {command}"
        known = subcommands(command)
        assert not known or set(rest) <= known, f"{page.name}: fl {command} {rest}"


def test_commands_are_found_as_they_are_written() -> None:
    assert typed("    fl matrix list   the rows\n`fl recipe check\\|show`") == [("matrix", ["list"]), ("recipe", ["check", "show"])]


def test_every_command_is_in_the_readme() -> None:
    named = {command for command, _ in typed((ROOT / "README.md").read_text("utf-8"))}
    assert named == set(COMMANDS)


def test_every_flag_of_run_is_documented_and_exists() -> None:
    text = (ROOT / "docs" / "run.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `(--[a-z-]+)", text, re.M))
    assert documented == options("run") - {"--help"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).is_file(), f"{page.name}: {target}"


def test_exit_codes_are_all_told() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs" / "concepts.md").read_text("utf-8"), re.M)
    told = {int(code) for row in rows for code in row.split(",")}
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.FlError)]
    assert told == {0} | {value.exit_code for value in classes}


def test_every_shipped_recipe_is_told() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert [path.stem for path in paths.recipes().glob("*.yaml") if f"`{path.stem}`" not in text] == []


def test_every_page_is_linked_or_named() -> None:
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "AGENTS.md").read_text("utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in text] == []
