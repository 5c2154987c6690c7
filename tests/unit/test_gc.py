"""`fl gc` and `fl rm`: what goes, and above all what stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from fl import gc, paths, runs, wheel
from fl.cli import main
from fl.engines import environment, processes
from fl.images import lock
from fl.matrix import load

LONG_AGO = time.time() - 100 * 86400
GONE = "4194305:1"


@pytest.fixture(autouse=True)
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    with pytest.raises(SystemExit) as raised:
        main([*arguments, "--json"])
    captured = capsys.readouterr()
    return int(raised.value.code or 0), json.loads(captured.out), captured.err


def entry(*parts: str, old: bool = True, size: int = 5000) -> Path:
    folder = paths.cache_home().joinpath(*parts)
    folder.mkdir(parents=True)
    (folder / "content").write_bytes(b"x" * size)
    if old:
        os.utime(folder, (LONG_AGO, LONG_AGO))
    return folder


def sound(folder: Path) -> Path:
    """Makes an environment that doctor finds nothing wrong with."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to("/bin/sh")
    marker = {"schema": 1, "lock_sha256": "x", "python": os.path.realpath("/bin/sh"), "packages": 0}
    (folder / "fl-environment.json").write_text(json.dumps(marker))
    os.utime(folder, (LONG_AGO, LONG_AGO))
    return folder


def a_run(name: str, plan: dict[str, Any], *, over: bool, created: float = LONG_AGO) -> Path:
    folder = paths.runs_home() / name
    folder.mkdir(parents=True)
    state = {"run": name, "state": "finished" if over else "running", "created": created, "ended": created if over else None}
    state["launcher"] = GONE if over else processes.identity(os.getpid())
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def removed(document: Any) -> set[str]:
    return {Path(one["path"]).name for one in document["removed"]}


def test_what_belongs_to_this_fl_stays_and_the_rest_goes(capsys: pytest.CaptureFixture[str]) -> None:
    file = lock.path("cpu-torch213", "train", "linux/amd64")
    assert file is not None
    mine = sound(entry("environments", environment.key(file, load().stack("cpu-torch213").python)))
    other = sound(entry("environments", "0123456789abcdef"))
    half = entry("environments", "fedcba9876543210", old=False)
    code, old_code = entry("code", wheel.code_sha256()[:16]), entry("code", "0000000000000000")
    compiled = entry("compiled", f"cpu-torch213-{lock.sha256(file)[:12]}-cpu")
    stale = [entry("compiled", "cpu-torch213-000000000000-cpu"), entry("compiled", "gone-torch1-000000000000-cpu")]
    data = entry("trainer", "rows")
    whole, part = entry("modelscope/models/a/b", "master"), entry("modelscope/models/a/b", "v1.partial")
    stale.append(part)
    status, document, _ = run(capsys, "gc", "--dry-run")
    assert (status, document["dry_run"]) == (0, True)
    assert removed(document) == {path.name for path in (other, half, old_code, *stale)}
    assert document["bytes"] >= 6 * 4096
    assert other.is_dir()
    status, again, _ = run(capsys, "gc")
    assert (status, removed(again)) == (0, removed(document))
    assert [path for path in (other, half, old_code, *stale) if path.exists()] == []
    assert [path for path in (mine, code, compiled, data, whole) if not path.is_dir()] == []
    assert run(capsys, "gc")[1] == {"schema": 1, "dry_run": False, "bytes": 0, "removed": []}


def test_what_a_going_run_names_stays_and_what_a_run_used_lately_too(capsys: pytest.CaptureFixture[str]) -> None:
    used, lately, idle = (sound(entry("environments", f"{n}" * 16)) for n in (1, 2, 3))
    a_run("going", {"argv": [f"{used}/bin/python", "-m", "fl_trainers"]}, over=False)
    a_run("lately", {"argv": [f"{lately}/bin/python"]}, over=True, created=time.time() - 86400)
    a_run("once", {"argv": [f"{idle}/bin/python"]}, over=True)
    assert removed(run(capsys, "gc")[1]) == {idle.name}
    assert removed(run(capsys, "gc", "--days", "0.5")[1]) == {lately.name}
    assert removed(run(capsys, "gc", "--days", "0")[1]) == set()
    assert used.is_dir()


def image(tags: list[str], version: str | None, digests: tuple[str, ...] = ()) -> dict[str, Any]:
    labels = {"fl.stack": "s", **({"fl.version": version} if version else {})}
    return {"Id": "sha256:a", "RepoTags": tags, "RepoDigests": list(digests), "Config": {"Labels": labels}}


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (image([], None), "s: a newer build has its name"),
        (image(["fl-train:s-0.0.1"], "0.0.1"), "s: of fl 0.0.1"),
        (image(["fl-train:s-0.1.0"], "0.1.0"), None),
        (image(["fl-train:s-0.0.1"], "0.0.1", ("x@sha256:b",)), None),
    ],
)
def test_images_that_lost_their_name_or_are_of_another_version_go_unless_they_have_a_digest(found: dict[str, Any], why: str | None) -> None:
    assert gc.image_waste(found) == why


def test_rm_takes_folders_of_runs_that_are_over_and_nothing_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "saves"
    output.mkdir()
    first, second = a_run("first-1", {"argv": [], "mounts": [str(output)]}, over=True), a_run("second-2", {}, over=True)
    (paths.runs_home() / "broken-3").mkdir()
    status, document, _ = run(capsys, "rm", "first", "broken-3")
    assert (status, removed(document)) == (0, {"first-1", "broken-3"})
    assert not first.exists()
    assert second.is_dir()
    assert output.is_dir()


def test_rm_of_a_run_that_goes_on_removes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    over, going = a_run("over-1", {}, over=True), a_run("going-2", {}, over=False)
    status, document, _ = run(capsys, "rm", "over-1", "going-2")
    assert (status, document["error"]["remedy"]) == (2, "fl stop going-2")
    assert over.is_dir()
    assert going.is_dir()
    status, document, _ = run(capsys, "rm", "ovr-1")
    assert (status, "the nearest is over-1" in document["error"]["message"]) == (2, True)
    assert runs.read_state(over) is not None
