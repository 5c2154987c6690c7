"""cli.py: names, help, and how errors reach the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fl.cli import COMMANDS

Fl = Callable[..., "subprocess.CompletedProcess[str]"]


def test_help_lists_every_command(fl: Fl) -> None:
    done = fl("--help")
    assert done.returncode == 0
    for name, (_, text) in COMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(fl: Fl, name: str) -> None:
    done = fl(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: fl {name}")


@pytest.mark.parametrize("name", ["recipe", "matrix", "images", "audit"])
def test_the_help_of_a_group_cuts_no_sentence(fl: Fl, name: str) -> None:
    commands = fl(name, "--help").stdout.split("Commands:")[1]
    assert commands.strip()
    assert "..." not in commands


@pytest.mark.parametrize("name", ["recipe", "matrix", "images"])
def test_a_group_is_told_in_the_same_words_everywhere(fl: Fl, name: str) -> None:
    assert COMMANDS[name][1] in " ".join(fl(name, "--help").stdout.split())


def test_the_remedy_for_a_refused_override_repeats_it(fl: Fl) -> None:
    done = fl("run", "--dry-run", "tiny-sft", "max_step=3", "run_name=two words")
    assert done.returncode == 5
    assert "  try: fl recipe check tiny-sft max_step=3 'run_name=two words'" in done.stderr
    assert fl("recipe", "check", "tiny-sft", "max_step=3", "run_name=two words").returncode == 5


def test_a_screen_that_knows_ascii_only_is_no_traceback() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "fl", "run", "--dry-run", "--hw", "cpu", "--engine", "host", "tiny-sft"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "cpu-torch213" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_comes_with_the_nearest(fl: Fl) -> None:
    done = fl("rnu")
    assert done.returncode == 2
    assert "Did you mean `run`?" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fl.cli import group; group.main(['--help'], standalone_mode=False); print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("pydantic", "rich", "docker", "jinja2", "yaml", "torch"):
        assert f"'{heavy}'" not in done.stderr


def test_an_error_is_one_json_document_with_json(fl: Fl, tmp_path: object) -> None:
    done = fl("run", "--dry-run", "--json", "no-such-recipe.yaml")
    assert done.returncode == 5
    error = json.loads(done.stdout)["error"]
    assert error["exit"] == 5
    assert "no-such-recipe.yaml" in error["message"]
    assert error["remedy"]


def test_control_characters_never_reach_the_terminal(fl: Fl) -> None:
    done = fl("run", "--dry-run", "evil\x1b[31m.yaml")
    assert done.returncode == 5
    assert "\x1b" not in done.stderr


def test_a_folder_that_was_removed_under_the_caller(tmp_path: Path) -> None:
    script = f"cd {tmp_path} && mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m fl audit"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, "is gone" in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
