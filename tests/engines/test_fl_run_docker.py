"""`fl run --engine docker` on a real daemon: training in the image that fl built, and everything that can happen to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

from fl.images import tags

pytestmark = pytest.mark.engine
Fl = Callable[..., "subprocess.CompletedProcess[str]"]
STACK = "cpu-torch213"
BASE = os.environ.get("FL_TEST_BASE", "flpy:bookworm")
NOBODY = 54321


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", autouse=True)
def image() -> str:
    if shutil.which("docker") is None or docker("version").returncode:
        pytest.skip("no docker daemon answers")
    if docker("image", "inspect", BASE).returncode:
        pytest.skip(f"the base image {BASE} is not on this machine (FL_TEST_BASE names another)")
    done = subprocess.run(
        [sys.executable, "-m", "fl", "images", "build", STACK, "--base", BASE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return tags.reference(STACK)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users can reach (pytest's own is closed to them)."""
    folder = Path(tempfile.mkdtemp(prefix="fl-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def runs() -> Path:
    return Path(os.environ["XDG_STATE_HOME"]) / "fl" / "runs"


def only_run() -> Path:
    (folder,) = runs().iterdir()
    return folder


def containers(run: str) -> list[str]:
    return docker("ps", "--all", "--quiet", "--filter", f"label=fl.run={run}").stdout.split()


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fl", "run", "--engine", "docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(process: subprocess.Popen[str], seconds: float = 400) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for folder in runs().iterdir() if runs().is_dir() else ():
            if (folder / "events.jsonl").is_file() and '"step"' in (folder / "events.jsonl").read_text():
                return folder.name
        time.sleep(0.1)
    raise AssertionError(f"no training step: {process.communicate()}")


def test_it_trains_in_the_image_and_leaves_nothing_behind(fl: Fl, place: Path, image: str) -> None:
    done = fl("run", "--engine", "docker", "--json", "tiny-sft", f"output_dir={place}/out", timeout=600)
    assert done.returncode == 0, done.stderr
    evidence = json.loads(done.stdout)
    assert evidence["image"]["reference"] == image
    inspected = docker("image", "inspect", "--format", "{{.Id}}", image).stdout.strip()
    assert evidence["image"]["id"] == inspected and inspected.startswith("sha256:")
    assert evidence["environment"]["matches_lock"] is True
    assert evidence["metrics"]["loss"][-1] < evidence["metrics"]["loss"][0] * 0.7
    assert (place / "out" / "model.safetensors").is_file()
    assert containers(only_run().name) == []
    assert "step 20/20" in (only_run() / "log.txt").read_text()


def test_dry_run_and_run_share_their_argv(fl: Fl, place: Path) -> None:
    done = fl("run", "--engine", "docker", "--dry-run", "--json", "tiny-sft", f"output_dir={place}/out")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert not runs().exists()
    assert fl("run", "--engine", "docker", "tiny-sft", "max_steps=2", f"output_dir={place}/out", timeout=600).returncode == 0
    executed = json.loads((only_run() / "plan.json").read_text())

    def same(plan: dict[str, Any]) -> list[str]:
        return [word.replace(plan["run"], "RUN") for word in plan["argv"]]

    assert same(planned) == same(executed)
    assert executed["options"]["network"] == "none"


def test_sigterm_reaches_the_trainer_in_the_container(place: Path) -> None:
    process = start("tiny-sft", "max_steps=100000", f"output_dir={place}/out")
    name = wait_for_step(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 143, said
    assert list((place / "out").glob("checkpoint-*"))
    assert containers(name) == []


def test_a_killed_launcher_leaves_a_container_that_ps_tells_and_stop_ends(fl: Fl, place: Path) -> None:
    process = start("tiny-sft", "max_steps=100000", f"output_dir={place}/out")
    name = wait_for_step(process)
    process.kill()
    process.communicate(timeout=300)
    assert len(containers(name)) == 1
    assert [(r["run"], r["state"]) for r in json.loads(fl("ps", "--json").stdout)["runs"]] == [(name, "running")]
    stopped = fl("stop", name, timeout=600)
    assert stopped.returncode == 0, stopped.stderr
    assert containers(name) == []
    assert "step" in fl("logs", name).stdout


def test_a_missing_image_is_exit_7_and_says_how_to_make_it(fl: Fl, place: Path) -> None:
    done = fl("run", "--engine", "docker", "--image", "127.0.0.1:9/nowhere:1", "tiny-sft", f"output_dir={place}/out")
    assert done.returncode == 7, done.stderr
    assert "127.0.0.1:9/nowhere:1" in done.stderr


def test_a_dead_daemon_is_exit_6_and_names_the_host_engine(fl: Fl, place: Path) -> None:
    done = fl("run", "--engine", "docker", "tiny-sft", f"output_dir={place}/out", env={"DOCKER_HOST": f"unix://{place}/dead.sock"})
    assert done.returncode == 6, done.stderr
    assert "--engine host" in done.stderr


def test_out_of_memory_in_the_container_is_told(place: Path) -> None:
    """The kernel kills it: a limit is set on the container while the trainer still imports, below what it needs."""
    process = start("tiny-sft", "max_steps=100000", f"output_dir={place}/out")
    end = time.monotonic() + 300
    found: list[str] = []
    while not found and time.monotonic() < end and process.poll() is None:
        found = [c for folder in (runs().iterdir() if runs().is_dir() else ()) for c in containers(folder.name)]
    assert found, process.communicate()
    limited = docker("update", "--memory", "150m", "--memory-swap", "150m", found[0])
    assert limited.returncode == 0, limited.stderr
    _, said = process.communicate(timeout=600)
    assert process.returncode == 10, said
    assert "out of memory" in said
    assert json.loads((only_run() / "evidence.json").read_text())["outcome"] == "failed"
    assert containers(only_run().name) == []


def test_a_caller_without_passwd_entry_owns_what_the_run_makes(place: Path, image: str) -> None:
    python = f"/usr/bin/python3.{sys.version_info[1]}"
    if os.getuid() or not Path(python).exists():
        pytest.skip("needs root to become another user, and an interpreter that this user can start")
    site = Path(next(p for p in sys.path if p.endswith("site-packages")))
    shutil.copytree(
        site,
        place / "site",
        ignore=shutil.ignore_patterns("mypy*", "uv*", "ruff*", "pip*", "*.pth", "hypothesis*", "hadolint*", "__pycache__"),
    )
    for part in ("launcher", "trainers", "images"):
        shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "matrix.yaml", place)
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    os.link(socket, place / "docker.sock")
    (place / "docker.sock").chmod(0o666)
    shutil.copy(str(shutil.which("docker")), place / "docker")
    home = place / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    environment = {
        "PATH": f"{place}:/usr/bin:/bin", "HOME": str(home), "DOCKER_HOST": f"unix://{place}/docker.sock", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{place}/launcher:{place}/trainers:{place}/site",
    }  # fmt: skip
    done = subprocess.run(
        [python, "-m", "fl", "run", "--engine", "docker", "--json", "tiny-sft", "max_steps=3", f"output_dir={home}/out"],
        capture_output=True, text=True, check=False, env=environment, cwd=home, user=NOBODY, group=NOBODY, extra_groups=[], timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (home / "out").rglob("*")}
    assert owners == {(NOBODY, NOBODY)}


def test_a_pinned_image_whose_tag_moved_is_refused(fl: Fl, place: Path, image: str) -> None:
    mine, run = f"fl-test-pin:{os.getpid()}", ("run", "--engine", "docker", "--dry-run", "--json", "tiny-sft")
    docker("tag", image, mine)
    try:
        pinned = fl("pin", STACK, "--image", mine, "--unproven", cwd=place)
        assert pinned.returncode == 0, pinned.stderr
        planned = fl(*run, cwd=place)
        assert planned.returncode == 0, planned.stderr
        assert json.loads(planned.stdout)["image"]["reference"] == mine
        other = subprocess.run(
            ["docker", "build", "--quiet", "--tag", mine, "-"],
            input=f"FROM {image}\nLABEL moved=1\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert other.returncode == 0, other.stderr
        moved = fl(*run, cwd=place)
        assert moved.returncode == 9 and "its tag is now" in moved.stdout, moved.stdout
        checked = fl("pin", "--check", cwd=place)
        assert checked.returncode == 9 and "its tag is now" in checked.stderr, checked.stderr
        assert fl("pin", STACK, "--image", "flpy:bookworm", "--unproven", cwd=place).returncode == 7
    finally:
        docker("image", "rm", "--force", mine)


def test_extras_are_mounted_beside_the_image_s_packages(fl: Fl, place: Path, image: str) -> None:
    words = ("--engine", "docker", "--json", "tiny-sft", f"output_dir={place}/out", "use_badam=true", "report_to=tensorboard")
    planned = fl("run", "--dry-run", *words)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    plan = json.loads(planned.stdout)
    done = fl("run", *words, timeout=600)
    assert done.returncode == 0, done.stderr
    evidence = json.loads(done.stdout)
    assert [one["name"] for one in evidence["environment"]["extras"]] == ["badam", "tensorboard"]
    assert evidence["environment"]["matches_lock"] is True
    folders = {one["folder"] for one in plan["extras"]}
    assert folders <= {mount["target"] for mount in plan["mounts"] if mount["read_only"]} and plan["options"]["network"] == "none"
    assert next((place / "out" / "runs").rglob("events.out.tfevents.*")).stat().st_size > 200
    assert "badam" not in docker("run", "--rm", "--entrypoint", "", image, "/opt/venv/bin/python", "-m", "pip", "list").stdout
