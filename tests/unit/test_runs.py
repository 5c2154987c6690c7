"""runs.py, run_status.py, run_stop.py and `fl ps | logs | stop | env`: the truth about runs, whatever is in their folders."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fl import engines, paths, report, run_status, runs
from fl.commands.runs import age
from fl.engines import Ended, processes
from fl.errors import EngineError, UsageError
from fl.run_status import outcome

GONE = "4194305:1"
"""A launcher that cannot be alive: the number is above the kernel's largest."""


def make(name: str, state: str = "running", launcher: str = GONE, events: tuple[dict[str, Any], ...] = (), **more: Any) -> Path:
    folder = paths.runs_home() / name
    folder.mkdir(parents=True)
    value = {"schema": 1, "run": name, "state": state, "launcher": launcher, "created": time.time(), **more}
    (folder / "state.json").write_text(json.dumps(value))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def one(name: str) -> run_status.RunStatus:
    return run_status.find(name)


class FakeEngine:
    """An engine that says what the test wants."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def adopt(self, ident: str) -> Any:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeRun:
    ident = "abc"

    def __init__(self, ended: Ended | None) -> None:
        self.ended = ended

    def poll(self) -> Ended | None:
        return self.ended


def test_a_new_run_is_its_owners_alone() -> None:
    run = runs.create("a-20261124-150301-7c2f")
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
    state = runs.read_state(run.folder)
    assert state is not None
    assert (state.state, state.launcher) == ("planned", processes.identity(os.getpid()))
    with pytest.raises(UsageError):
        runs.create("a-20261124-150301-7c2f")


def test_what_is_not_given_stays() -> None:
    run = runs.create("a")
    run.update("running", ident="abc", engine="docker")
    run.note("saving")
    run.update("failed", exit_code=10, message="NaN")
    state = runs.read_state(run.folder)
    assert state is not None
    assert (state.state, state.ident, state.engine, state.exit_code, state.message) == ("failed", "abc", "docker", 10, "NaN")
    assert state.started is not None
    assert state.ended is not None
    assert sorted(p.name for p in run.folder.iterdir()) == ["state.json"]


def test_a_state_told_again_is_not_written_again() -> None:
    run = runs.create("a")
    run.update("running")
    before = (run.folder / "state.json").stat().st_ino
    run.note("running")
    assert (run.folder / "state.json").stat().st_ino == before
    run.note("saving")
    assert (run.folder / "state.json").stat().st_ino != before


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        runs.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"state": "running"}', '{"run": "a", "state": "dreaming"}', '{"run": 1, "state": "running"}', "\xff"]
)
def test_unreadable_states_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_bytes(content.encode("latin-1"))
    assert runs.read_state(tmp_path) is None


def test_a_state_of_a_later_fl_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"schema": 2, "run": "a", "state": "finished", "new": true}')
    state = runs.read_state(tmp_path)
    assert state is not None
    assert state.state == "finished"


def test_events_half_lines_and_garbage(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert runs.read_events(path, 7) == ([], 7)
    path.write_bytes(b'{"event": "start"}\nnonsense\n[1]\n{"no": "event"}\n\xff\xfe\n{"event": "st')
    events, offset = runs.read_events(path)
    assert [e["event"] for e in events] == ["start"]
    with path.open("ab") as file:
        file.write(b'ep", "step": 1}\n')
    events, offset = runs.read_events(path, offset)
    assert events == [{"event": "step", "step": 1}]
    assert runs.read_events(path, offset) == ([], offset)
    path.write_bytes(b'{"event": "start"}\n')
    assert [e["event"] for e in runs.read_events(path, offset)[0]] == ["start"]


def test_the_first_error_is_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert runs.last_error(path) is None
    lines = [{"event": "error", "message": "NaN at step 7", "remedy": "lower it"}, {"event": "error", "message": "peer went away"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert runs.last_error(path) == "NaN at step 7\nlower it"


def test_the_end_of_a_long_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps({"event": "step", "step": n}) + "\n" for n in range(50_000)))
    assert runs.last_events(path)["step"]["step"] == 49_999


@pytest.mark.parametrize(
    ("ended", "last", "began", "expected"),
    [
        (Ended(0), {}, True, ("finished", 0)),
        (Ended(10), {"error": {"message": "NaN", "exit": 10}}, True, ("failed", 10)),
        (Ended(137, True, "no memory"), {}, True, ("failed", 137)),
        (Ended(143), {}, True, ("stopped", 143)),
        (None, {"end": {}}, True, ("finished", 0)),
        (Ended(engines.UNKNOWN_EXIT), {"end": {}}, True, ("finished", 0)),
        (None, {"error": {"message": "NaN", "exit": 10}}, True, ("failed", 10)),
        (None, {"error": {"exit": 143}, "end": {}}, True, ("stopped", 143)),
        (None, {"end": {"outcome": "stopped", "exit": 143, "message": "stopped at step 7"}}, True, ("stopped", 143)),
        (None, {"end": {"outcome": "finished", "exit": 0}}, True, ("finished", 0)),
        (None, {"step": {}}, True, ("lost", None)),
        (None, {}, False, ("lost", None)),
    ],
)
def test_what_became_of_an_orphan(ended: Ended | None, last: dict[str, Any], began: bool, expected: tuple[str, int | None]) -> None:
    state, code, message = outcome(ended, last, began)
    assert (state, code) == expected
    assert message


def test_a_launcher_that_lives_is_believed() -> None:
    make("a", launcher=processes.identity(os.getpid()), engine="docker", ident="abc")
    status = one("a")
    assert (status.state, status.launcher) == ("running", os.getpid())


@pytest.mark.parametrize(
    ("answer", "state"), [(FakeRun(None), "running"), (FakeRun(Ended(0)), "finished"), (FakeRun(Ended(1)), "failed"), (None, "lost")]
)
def test_a_dead_launchers_run_is_looked_for_in_its_engine(monkeypatch: pytest.MonkeyPatch, answer: Any, state: str) -> None:
    make("a", engine="docker", ident="abc")
    monkeypatch.setattr(engines, "get", lambda name: FakeEngine(answer))
    assert one("a").state == state


def test_an_engine_that_is_silent_is_asked_once_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        make(name, engine="docker", ident=name)
    engine = FakeEngine(EngineError("it hangs"))
    monkeypatch.setattr(engines, "get", lambda name: engine)
    found = run_status.list_runs()
    assert [status.state for status in found] == ["running"] * 3
    assert all("does not answer" in str(status.message) for status in found)
    assert engine.asked == 1


def test_a_recorded_end_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    make("a", state="finished", engine="docker", ident="abc")
    monkeypatch.setattr(engines, "get", lambda name: pytest.fail("asked"))
    assert one("a").state == "finished"


def test_broken_folders_are_listed_and_break_nothing() -> None:
    make("good", state="finished")
    (paths.runs_home() / "empty").mkdir()
    folder = paths.runs_home() / "half"
    folder.mkdir()
    (folder / "state.json").write_text('{"run": "half", "st')
    (paths.runs_home() / "file").write_text("")
    assert {status.name: status.state for status in run_status.list_runs()} == {"good": "finished", "empty": "broken", "half": "broken"}


def test_progress_comes_from_the_events() -> None:
    events = (
        {"event": "step", "step": 3, "max_steps": 9, "loss": 1.5},
        {"event": "save", "path": "/out/checkpoint-3"},
        {"event": "step", "step": "x"},
    )
    make("a", state="finished", events=events[:2])
    make("b", state="finished", events=events)
    status = one("a")
    assert (status.step, status.max_steps, status.loss, status.saved) == (3, 9, 1.5, "/out/checkpoint-3")
    assert one("b").step is None


def test_runs_are_found_by_name_prefix_and_last() -> None:
    with pytest.raises(UsageError, match="no runs yet"):
        run_status.find()
    make("alpha-1", state="finished", created=1.0)
    make("alpha-2", state="finished", created=3.0)
    make("beta-1", state="finished", created=2.0)
    assert run_status.find().name == "alpha-2"
    assert run_status.find("be").name == "beta-1"
    assert run_status.find("alpha-1").name == "alpha-1"
    with pytest.raises(UsageError, match="2 runs begin"):
        run_status.find("alpha")
    with pytest.raises(UsageError, match="nearest is beta-1"):
        run_status.find("betta-1")
    assert [status.name for status in run_status.list_runs()] == ["alpha-2", "beta-1", "alpha-1"]


@pytest.mark.parametrize(("seconds", "expected"), [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")])
def test_ages(seconds: float, expected: str) -> None:
    assert age(seconds) == expected


def test_ps(fl) -> None:
    assert "no runs yet" in fl("ps").stderr
    make("done", state="failed", message="NaN at step 3\nmore", exit_code=10)
    assert "1 runs are over" in fl("ps").stderr
    assert json.loads(fl("ps", "--json").stdout) == {"schema": 1, "runs": []}
    (entry,) = json.loads(fl("ps", "-a", "--json").stdout)["runs"]
    assert (entry["run"], entry["state"], entry["exit_code"]) == ("done", "failed", 10)
    table = fl("ps", "-a").stdout
    assert "NaN at step 3" in table
    assert "more" not in table


def test_logs(fl) -> None:
    folder = make("a", state="finished")
    (folder / "log.txt").write_bytes(b"first\r\n 10%\r 20%\r100%\nbad \xff \x1b[31m\nno newline")
    done = fl("logs", "a")
    assert done.returncode == 0
    assert done.stdout.split("\n") == ["first", "100%", "bad \N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}[31m", "no newline", ""]
    (folder / "log.txt").unlink()
    assert "wrote nothing" in fl("logs").stderr
    assert fl("logs", "zzz").returncode == 2


def test_logs_follow_a_run_to_its_end(fl) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    folder = make("a", launcher=processes.identity(launcher.pid))
    (folder / "log.txt").write_text("one\ntw")
    following = subprocess.Popen([sys.executable, "-m", "fl", "logs", "-f", "a"], stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert following.stdout.readline() == "one\n"
    with (folder / "log.txt").open("a") as file:
        file.write("o\nthree")
    assert following.stdout.readline() == "two\n"
    state = json.loads((folder / "state.json").read_text())
    runs.write_json(folder / "state.json", {**state, "state": "finished"})
    launcher.kill()
    launcher.wait()
    assert following.communicate(timeout=120)[0] == "three\n"
    assert following.returncode == 0


ORPHAN = """
import signal, sys, time, json
from pathlib import Path
def end(*a):
    with open({events!r}, "a") as f:
        for event in ({{"event": "save", "path": "/out/checkpoint-4"}}, {{"event": "end", "exit": 143}}):
            f.write(json.dumps(event) + "\\n")
    sys.exit(143)
signal.signal(15, end if {obeys} else signal.SIG_IGN)
print("ready", flush=True)
time.sleep(120)
"""


ORPHANED = f"orphan-{os.getpid()}"
"""Its processes are found by this name, so tests that run at the same time must not share it."""


def orphan(name: str, obeys: bool = True) -> subprocess.Popen[bytes]:
    """A process of a run whose launcher is gone."""
    folder = make(name, engine="host")
    code = ORPHAN.format(events=str(folder / "events.jsonl"), obeys=obeys)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=log, start_new_session=True, env={**os.environ, processes.MARK: name}
        )
    state = json.loads((folder / "state.json").read_text())
    runs.write_json(folder / "state.json", {**state, "ident": processes.identity(process.pid)})
    deadline = time.monotonic() + 120
    while "ready" not in (folder / "log.txt").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_stop_of_a_run_whose_launcher_died(fl) -> None:
    process = orphan(ORPHANED)
    assert one(ORPHANED).state == "running"
    done = fl("stop", ORPHANED)
    assert done.returncode == 0, done.stderr
    assert "checkpoint saved at /out/checkpoint-4" in done.stdout
    assert process.wait(60) == 143
    assert (one(ORPHANED).state, one(ORPHANED).exit_code) == ("stopped", 143)
    assert "over already" in fl("stop", ORPHANED).stdout


def test_stop_now_kills_what_does_not_listen(fl) -> None:
    process = orphan(ORPHANED, obeys=False)
    done = fl("stop", "--now")
    assert done.returncode == 0, done.stderr
    assert process.wait(60) == -signal.SIGKILL
    assert one(ORPHANED).state == "stopped"


def test_an_orphan_whose_ident_was_never_written_is_found_by_its_mark() -> None:
    process = orphan(ORPHANED)
    folder = paths.runs_home() / ORPHANED
    state = json.loads((folder / "state.json").read_text())
    runs.write_json(folder / "state.json", {**state, "ident": None})
    status = one(ORPHANED)
    process.kill()
    process.wait()
    assert (status.state, status.ident) == ("running", f"{process.pid}:{status.ident.split(':')[1]}")


def test_stop_asks_the_launcher_while_it_lives(fl) -> None:
    code = f"""
import json, os, signal, sys
sys.path[:0] = {sys.path!r}
from fl import runs
run = runs.create("a")
run.update("running", ident="0:0", engine="host")
def end(*a):
    run.update("stopped", exit_code=143, message="stopped by SIGTERM")
    sys.exit(143)
signal.signal(15, end)
print("ready", flush=True)
signal.pause()
"""
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout.readline() == "ready\n"
    done = fl("stop", "a")
    assert done.returncode == 0, done.stderr
    assert launcher.wait(5) == 143
    assert done.stdout == "a: stopped, nothing was saved\n"


def test_env_tells_no_secret_no_home_no_host(fl, tmp_path: Path) -> None:
    import platform

    secrets = {"HF_TOKEN": "hf_s3cret", "FL_API_KEY": "k3y", "DOCKER_HOST": f"unix://{tmp_path}/none.sock", "HF_HOME": f"{Path.home()}/hub"}
    done = fl("env", "--json", env=secrets)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert not {"hf_s3cret", "k3y"} & set(done.stdout.split('"'))
    assert document["variables"]["HF_TOKEN"] == "(set, not shown)"
    assert document["variables"]["HF_HOME"] == "~/hub"
    assert document["engines"]["docker"]["answers"] is False
    assert document["engines"]["host"]["answers"] is True
    assert f"{Path.home()}/" not in done.stdout
    assert len(platform.node()) <= 3 or platform.node() not in done.stdout
    plain = fl("env", env=secrets).stdout
    assert "hf_s3cret" not in plain
    assert "matrix_sha256" in plain


def test_env_counts_caches(tmp_path: Path) -> None:
    (tmp_path / "environments/a").mkdir(parents=True)
    (tmp_path / "environments/a/file").write_bytes(b"x" * 100_000)
    assert report.cache_sizes(tmp_path)["environments"] >= 100_000
    assert report.cache_sizes(tmp_path / "none") == {}


def told(name: str, output: Path, **more: Any) -> Path:
    """A run that has ended, with what `fl resume` reads."""
    folder = make(name, "stopped", exit_code=143, **more)
    plan = {"lane": "cpu", "stack": "cpu-torch213", "engine": "host", "image": {"reference": None}, "accelerators": [],
            "argv": [str(paths.cache_home() / "environments" / "abc" / "bin" / "python")]}  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "config.json").write_text(json.dumps({"training": {"output_dir": str(output)}}))
    recipe = {"name": "mine", "path": str(output / "mine.yaml"), "shipped": False, "overrides": ["max_steps=9"], "directory": str(output)}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "recipe.yaml").write_text("stage: sft\n")
    return folder


def test_a_resumed_run_has_the_decisions_of_the_first(tmp_path: Path) -> None:
    from fl import resume

    folder = told("mine-1", tmp_path)
    for number, whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
    found = resume.again(one("mine-1"))
    assert found.checkpoint == tmp_path / "checkpoint-10"
    assert found.source == str(folder / "recipe.yaml")
    assert found.overrides == ("max_steps=9", "overwrite_output_dir=false")
    assert (found.directory, found.options.hw, found.options.engine, found.options.stack) == (tmp_path, "cpu", "host", "cpu-torch213")
    assert (found.options.python, found.options.image, found.options.devices) == (None, None, None)
    (tmp_path / "mine.yaml").write_text("stage: sft\n")
    assert resume.again(one("mine-1")).source == str(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("stage: pt\n")
    assert resume.again(one("mine-1")).source == str(folder / "recipe.yaml")


def test_an_image_and_devices_are_those_of_the_first(tmp_path: Path) -> None:
    from fl import resume

    folder = told("mine-1", tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    plan = json.loads((folder / "plan.json").read_text())
    plan |= {"engine": "docker", "image": {"reference": "harbor/x:1"}, "accelerators": [0, 2], "argv": ["docker"]}
    (folder / "plan.json").write_text(json.dumps(plan))
    options = resume.again(one("mine-1")).options
    assert (options.engine, options.image, options.devices, options.python) == ("docker", "harbor/x:1", "0,2", None)
    plan |= {"engine": "host", "image": {"reference": None}, "argv": ["/opt/venv/bin/python"]}
    (folder / "plan.json").write_text(json.dumps(plan))
    options = resume.again(one("mine-1")).options
    assert (options.engine, options.python) == (None, Path("/opt/venv/bin/python"))


def test_a_pinned_image_is_left_to_the_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl import pin, resume

    folder = told("mine-1", tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text("{}")
    plan = json.loads((folder / "plan.json").read_text())
    plan |= {"engine": "docker", "image": {"reference": "harbor/x@sha256:" + "a" * 64}, "argv": ["docker"]}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert resume.again(one("mine-1")).options.image == plan["image"]["reference"]
    asked: list[Any] = []
    monkeypatch.setattr(pin, "for_lane", lambda *words: asked.append(words) or "pinned")
    assert resume.again(one("mine-1")).options.image is None
    assert asked == [(tmp_path, "cpu")]


def test_what_cannot_be_resumed_is_refused_with_what_to_type(tmp_path: Path) -> None:
    from fl import resume
    from fl.errors import RecipeError

    make("going", launcher=processes.identity(os.getpid()))
    make("done", "finished")
    make("old", "failed", exit_code=10)
    told("bare", tmp_path)
    (told("moved", tmp_path) / "recipe.json").write_text(
        json.dumps({"name": "m", "path": "x", "shipped": False, "overrides": [], "directory": str(tmp_path / "gone")})
    )
    (paths.runs_home() / "broken").mkdir()
    for name, kind, said, typed in (
        ("going", UsageError, "goes on", "fl attach going"),
        ("done", UsageError, "has finished", "fl run"),
        ("old", UsageError, "its recipe.json is missing", "again"),
        ("bare", RecipeError, "no checkpoint", "save_steps"),
        ("moved", RecipeError, "is not there any more", "mkdir -p"),
        ("broken", UsageError, "cannot be resumed", "fl rm broken"),
    ):
        with pytest.raises(kind, match=said) as error:
            resume.again(one(name))
        assert typed in error.value.remedy


def test_attach_shows_a_run_that_is_over_and_ends_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    from fl.cli import main

    step = {"event": "step", "step": 20, "max_steps": 20, "loss": 1.5}
    make("failed-1", "failed", events=(step,), exit_code=10, message="NaN at step 20")
    with pytest.raises(SystemExit) as raised:
        main(["attach", "failed-1"])
    captured = capsys.readouterr()
    assert raised.value.code == 10
    assert "step 20/20" in captured.err
    assert captured.out == "failed-1: failed (NaN at step 20)\n"
    make("lost-2", created=time.time() + 1)
    with pytest.raises(SystemExit) as raised:
        main(["attach"])
    assert raised.value.code == 6
    assert "fl resume lost-2" in capsys.readouterr().err
