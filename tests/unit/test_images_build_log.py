"""What a build's progress shows, how long each step took, and which cause and cure a failure has."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fl.errors import ImageError
from fl.images import build, build_log

FAILED = """#8 [packages 2/3] RUN /mnt/uv pip sync
#8 0.5 Using Python 3.11.2
#8 9.1 error: Failed to download `hjson==3.1.0`
#8 ERROR: process "/bin/bash" did not complete successfully: exit code: 2
------
 > [packages 2/3] RUN /mnt/uv pip sync:
0.5 Using Python 3.11.2
9.1 error: Failed to download `hjson==3.1.0`
9.1   cause: Hash mismatch for `hjson==3.1.0`
------
Dockerfile:45
--------------------
ERROR: failed to solve: process "/bin/bash" did not complete successfully: exit code: 2
""".splitlines()


def script(tmp_path: Path, lines: list[str], code: int) -> list[str]:
    """A stand-in for the builder: says these lines, ends with this code."""
    said = tmp_path / "said"
    said.write_text("\n".join(lines) + "\n")
    return ["sh", "-c", f"cat '{said}'; exit {code}"]


def test_the_failing_step_and_its_last_lines_are_told() -> None:
    text = build_log.failure(FAILED)
    assert text.splitlines()[0] == " > [packages 2/3] RUN /mnt/uv pip sync:"
    assert "Hash mismatch" in text
    assert text.splitlines()[-1].startswith("ERROR: failed to solve")


def test_a_step_is_shown_without_its_mounts_and_our_opening() -> None:
    line = "#9 [os 2/3] RUN --mount=type=bind,from=uv,target=/mnt     --mount=type=secret,id=index     touch /tmp/begin;     "
    line += "if [ -f /mnt/site ]; then . /mnt/site; fi;     if [ -f /run/secrets/index ]; then . /run/secrets/index; fi;     " + "x" * 400
    assert build_log.short(line).startswith("#9 [os 2/3] RUN xxx")
    assert len(build_log.short(line)) == 160


@pytest.mark.parametrize(
    ("lines", "message", "remedy"),
    [
        (FAILED, "the build failed", "another file than the one that was locked"),
        (["#9 1.2 write: no space left on device", "ERROR: failed"], "the disk of the docker daemon is full", "docker builder prune -f"),
        (["ERROR: base:1: failed to resolve source metadata for base:1"], "exit 1", "--base REF"),
        (["#9 error: Because there is no version of torch==2.13.0+cpu and you require it"], "exit 1", "--find-links DIR"),
        (["#9 error: invalid peer certificate: UnknownIssuer"], "exit 1", "--ca FILE"),
        (["#16 exporting layers 6.1s done", "ERROR: failed to solve: layer does not exist"], "exit 1", "--no-cache"),
        (["#16 ERROR: error creating overlay mount to /var/lib/x/merged: no such file or directory"], "exit 1", "--no-cache"),
        (["#9 apt-get install ca-certificates; exit 1"], "exit 1", "the lines above"),
        (
            ["------", " > [packages 1/3] RUN uv venv:", "0.4 \x1b[31merror\x1b[0m: No interpreter found for Python 3.13", "------"],
            "the base mine:1 has no Python 3.13, which the row names",
            "--base REF",
        ),
        (
            ["------", " > [packages 1/2] RUN python:", "0.4 Python 3.10.12 (main, Jan  1 2026, 00:00:00) [GCC 11.4.0]", "------"],
            "the base mine:1 has Python 3.10",
            "--base REF",
        ),
        (
            ["ERROR: Cache export is not supported for the docker driver.", "Switch to a different driver, or turn on the store"],
            "docker's docker builder keeps no cache outside itself (--cache-to)",
            "--driver docker-container",
        ),
        (
            ["ERROR: Attestation is not supported for the docker driver."],
            "makes no attestations (--attest)",
            "--driver docker-container",
        ),
    ],
)
def test_usual_causes_are_named(lines: list[str], message: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        build._try(script(tmp_path, lines, 1), "mine:1", 2)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert "\x1b" not in caught.value.message


def test_failures_of_the_network_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(build.time, "sleep", waited.append)
    count = tmp_path / "count"
    failing = "echo '#9 1.0 error: Failed to fetch: connection reset by peer'; exit 1"
    text = f"echo x >> {count}; if [ $(wc -l < {count}) -lt 3 ]; then {failing}; fi"
    build._try(["sh", "-c", text], "mine:1", 2)
    assert waited == [5.0, 20.0]
    assert "Trying again in 5 s" in capsys.readouterr().err
    count.unlink()
    with pytest.raises(build_log.Passing, match="connection reset by peer"):
        build._try(["sh", "-c", text], "mine:1", 1)


def test_progress_is_lines_without_the_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "#0 building with default",
        "#1 [internal] load build context",
        "#2 [os 1/3] FROM base",
        "#2 sha256:abc 1MB / 2MB",
        "#2 DONE 0.1s",
        "",
        "#3 [os 2/3] RUN --mount=type=tmpfs,target=/tmp uv sync",
        "#3 3.14  + torch==2.13.0",
        "#3 4.1 Installed 71 packages",
        "#3 ...",
        "#3 [os 2/3] RUN --mount=type=tmpfs,target=/tmp uv sync",
        "#3 DONE 9.5s",
        "#4 [os 3/3] RUN true",
        "#4 CACHED",
    ]
    log = build._run(script(tmp_path, lines, 0), "base")
    assert capsys.readouterr().err.splitlines() == [
        "  #2 [os 1/3] FROM base",
        "  #3 [os 2/3] RUN uv sync",
        "  #3 4.1 Installed 71 packages",
        "  #3 [os 2/3] RUN uv sync",
        "  #3 done in 9.5 s",
        "  #4 [os 3/3] RUN true",
        "  #4 is cached",
    ]
    assert [(step.seconds, step.cached) for step in log.layers(["os"])] == [(9.5, False), (0.0, True)]
    assert log.counted() == (3, 3, "")


def test_a_terminal_shows_a_bar_with_the_step_that_runs() -> None:
    lines = ["#1 [os 1/3] FROM x", "#1 DONE 0.1s", "#2 [os 2/3] RUN touch /tmp/begin; uv [sync]"]
    code = f"from fl.images import build; build._run(['sh', '-c', {'; '.join(f'echo {line!r}' for line in lines) + '; sleep 0.6'!r}], 'x')"
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "rb", buffering=0) as screen:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"})
        os.close(terminal)
        shown = b""
        try:
            while chunk := screen.read(65536):
                shown += chunk
        except OSError:  # the other side is closed: how Linux tells the end
            pass
    assert process.wait(timeout=30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "1/3" in text
    assert "[os 2/3] RUN uv [sync]" in text


def test_steps_stand_in_the_dockerfile_s_order() -> None:
    log = build_log.Log()
    for line in ("#5 [packages 1/1] RUN b", "#5 CACHED", "#6 [os 2/2] RUN a", "#6 CACHED", "#7 [run 1/1] WORKDIR /x", "#7 DONE 0.0s"):
        log.add(line)
    stages = build_log.stages("FROM scratch AS wheels\n\nFROM a:1 AS os\nFROM os AS packages\nFROM packages AS run\n")
    assert stages == ["wheels", "os", "packages", "run"]
    assert [step.name[-1] for step in log.layers(stages)] == ["a", "b", "x"]


SILENT = """#12 [packages 1/3] RUN /mnt/uv venv --python 3.11 "/opt/venv"
#12 ERROR: process "/bin/bash -c /mnt/uv venv --python 3.11 \\"${VIRTUAL_ENV}\\"" did not complete successfully: exit code: 2
------
 > [packages 1/3] RUN /mnt/uv venv --python 3.11 "/opt/venv":
------
ERROR: failed to solve: process "/bin/bash -c /mnt/uv venv --python 3.11 \\"${VIRTUAL_ENV}\\"" did not complete successfully: exit code: 2
""".splitlines()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("3.13\n3.13", "the base mine:1 has no Python 3.11, which the row names"),
        ("3.11\n3.11", "the build failed"),
        (None, "the build failed"),
    ],
)
def test_a_silent_step_without_an_environment_asks_the_base(
    answer: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder may lose the last lines of a step that ends at once. `None`: the base is not on this machine."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text("#!/bin/sh\nexit 125\n" if answer is None else f"#!/bin/sh\nprintf '{answer}\\n'\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    with pytest.raises(ImageError) as caught:
        build._run(script(tmp_path, SILENT, 1), "mine:1")
    assert caught.value.message.startswith(message)
