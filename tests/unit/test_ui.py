"""The screen: terminals of any width lose nothing, and none of them ends in a traceback."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from fl import matrix, ui

ROOT = Path(__file__).resolve().parents[2]
Fl = Callable[..., "subprocess.CompletedProcess[str]"]


def on_terminal(columns: int, *words: str, **variables: str) -> tuple[int, list[str]]:
    """`fl` on a terminal of so many columns: exit code and lines, without colours."""
    own, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    path = f"{ROOT / 'launcher'}:{ROOT / 'trainers'}"
    environment = {**os.environ, "PYTHONPATH": path, "TERM": "xterm", "PYTHONUTF8": "1", **variables}
    environment.pop("COLUMNS", None)
    argv = [sys.executable, "-m", "fl", *words]
    with subprocess.Popen(argv, stdin=other, stdout=other, stderr=other, env=environment, cwd=ROOT) as process:
        os.close(other)
        said = b""
        while True:
            try:
                part = os.read(own, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            said += part
    os.close(own)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", said.decode())
    return process.returncode, text.replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("words", [
    ("matrix", "list"), ("matrix", "show", "cpu-torch213"), ("matrix", "explain"), ("images", "list"), ("recipe", "list"),
    ("recipe", "check", "quickstart"), ("hw", "--replay", "tests/data/hosts/h100x8-driver580"), ("conform", "--list"),
    ("run", "--dry-run", "--engine", "docker", "tiny-sft"),
])  # fmt: skip
def test_no_line_is_wider_than_the_terminal(columns: int, words: tuple[str, ...]) -> None:
    replay = {"FL_REPLAY": "tests/data/hosts/h100x1-driver535"} if words[0] == "run" else {}
    code, lines = on_terminal(columns, *words, **replay)
    assert code == 0, lines
    words_longer = [line for line in lines if len(line) > columns and " " in line.strip()]
    assert words_longer == []


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_table_says_what_a_wide_one_says(columns: int, fl: Fl) -> None:
    code, lines = on_terminal(columns, "matrix", "list")
    assert code == 0
    wide = fl("matrix", "list").stdout
    assert sorted(" ".join(lines).split()) == sorted(wide.split())
    assert {stack.id for stack in matrix.load().stacks} <= set(wide.split())


def test_columns_of_sentences_are_broken_between_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "columns", lambda stream=None: 40)
    ui.table(("name", "about"), [("short", "a sentence that is longer than the line"), ("你好你好", "two cells a sign")])
    assert capsys.readouterr().out.splitlines() == [
        "name      about",
        "short     a sentence that is longer than",
        "          the line",
        "你好你好  two cells a sign",
    ]
    ui.table(("a", "why"), [("x" * 30, "it goes below"), ("y", "")])
    assert capsys.readouterr().out.splitlines() == ["a", "    why", "x" * 30, "    it goes below", "y"]
    ui.out("see /a/path/that/is/longer/than/a/line/of/the/terminal now", hang=4)
    assert capsys.readouterr().out.splitlines() == ["see", "    /a/path/that/is/longer/than/a/line/of/the/terminal", "    now"]


def test_a_terminal_without_a_size_is_taken_as_one_of_80(fl: Fl) -> None:
    code, lines = on_terminal(0, "recipe", "list")
    assert code == 0 and max(map(len, lines)) <= 80 and any("quickstart" in line for line in lines)


def test_signs_in_a_terminal_of_ascii(fl: Fl) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "FL_REPLAY": "tests/data/hosts/h100x1-driver535"}
    done = fl("run", "--dry-run", "--engine", "docker", "tiny-sft", env=ascii_only, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.isascii(), done.stderr
    assert re.search(r"why  \+ cuda128-torch210: ", done.stdout) and re.search(r"why  x cuda130-torch214: ", done.stdout)
