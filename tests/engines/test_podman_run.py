"""`fl run --engine podman` on a real podman: training in the image that fl built, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_tools import facts_or_skip

from fl import engines
from fl.engines.podman import environment
from fl.images import tags

pytestmark = pytest.mark.engine
Fl = Callable[..., "subprocess.CompletedProcess[str]"]
STACK = "cpu-torch213"


def podman(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *words], env=environment(), capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def image() -> str:
    """The CPU row's image in podman's store; taken over from Docker's where that has it, which takes a minute or two."""
    facts_or_skip("podman")
    if shutil.which("docker") is None:
        pytest.skip("no docker to take the image over from")
    reference = tags.reference(STACK)
    theirs = subprocess.run(["docker", "image", "inspect", "--format", "{{.Id}}", reference], capture_output=True, text=True, check=False)
    known = engines.get("podman").image(reference)
    if known is None or (theirs.returncode == 0 and theirs.stdout.strip().removeprefix("sha256:") != known.id.removeprefix("sha256:")):
        save = subprocess.Popen(["docker", "save", reference], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        loaded = subprocess.run(
            ["podman", "load"], env=environment(), stdin=save.stdout, capture_output=True, text=True, timeout=600, check=False
        )
        if save.wait() or loaded.returncode:
            pytest.skip(f"no image {reference} in docker to load into podman: {loaded.stderr[-200:]}")
    probe = podman("run", "--rm", "--network", "none", reference, "true")
    if probe.returncode:
        pytest.skip(f"this podman starts nothing: {probe.stderr.strip()[-200:]}")
    return reference


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = podman("ps", "--all", "--quiet").stdout.split()
    yield
    assert podman("ps", "--all", "--quiet").stdout.split() == before


def test_it_trains_in_the_image(fl: Fl, tmp_path: Path, image: str, nothing_left: None) -> None:
    done = fl("run", "--engine", "podman", "--json", "tiny-sft", f"output_dir={tmp_path}/out", timeout=600)
    assert done.returncode == 0, done.stderr
    evidence = json.loads(done.stdout)
    assert evidence["image"]["reference"] == image and evidence["environment"]["matches_lock"] is True
    assert evidence["metrics"]["loss"][-1] < evidence["metrics"]["loss"][0] * 0.7
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in (tmp_path / "out").rglob("*")}
    assert owners == {(os.getuid(), os.getgid())}
    (run,) = (Path(os.environ["XDG_STATE_HOME"]) / "fl" / "runs").iterdir()
    plan = json.loads((run / "plan.json").read_text())
    assert plan["argv"][:2] == ["podman", "run"] and plan["options"]["network"] == "none"
    assert "step 20/20" in (run / "log.txt").read_text()


def test_a_failure_of_the_trainer_is_told_and_cleaned_up(fl: Fl, tmp_path: Path, image: str, nothing_left: None) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"instruction": 1')
    done = fl("run", "--engine", "podman", "tiny-sft", f"dataset={data}", f"output_dir={tmp_path}/out", timeout=600)
    assert done.returncode in (5, 10), done.stderr
    assert "bad" in done.stderr
