"""apptainer.py without apptainer: a command of that name that says what the real one says."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl import choose_engine, engines, paths
from fl.engines import Ended, ImageFacts, apptainer, apptainer_errors, apptainer_image, cdi
from fl.errors import EngineError, FlError, HardwareError, ImageError, Interrupted, RecipeError

Fake = Callable[[str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts an `apptainer` on PATH that runs the lines of a shell script; Docker is nowhere."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")

    def make(script: str) -> None:
        (folder / "apptainer").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "apptainer").chmod(0o755)

    return make


def plan(*command: str, image: str = "/bin/sh", devices: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(
        run=f"r{time.monotonic_ns()}",
        engine="apptainer",
        image=SimpleNamespace(reference="fl-train:x", file=image),
        argv=command,
        devices=devices,
    )


def wait(started: engines.Started) -> Ended:
    end = time.monotonic() + 120
    while (ended := started.poll()) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return ended


@pytest.mark.parametrize(
    ("said", "numbers"), [("apptainer version 1.4.5", (1, 4, 5)), ("apptainer version 1.3.0-rc.2+12-gdeadbee", (1, 3, 0)), ("what?", ())]
)
def test_version(said: str, numbers: tuple[int, ...]) -> None:
    assert apptainer.version(said) == numbers


def test_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no apptainer") as raised:
        engines.get("apptainer").facts()
    assert "--engine host" in raised.value.remedy


def test_facts(fake: Fake) -> None:
    fake("echo apptainer version 1.4.5")
    facts = engines.get("apptainer").facts()
    assert facts.version == "1.4.5" and not facts.nvidia_gpus and facts.cdi == {}


@pytest.mark.parametrize(("script", "word"), [("echo apptainer version 1.0.3", "1.0.3"), ("echo broken >&2; exit 1", "broken")])
def test_one_that_cannot_be_used(fake: Fake, script: str, word: str) -> None:
    fake(script)
    with pytest.raises(EngineError, match=word):
        engines.get("apptainer").facts()


def test_a_user_without_passwd_entry(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even its version it does not tell then."""
    fake(r"printf '\033[31mFATAL:  \033[0m Could not determine user account information\n' >&2; exit 255")
    with pytest.raises(EngineError, match="apptainer is not well: FATAL:   Could not"):
        engines.get("apptainer").facts()
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(EngineError, match=r"without a passwd entry \(uid 54321\)"):
        engines.get("apptainer").facts()


def test_specs_that_need_hooks_do_not_count_for_an_engine_without(tmp_path: Path) -> None:
    device = {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null"}]}}
    for name, kind, edits in (
        ("a", "nvidia.com/gpu", {"hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook"}]}),
        ("b", "amd.com/gpu", {}),
    ):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": [device], "containerEdits": edits})
        )
    assert cdi.devices([str(tmp_path)]) == {"nvidia.com/gpu": frozenset({"0"}), "amd.com/gpu": frozenset({"0"})}
    assert cdi.devices([str(tmp_path)], hooks=False) == {"amd.com/gpu": frozenset({"0"})}


def test_settings_of_the_caller_do_not_change_the_plan() -> None:
    base = {
        "PATH": "/bin", "APPTAINER_BIND": "/x", "APPTAINERENV_LD_PRELOAD": "x", "SINGULARITYENV_A": "1", "SINGULARITY_NV": "1",
        "APPTAINER_TMPDIR": "/big", "APPTAINER_DOCKER_PASSWORD": "p", "APPTAINER_TMPDIRS": "no",
    }  # fmt: skip
    made = apptainer.child_environment(base, {"T": "s"}, "r-1")
    assert made == {"PATH": "/bin", "APPTAINER_TMPDIR": "/big", "APPTAINER_DOCKER_PASSWORD": "p", "T": "s", "FL_RUN": "r-1"}


def test_an_image_is_a_file_named_by_dockers_id(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("exit 1")
    known = ImageFacts(reference="fl-train:x", id="sha256:0123456789abcdef", digest=None, platform="linux/amd64", labels={"a": "b"})
    monkeypatch.setattr(apptainer_image, "in_docker", lambda reference: known)
    found = engines.get("apptainer").image("fl-train:x")
    assert found is not None and not found.local and found.labels == {"a": "b"}
    assert found.file == str(paths.cache_home() / "apptainer" / "fl-train%3Ax" / "0123456789ab.sif")
    Path(found.file).parent.mkdir(parents=True)
    Path(found.file).touch()
    again = engines.get("apptainer").image("fl-train:x")
    assert again is not None and again.local


def test_an_image_in_the_cache_is_found_without_docker(fake: Fake) -> None:
    fake("""echo '{"data":{"attributes":{"labels":{"fl.lock.sha256":"abc","org.label-schema.build-arch":"x86_64"}}}}'""")
    assert engines.get("apptainer").image("fl-train:x") is None
    file = apptainer_image.place("fl-train:x", "0123456789abcdef")
    file.parent.mkdir(parents=True)
    file.touch()
    found = engines.get("apptainer").image("fl-train:x")
    assert found is not None and found.local and found.file == str(file)
    assert found.labels["fl.lock.sha256"] == "abc" and found.platform == "linux/amd64"
    assert engines.get("apptainer").image("fl-train:y") is None and engines.get("apptainer").image("fl-train") is None


def test_image_by_path(fake: Fake, tmp_path: Path) -> None:
    fake("""echo '{"data":{"attributes":{"labels":null}}}'""")
    (tmp_path / "box.sif").touch()
    found = engines.get("apptainer").image(f"{tmp_path}/box.sif")
    assert found is not None and found.file == f"{tmp_path}/box.sif"
    assert engines.get("apptainer").image("./none.sif") is None
    with pytest.raises(ImageError, match=r"none\.sif"):
        engines.get("apptainer").pull("./none.sif", lambda text: None)
    fake("exit 1")
    with pytest.raises(ImageError, match="is not an image"):
        engines.get("apptainer").image(f"{tmp_path}/box.sif")


@pytest.mark.parametrize(
    ("reference", "stored", "said"),
    [
        ("fl-train:x", True, ("docker-daemon:fl-train:x",)),
        ("fl-train", True, ("docker-daemon:fl-train:latest",)),
        ("r:5000/fl-train", True, ("docker-daemon:r:5000/fl-train:latest",)),
        ("ghcr.io/o/fl-train:x", False, ("docker://ghcr.io/o/fl-train:x",)),
        ("127.0.0.1:5000/fl-train:x", False, ("--no-https", "docker://127.0.0.1:5000/fl-train:x")),
    ],
)
def test_sources(reference: str, stored: bool, said: tuple[str, ...]) -> None:
    assert apptainer_image.source(reference, stored) == said


def test_a_pull_leaves_the_file_or_nothing(fake: Fake) -> None:
    fake('case $1 in build) for last; do :; done; echo "$last" > "$3";; *) echo \'{"data":{"attributes":{}}}\';; esac')
    made = engines.get("apptainer").pull("ghcr.io/o/x:1", lambda text: None)
    assert made.file is not None and Path(made.file).read_text() == "docker://ghcr.io/o/x:1\n"
    older = Path(made.file).with_name("0123456789ab.sif")
    older.touch()
    assert engines.get("apptainer").pull("ghcr.io/o/x:1", lambda text: None).file == made.file and not older.exists()
    fake("echo 'FATAL:   While performing build: no space left on device' >&2; exit 255")
    with pytest.raises(ImageError, match="does not fit") as raised:
        engines.get("apptainer").pull("ghcr.io/o/y:1", lambda text: None)
    assert "APPTAINER_TMPDIR" in raised.value.remedy
    assert [p.name for p in paths.cache_home().joinpath("apptainer").rglob("*") if p.is_file()] == [Path(made.file).name]


def test_a_pull_can_be_interrupted(fake: Fake) -> None:
    fake('echo half > "$3"; sleep 300')
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > 0.5:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        engines.get("apptainer").pull("ghcr.io/o/x:1", lambda text: None, check)
    assert time.monotonic() - began < 5
    assert [p for p in (paths.cache_home() / "apptainer").rglob("*") if not p.is_dir() or p.name.startswith(".")] == []


def test_the_programs_own_end_is_its_own(fake: Fake) -> None:
    fake("exit 0")
    for code in (0, 7, 255):
        assert wait(engines.get("apptainer").start(plan("/bin/sh", "-c", f"echo FATAL: in the middle; echo on; exit {code}"), {})) == Ended(
            code
        )


def test_a_start_that_failed_is_an_error_once(fake: Fake) -> None:
    what = plan("/bin/sh", "-c", "echo 'FATAL:   container creation failed: something new' >&2; exit 255")
    started = engines.get("apptainer").start(what, {})
    with pytest.raises(EngineError, match="something new"):
        wait(started)
    assert started.poll() == Ended(255)
    started.remove()


def test_scratch_goes_with_the_run() -> None:
    what = plan(sys.executable, "-c", "import os; open('apptainer/x','w'); print(os.environ['FL_RUN'])")
    started = engines.get("apptainer").start(what, {})
    assert wait(started) == Ended(0)
    folder = paths.runs_home() / what.run
    assert (folder / "apptainer" / "x").exists() and (folder / "log.txt").read_text() == f"{what.run}\n"
    started.remove()
    assert not (folder / "apptainer").exists() and (folder / "log.txt").exists()


def test_a_missing_file_is_said_before_the_start() -> None:
    with pytest.raises(ImageError, match=r"/none\.sif"):
        engines.get("apptainer").start(plan("true", image="/none.sif"), {})


def test_a_device_that_is_gone_is_said_since_apptainer_would_start_without() -> None:
    with pytest.raises(HardwareError, match="/dev/no-such-device"):
        engines.get("apptainer").start(plan("true", devices=("/dev/null", "/dev/no-such-device", "nvidia.com/gpu=0")), {})


@pytest.mark.parametrize(
    ("said", "kind", "word"),
    [
        ("container creation failed: mount /no/x->/no/x error: while mounting /no/x: mount source /no/x doesn't exist",
         RecipeError, "/no/x"),
        ('"nonsense": executable file not found in $PATH', ImageError, "nonsense"),
        ("While checking container encryption: could not open image /x.sif: failed to retrieve path for /x.sif", ImageError, "opened"),
        ("container creation failed: network setup: could not create network namespace: operation not permitted", EngineError, "network"),
        ("while mounting image /x.sif: squashfuse: /dev/fuse: permission denied", EngineError, "mount the image"),
        ("while extracting /x.sif: root filesystem extraction failed: extract command failed", EngineError, "mount the image"),
        ("Failed to create user namespace: user namespace disabled", EngineError, "as this user"),
        ("anything else", EngineError, "anything else"),
    ],
)  # fmt: skip
def test_what_it_says_becomes_what_to_do(said: str, kind: type[FlError], word: str) -> None:
    assert apptainer_errors.fatal(f"INFO:    x\n\x1b[31mFATAL:  \x1b[0m {said}\n") == said
    error = apptainer_errors.explain_start(said, plan())
    assert type(error) is kind and word in error.message and error.remedy


def test_its_last_word() -> None:
    assert (
        apptainer_errors.fatal("INFO:    a\nFATAL:   x failed: command failed\n: exit status 1\n")
        == "x failed: command failed : exit status 1"
    )
    assert apptainer_errors.fatal("FATAL:   x\n" + "the trainer's own\n" * 4) is None
    assert apptainer_errors.fatal("FATAL: a program's own way to say it\n") is None
    assert apptainer_errors.fatal("") is None


@pytest.mark.parametrize(("job", "asked"), [(None, ["docker", "podman", "apptainer"]), ("7", ["podman", "apptainer"])])
def test_auto_does_not_ask_docker_inside_a_slurm_job(job: str | None, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def ask(name: str) -> EngineError:
        seen.append(name)
        return EngineError(f"no {name}", "")

    monkeypatch.setattr(engines, "ask", ask)
    monkeypatch.setattr(choose_engine, "_host", lambda question, notes: notes)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    question: Any = SimpleNamespace(hardware=SimpleNamespace(replayed=False))
    notes: Any = choose_engine._automatic(question)
    assert seen == asked
    assert notes[0].startswith("docker: its daemon would start the run outside" if job else "docker: no docker")
