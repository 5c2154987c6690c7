"""docker.py on a real engine: start, log, end, stop, out of memory, dead launchers, dead and silent daemons."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_tools import facts_or_skip

from fl import engines
from fl.engines import Ended, Started
from fl.engines.docker_errors import NameInUse
from fl.errors import EngineError, FlError, ImageError, RecipeError

pytestmark = pytest.mark.engine
IMAGE = "flbox:1"


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300, check=False).stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def engine() -> engines.Engine:
    facts_or_skip("docker")
    found = engines.get("docker")
    if found.image(IMAGE) is None:
        pytest.skip(f"no image {IMAGE}, a busybox, in this Docker")
    return found


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield chosen
    docker("rm", "--force", f"fl-{chosen}")


def plan(name: str, *command: str, flags: tuple[str, ...] = (), image: str = IMAGE) -> Any:
    argv = ("docker", "run", "--detach", "--name", f"fl-{name}", "--init", "--pull", "never", *flags, image, *command)
    return SimpleNamespace(run=name, engine="docker", image=SimpleNamespace(reference=image), argv=argv)


def wait(started: Started, seconds: float = 120) -> Ended:
    deadline = time.monotonic() + seconds
    while (ended := started.poll()) is None:
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.05)
    return ended


def until(true: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_facts(engine: engines.Engine) -> None:
    began = time.monotonic()
    facts = engine.facts()
    assert time.monotonic() - began < 3
    assert facts.version
    assert facts.same_files
    found = engine.image(IMAGE)
    assert found is not None
    assert found.id
    assert found.platform.startswith("linux/")
    assert engine.image("fl-none:1") is None


def test_log_and_exit_code(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    started = engine.start(
        plan(name, "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.2; done; echo err >&2; printf partial; exit 5"), {}
    )
    log = tmp_path / "log.txt"
    started.follow(log)
    assert wait(started) == Ended(5)
    assert log.read_text() == "line 1\nline 2\nline 3\nerr\npartial"
    started.remove()
    assert docker("ps", "--all", "--quiet", "--filter", f"name=fl-{name}") == ""


def test_a_lot_of_output_arrives_whole(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    started = engine.start(plan(name, "sh", "-c", "seq 1 20000; head -c 100000 /dev/zero | tr '\\0' x; echo; echo end"), {})
    started.follow(tmp_path / "log.txt")
    wait(started)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[:20000] == [str(n) for n in range(1, 20001)]
    assert lines[20000:] == ["x" * 100_000, "end"]


def test_a_caller_without_a_passwd_entry(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    flags = ("--user", "54321:54321", "--mount", f"type=bind,source={tmp_path},target={tmp_path}", "--env", f"HOME={tmp_path}")
    started = engine.start(plan(name, "sh", "-c", f"id -u; touch {tmp_path}/made", flags=flags), {})
    started.follow(tmp_path / "log.txt")
    assert wait(started).exit_code == 0
    assert (tmp_path / "log.txt").read_text() == "54321\n"
    assert (tmp_path / "made").stat().st_uid == 54321


def test_secrets_by_name_reach_the_process_and_nothing_else(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    what = plan(name, "sh", "-c", "echo ${#HF_TOKEN}", flags=("--env", "HF_TOKEN"))
    started = engine.start(what, {"HF_TOKEN": "s3cret-value"})
    started.follow(tmp_path / "log.txt")
    wait(started)
    assert (tmp_path / "log.txt").read_text() == "12\n"
    assert "s3cret" not in " ".join(what.argv)


def test_out_of_memory(engine: engines.Engine, name: str) -> None:
    hungry = "x=$(head -c 400000000 /dev/zero | tr '\\0' x); echo never"
    started = engine.start(plan(name, "sh", "-c", hungry, flags=("--memory", "64m", "--memory-swap", "64m")), {})
    ended = wait(started)
    assert ended.oom
    assert ended.exit_code != 0
    assert "memory limit" in str(ended.reason)


def test_stop_is_obeyed_within_the_grace(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    started = engine.start(plan(name, "sh", "-c", "trap 'echo saved; exit 143' TERM; echo on; while :; do sleep 0.1; done"), {})
    started.follow(tmp_path / "log.txt")
    until(lambda: "on" in (tmp_path / "log.txt").read_text())
    began = time.monotonic()
    started.stop(30)
    assert time.monotonic() - began < 2
    assert wait(started).exit_code == 143
    assert (tmp_path / "log.txt").read_text() == "on\nsaved\n"


def test_after_the_grace_it_is_killed(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    started = engine.start(plan(name, "sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.1; done"), {})
    started.follow(tmp_path / "log.txt")
    until(lambda: "on" in (tmp_path / "log.txt").read_text())
    started.stop(1)
    assert wait(started) == Ended(137, False, "killed by SIGKILL")


def test_removed_by_somebody_else(engine: engines.Engine, name: str) -> None:
    started = engine.start(plan(name, "sleep", "60"), {})
    assert started.poll() is None
    docker("rm", "--force", started.ident)
    assert "removed" in str(wait(started).reason)
    assert engine.adopt(started.ident) is None
    started.remove()


LAUNCHER = """
import sys; sys.path[:0] = {path!r}
import time
from pathlib import Path
from types import SimpleNamespace
from fl import engines
plan = SimpleNamespace(run={name!r}, engine="docker", image=SimpleNamespace(reference={image!r}), argv={argv!r})
started = engines.get("docker").start(plan, {{}})
started.follow(Path({log!r}))
print(started.ident, flush=True)
time.sleep(60)
"""


def test_a_killed_launcher_leaves_a_run_that_is_adopted_without_losing_a_line(engine: engines.Engine, name: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    lines = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo $i; sleep 0.1; [ $i -ne 20 ] || until [ -e /go ]; do sleep 0.1; done; done"
    argv = plan(name, "sh", "-c", f"{lines}; exit 7").argv
    code = LAUNCHER.format(path=sys.path, name=name, image=IMAGE, argv=argv, log=str(log))
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    ident = launcher.stdout.readline().strip()
    until(lambda: log.exists() and log.read_text().count("\n") >= 5)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    adopted = engine.adopt(ident)
    assert adopted is not None
    assert adopted.poll() is None
    assert docker("exec", f"fl-{name}", "touch", "/go") == ""
    until(lambda: "\n21\n" in docker("logs", f"fl-{name}"))  # nobody follows while these are written
    adopted.catch_up(log)
    adopted.follow(log)
    assert wait(adopted).exit_code == 7
    assert [int(line) for line in log.read_text().splitlines()] == list(range(1, 41))
    adopted.remove()
    assert engine.adopt(ident) is None


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
    assert docker("ps", "--all", "--quiet", "--filter", f"name=fl-{name}") == ""


def test_gpus_without_the_toolkit(engine: engines.Engine, name: str) -> None:
    if engine.facts().nvidia_gpus:
        pytest.skip("this Docker passes NVIDIA GPUs")
    with pytest.raises(EngineError, match="nvidia-container-toolkit"):
        engine.start(plan(name, "true", flags=("--gpus", "all")), {})
    assert docker("ps", "--all", "--quiet", "--filter", f"name=fl-{name}") == ""


def test_a_limit_above_the_daemons_own(engine: engines.Engine, name: str) -> None:
    hard = engine.facts().hard_limits
    if "memlock" not in hard:
        pytest.skip("this daemon may raise every limit")
    with pytest.raises(EngineError, match="type 8"):
        engine.start(plan(name, "true", flags=("--ulimit", "memlock=-1")), {})
    limits = ("--ulimit", f"memlock={hard['memlock']}:{hard['memlock']}")
    assert wait(engine.start(plan(name, "true", flags=limits), {})).exit_code == 0


def test_a_name_in_use_is_left_alone(engine: engines.Engine, name: str) -> None:
    first = engine.start(plan(name, "sleep", "60"), {})
    with pytest.raises(NameInUse):
        engine.start(plan(name, "true"), {})
    assert first.poll() is None


def test_a_pull_that_finds_nobody(engine: engines.Engine) -> None:
    with pytest.raises(ImageError, match="cannot be pulled"):
        engine.pull("127.0.0.1:9/nothing:1", lambda text: None)


def test_a_pull_from_a_registry_and_an_image_that_it_lacks(engine: engines.Engine) -> None:
    reference = f"127.0.0.1:5000/fl-test-{os.getpid()}:1"
    docker("tag", IMAGE, reference)
    pushed = subprocess.run(["docker", "push", "--quiet", reference], capture_output=True, timeout=300, check=False)
    docker("rmi", reference)
    if pushed.returncode != 0:
        pytest.skip("no registry on 127.0.0.1:5000")
    told: list[str] = []
    found = engine.pull(reference, told.append)
    docker("rmi", reference)
    assert found.digest is not None
    assert found.digest.startswith("sha256:")
    assert told
    with pytest.raises(ImageError, match="has no image"):
        engine.pull("127.0.0.1:5000/fl-never-pushed:1", told.append)


def test_a_silent_registry_is_given_up(engine: engines.Engine) -> None:
    import socket

    from fl.engines import daemon, docker_pull

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reference = f"127.0.0.1:{listener.getsockname()[1]}/fl:1"
        with pytest.raises(ImageError, match="sent nothing"):
            docker_pull.pull(daemon.endpoint(os.environ), reference, lambda text: None, silence=2)


class Daemon:
    """A daemon of the test's own: killing the shared one would end other people's containers.

    In a network namespace of its own: a daemon without a bridge deletes docker0, which is another daemon's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, f"unix://{folder}/d.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        places = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
        argv = ["unshare", "--net", "dockerd", *(f"{flag}={self.folder}/{name}" for flag, name in places.items()), "--host", self.address,
                "--bridge", "none", "--iptables=false", "--ip6tables=false", "--live-restore"]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        until(lambda: not isinstance(engines.ask("docker"), EngineError))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        (self.folder / "pid").unlink(missing_ok=True)
        time.sleep(2)  # its containerd dies with it, a moment later


def dockerd_folder() -> str:
    """Where the running daemon's programs are, when this user may start another beside it."""
    from fl.engines import daemon

    pid = daemon.process(daemon.endpoint(os.environ))
    if os.getuid() != 0 or pid is None:
        pytest.skip("a second dockerd needs root, and the first one on this machine")
    return daemon.search_path(pid)


@pytest.fixture
def own_daemon(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    if os.environ.get("FL_TEST_DOCKERD") != "1":
        pytest.skip("starts a second dockerd: FL_TEST_DOCKERD=1")
    image = subprocess.run(["docker", "save", IMAGE], capture_output=True, timeout=300, check=True).stdout
    monkeypatch.setenv("PATH", dockerd_folder() + os.pathsep + os.environ["PATH"])
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    monkeypatch.setenv("DOCKER_HOST", daemon.address)
    daemon.up()
    subprocess.run(["docker", "load"], input=image, capture_output=True, timeout=300, check=True)
    yield daemon
    subprocess.run("docker ps -aq | xargs -r docker rm -f", shell=True, capture_output=True, timeout=300, check=False)  # noqa: S602
    assert daemon.process is not None
    daemon.process.terminate()
    daemon.process.wait(30)
    subprocess.run(["umount", str(daemon.folder / "data")], capture_output=True, timeout=300, check=False)


def test_a_daemon_that_dies_and_comes_back_costs_no_line(own_daemon: Daemon, name: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit 3"
    started = engines.get("docker").start(plan(name, "sh", "-c", script, flags=("--network", "none")), {})
    started.follow(log)
    until(lambda: log.exists() and log.read_text().count("\n") >= 5)
    own_daemon.kill()
    assert started.poll() is None
    own_daemon.up()
    assert wait(started).exit_code == 3
    assert [int(line) for line in log.read_text().splitlines()] == list(range(1, 61))


def test_a_daemon_that_hangs_holds_up_nobody(own_daemon: Daemon, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl.engines import docker_run

    started = engines.get("docker").start(plan(name, "sleep", "60", flags=("--network", "none")), {})
    assert started.poll() is None
    assert own_daemon.process is not None
    own_daemon.process.send_signal(signal.SIGSTOP)
    try:
        monkeypatch.setattr(docker_run, "_PATIENCE", 3.0)
        began = time.monotonic()
        with pytest.raises(EngineError, match="has not answered"):
            while time.monotonic() - began < 40:
                started.poll()
                time.sleep(0.1)
        with pytest.raises(EngineError, match="did not reach the run"):
            started.stop(1)
        assert isinstance(engines.ask("docker"), EngineError)
        assert time.monotonic() - began < 40
    finally:
        own_daemon.process.send_signal(signal.SIGCONT)
