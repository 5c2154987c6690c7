"""podman.py on a real podman."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_tools import facts_or_skip

from fl import engines
from fl.engines import Ended, Started
from fl.engines.podman import environment
from fl.errors import EngineError, FlError, ImageError, RecipeError

pytestmark = pytest.mark.engine
IMAGE = "flbox:1"


@pytest.fixture(scope="module", autouse=True)
def engine() -> engines.Engine:
    facts_or_skip("podman")
    found = engines.get("podman")
    if found.image(IMAGE) is None:
        pytest.skip(f"no image {IMAGE}, a busybox, in this podman")
    probe = subprocess.run(
        ["podman", "run", "--rm", IMAGE, "true"], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    if probe.returncode != 0:
        pytest.skip(f"this podman starts nothing: {probe.stderr.strip()[-200:]}")
    return found


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield chosen
    subprocess.run(
        ["podman", "rm", "--force", "--time", "0", f"fl-{chosen}"], env=environment(), capture_output=True, timeout=300, check=False
    )


def plan(name: str, *command: str, flags: tuple[str, ...] = (), image: str = IMAGE) -> Any:
    argv = ("podman", "run", "--detach", "--name", f"fl-{name}", "--init", "--pull", "never", *flags, image, *command)
    return SimpleNamespace(run=name, engine="podman", image=SimpleNamespace(reference=image), argv=argv)


def wait(started: Started, seconds: float = 120) -> Ended:
    deadline = time.monotonic() + seconds
    while (ended := started.poll()) is None:
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.05)
    return ended


def test_log_and_exit_code(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    started = engine.start(plan(name, "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.2; done; echo err >&2; exit 5"), {})
    started.follow(tmp_path / "log.txt")
    assert wait(started) == Ended(5)
    assert (tmp_path / "log.txt").read_text() == "line 1\nline 2\nline 3\nerr\n"
    started.remove()
    assert engine.adopt(started.ident) is None


def test_stop_and_adoption(engine: engines.Engine, name: str) -> None:
    started = engine.start(plan(name, "sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.1; done"), {})
    adopted = engine.adopt(f"fl-{name}")
    assert adopted is not None
    assert adopted.ident == started.ident
    adopted.stop(20)
    assert wait(started).exit_code == 143
    assert wait(adopted).exit_code == 143


@pytest.mark.parametrize(
    ("what", "kind", "word"),
    [
        ({"image": "fl-nothing-like-this:1"}, ImageError, "fl-nothing-like-this:1"),
        ({"flags": ("--mount", "type=bind,source=/no/such/folder,target=/x")}, RecipeError, "/no/such/folder"),
        ({"flags": ("--device", "/dev/no-such-device")}, FlError, "/dev/no-such-device"),
        ({"flags": ("--device", "no.such/kind=0")}, EngineError, "no.such/kind=0"),
    ],
)
def test_what_cannot_start_says_why_and_leaves_nothing(
    engine: engines.Engine, name: str, what: dict[str, Any], kind: type, word: str
) -> None:
    with pytest.raises(kind, match=word) as raised:
        engine.start(plan(name, "true", **what), {})
    assert raised.value.remedy
    assert engine.adopt(f"fl-{name}") is None
