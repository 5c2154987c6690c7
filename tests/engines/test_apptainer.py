"""apptainer.py on a real apptainer: images from Docker's store, start, log, end, stop, isolation by nodes, training in the CPU image."""

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
from types import SimpleNamespace
from typing import Any

import pytest
from engine_tools import facts_or_skip

from fl import apptainer_argv, engines, paths
from fl.engines import Ended, Started, apptainer_image, processes
from fl.errors import FlError, HardwareError, ImageError, RecipeError
from fl.grants import Mount
from fl.images import tags

pytestmark = pytest.mark.engine
Fl = Callable[..., "subprocess.CompletedProcess[str]"]
BOX = "flbox:1"
STACK = "cpu-torch213"


@pytest.fixture(scope="module", autouse=True)
def engine() -> engines.Engine:
    facts_or_skip("apptainer")
    return engines.get("apptainer")


@pytest.fixture(scope="module")
def box() -> Iterator[str]:
    """A busybox as a file of apptainer's, made from Docker's store."""
    if apptainer_image.in_docker(BOX) is None:
        pytest.skip(f"no image {BOX}, a busybox, in docker")
    with tempfile.TemporaryDirectory(prefix="fl-apptainer-") as folder:
        place = Path(folder) / "box.sif"
        done = subprocess.run(
            ["apptainer", "build", str(place), f"docker-daemon:{BOX}"], capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode:
            pytest.skip(f"this apptainer makes nothing: {done.stderr[-300:]}")
        probe = subprocess.run(
            ["apptainer", "exec", "--containall", str(place), "true"], capture_output=True, text=True, check=False, timeout=300
        )
        if probe.returncode:
            pytest.skip(f"this apptainer starts nothing: {probe.stderr[-300:]}")
        yield str(place)


def plan(box: str, *command: str, flags: tuple[str, ...] = (), devices: tuple[str, ...] = ()) -> Any:
    """As apptainer_argv makes it, without the mounts of a training."""
    run = f"test-{os.getpid()}-{time.monotonic_ns()}"
    always = (
        "--containall",
        "--cleanenv",
        "--no-eval",
        "--no-privs",
        "--net",
        "--network",
        "none",
        "--env",
        f"{apptainer_argv.MARK}={run}",
    )
    argv = ("apptainer", "exec", *always, *flags, box, *command)
    return SimpleNamespace(run=run, engine="apptainer", image=SimpleNamespace(reference=box, file=box), argv=argv, devices=devices)


def wait(started: Started, seconds: float = 120) -> Ended:
    deadline = time.monotonic() + seconds
    while (ended := started.poll()) is None:
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.05)
    return ended


def log(what: Any) -> str:
    return (paths.runs_home() / what.run / "log.txt").read_text()


def until(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_image_comes_from_dockers_store(engine: engines.Engine, box: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = engine.image(BOX)
    assert known is not None and not known.local and known.file is not None
    said: list[str] = []
    made = engine.pull(BOX, said.append)
    assert made.file == known.file and Path(made.file).is_file()
    again = engine.image(BOX)
    assert again is not None and again.local and again.id == known.id
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    alone = engine.image(BOX)
    assert alone is not None and alone.file == made.file and alone.platform.startswith("linux/a")
    assert [p.name for p in Path(made.file).parent.iterdir()] == [Path(made.file).name]


def test_a_registry_without_the_image(engine: engines.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:9/nowhere"):
        engine.pull("127.0.0.1:9/nowhere:1", lambda text: None)
    assert [p for p in (tmp_path / "fl" / "apptainer").rglob("*") if p.is_file()] == []


def test_log_and_exit_code(engine: engines.Engine, box: str) -> None:
    what = plan(box, "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.1; done; echo err >&2; exit 42")
    started = engine.start(what, {})
    assert wait(started) == Ended(42)
    assert log(what) == "line 1\nline 2\nline 3\nerr\n"
    started.remove()


def test_what_the_program_sees(engine: engines.Engine, box: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with, comma:and colon"
    folder.mkdir()
    (folder / "in").write_text("here\n")
    monkeypatch.setenv("APPTAINERENV_LEAK", "x")
    monkeypatch.setenv("OTHER", "x")
    values = {"A": '$(id) "q"', "B": "x=1,y=2", "C": "1,2", "D": 'end"', "E": "line\nline"}
    flags = (
        "--mount", apptainer_argv.mount_option(Mount(source=str(folder), target=str(folder))),
        "--home", str(tmp_path), "--pwd", str(folder),
        *(a for name, value in values.items() for a in ("--env", apptainer_argv.variable(name, value))),
    )  # fmt: skip
    script = 'pwd; cat in; touch out 2>&1; echo "$A|$B|$C|$D|$E|$LEAK|$OTHER|$HOME"; ls /sys/class/net; id -u'
    what = plan(box, "sh", "-c", script, flags=flags)
    assert wait(engine.start(what, {})).exit_code == 0
    lines = log(what).splitlines()
    assert lines[:2] == [str(folder), "here"] and "Read-only file system" in lines[2]
    assert "\n".join(lines[3:5]) == f'$(id) "q"|x=1,y=2|1,2|end"|line\nline|||{tmp_path}'
    assert lines[5:] == ["lo", str(os.getuid())]


def test_stop_reaches_the_program(engine: engines.Engine, box: str) -> None:
    what = plan(box, "sh", "-c", "trap 'echo saved; exit 143' TERM; echo on; while :; do sleep 0.1; done")
    started = engine.start(what, {})
    until(lambda: "on" in log(what))
    started.stop(30)
    assert wait(started).exit_code == 143 and log(what) == "on\nsaved\n"


def test_a_program_that_does_not_listen_is_killed_with_all_of_its_own(engine: engines.Engine, box: str) -> None:
    what = plan(box, "sh", "-c", "trap '' TERM; setsid sleep 345 & echo on; while :; do sleep 0.1; done")
    started = engine.start(what, {})
    until(lambda: "on" in log(what))
    until(lambda: len(processes.marked(what.run)) >= 2)
    started.stop(1)
    assert wait(started).exit_code == 137
    until(lambda: not processes.marked(what.run))


def test_a_run_is_found_again_and_killed(engine: engines.Engine, box: str) -> None:
    what = plan(box, "sh", "-c", "echo on; sleep 345")
    started = engine.start(what, {})
    until(lambda: "on" in log(what))
    adopted = engine.adopt(started.ident)
    assert adopted is not None and adopted.poll() is None
    adopted.kill()
    assert wait(started).exit_code == 137 and wait(adopted).exit_code == engines.UNKNOWN_EXIT
    adopted.remove()
    assert not (paths.runs_home() / what.run / "apptainer").exists()
    assert engine.adopt(started.ident) is None and not processes.marked(what.run)


@pytest.mark.parametrize(
    ("command", "flags", "kind", "word"),
    [
        (("true",), ("--mount", "type=bind,source=/no/such/folder,destination=/x"), RecipeError, "/no/such/folder"),
        (("/opt/venv/bin/python",), (), ImageError, "/opt/venv/bin/python"),
    ],
)
def test_what_cannot_start_says_why(
    engine: engines.Engine, box: str, command: tuple[str, ...], flags: tuple[str, ...], kind: type[FlError], word: str
) -> None:
    started = engine.start(plan(box, *command, flags=flags), {})
    with pytest.raises(FlError) as raised:
        wait(started)
    assert type(raised.value) is kind and word in raised.value.message and raised.value.remedy, raised.value.message
    started.remove()


def test_a_device_that_is_gone_fails_the_start(engine: engines.Engine, box: str) -> None:
    """Of apptainer itself there would be a warning and a run without it."""
    with pytest.raises(HardwareError, match="/dev/no-such-device"):
        engine.start(plan(box, "true", devices=("/dev/no-such-device",)), {})


NODES = """set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/dev"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty "$1/dev/"
for n in fuse loop-control loop0 loop1 loop2 loop3 loop4 loop5 loop6 loop7; do [ ! -e /dev/$n ] || cp -a /dev/$n "$1/dev/"; done
mkdir "$1/dev/pts" "$1/dev/shm" "$1/dev/dri" "$1/dev/mqueue"
ln -s /proc/self/fd "$1/dev/fd"; ln -s /proc/self/fd/0 "$1/dev/stdin"; ln -s /proc/self/fd/1 "$1/dev/stdout"
ln -s /proc/self/fd/2 "$1/dev/stderr"; ln -s pts/ptmx "$1/dev/ptmx"
mount --rbind /dev/pts "$1/dev/pts"
for n in 128 129 130; do mknod -m 660 "$1/dev/dri/renderD$n" c 10 229; chgrp 10947 "$1/dev/dri/renderD$n"; done
mount --rbind "$1/dev" /dev
shift
exec "$@"
"""


@pytest.mark.parametrize("groups", ["65534,10947", "65534"])
def test_only_bound_nodes_are_there_and_the_callers_group_opens_them(box: str, tmp_path: Path, groups: str) -> None:
    """For an ordinary user, without any set-uid part: a namespace of its own gives the stand-in nodes."""
    if os.getuid():
        pytest.skip("needs root for stand-in nodes")
    folder = Path(tempfile.mkdtemp(prefix="fl-nodes-"))
    try:
        shutil.copy(box, folder / "box.sif")
        room = folder / "room"
        room.mkdir()
        sandbox = folder / "box"
        subprocess.run(["apptainer", "build", "--sandbox", str(sandbox), f"docker-daemon:{BOX}"], check=True, capture_output=True)
        for path in (folder, sandbox):
            path.chmod(0o755)
        node = apptainer_argv.mount_option(Mount(source="/dev/dri/renderD129", target="/dev/dri/renderD129", read_only=False))
        script = "ls /dev/dri; (exec 3<>/dev/dri/renderD129) 2>/dev/null && echo open || echo closed; id -u"
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", NODES, "sh", str(room),
             "setpriv", "--reuid=65534", "--regid=65534", "--groups", groups, "env", "HOME=/tmp",
             "apptainer", "exec", "--containall", "--cleanenv", "--no-eval", "--no-privs", "--net", "--network", "none", "--mount", node,
             str(sandbox), "sh", "-c", script],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if "user namespace" in done.stderr:
            pytest.skip(f"no containers for ordinary users here: {done.stderr[-200:]}")
        assert done.stdout.split() == ["renderD129", "open" if "10947" in groups else "closed", "65534"], done.stderr
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def trained() -> str:
    """The CPU row's image of this version; made into a file once, which takes minutes, and kept in the cache."""
    base = os.environ.get("FL_TEST_BASE", "flpy:bookworm")
    if shutil.which("docker") and subprocess.run(["docker", "image", "inspect", base], capture_output=True, check=False).returncode == 0:
        build = [sys.executable, "-m", "fl", "images", "build", STACK, "--base", base]
        built = subprocess.run(build, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr[-3000:]
    engine, reference = engines.get("apptainer"), tags.reference(STACK)
    found = engine.image(reference)
    if found is None:
        pytest.skip(f"no image {reference}: fl images build {STACK}")
    if not found.local:
        engine.pull(reference, lambda text: None)
    return reference


def test_it_trains_in_the_image(fl: Fl, tmp_path: Path, trained: str) -> None:
    done = fl("run", "--engine", "apptainer", "--json", "tiny-sft", f"output_dir={tmp_path}/out", timeout=600)
    assert done.returncode == 0, done.stderr
    evidence = json.loads(done.stdout)
    assert evidence["image"]["reference"] == trained and evidence["environment"]["matches_lock"] is True
    assert evidence["metrics"]["loss"][-1] < evidence["metrics"]["loss"][0] * 0.7
    (run,) = paths.runs_home().iterdir()
    planned = json.loads((run / "plan.json").read_text())
    assert planned["argv"][:2] == ["apptainer", "exec"] and planned["options"]["network"] == "none"
    assert "step 20/20" in (run / "log.txt").read_text() and not (run / "apptainer").exists()
    assert not processes.marked(run.name)


def test_sigterm_saves_a_checkpoint(tmp_path: Path, trained: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fl", "run", "--engine", "apptainer", "tiny-sft", "max_steps=100000", f"output_dir={tmp_path}/out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: any('"step"' in p.read_text() for p in paths.runs_home().glob("*/events.jsonl")), 400)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 143, said
    assert list((tmp_path / "out").glob("checkpoint-*"))


def test_a_killed_launcher_leaves_a_run_that_stop_ends(fl: Fl, tmp_path: Path, trained: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fl", "run", "--engine", "apptainer", "tiny-sft", "max_steps=100000", f"output_dir={tmp_path}/out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: any('"step"' in p.read_text() for p in paths.runs_home().glob("*/events.jsonl")), 400)
    process.kill()
    process.communicate(timeout=300)
    (run,) = paths.runs_home().iterdir()
    assert [(r["run"], r["state"]) for r in json.loads(fl("ps", "--json").stdout)["runs"]] == [(run.name, "running")]
    stopped = fl("stop", run.name, timeout=600)
    assert stopped.returncode == 0, stopped.stderr
    assert not processes.marked(run.name) and not (run / "apptainer").exists()
    assert list((tmp_path / "out").glob("checkpoint-*"))


def test_auto_takes_it_inside_a_slurm_job_and_says_why(fl: Fl, tmp_path: Path, trained: str) -> None:
    """Docker is there and has the image; podman is not."""
    if apptainer_image.in_docker(trained) is None:
        pytest.skip("no docker daemon that auto would take outside of a job")
    (tmp_path / "apptainer").symlink_to(str(shutil.which("apptainer")))
    (tmp_path / "docker").symlink_to(str(shutil.which("docker")))
    done = fl("run", "--dry-run", "--json", "tiny-sft", f"output_dir={tmp_path}/out", env={"SLURM_JOB_ID": "7", "PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    why = " ".join(reason["why"] for reason in made["reasons"])
    assert made["engine"] == "apptainer" and "docker: its daemon would start the run outside this Slurm job" in why
    outside = fl("run", "--dry-run", "--json", "tiny-sft", f"output_dir={tmp_path}/out", env={"PATH": str(tmp_path)})
    assert json.loads(outside.stdout)["engine"] == "docker"
