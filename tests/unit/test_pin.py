"""fl.lock: written, obeyed, found out when anything of it is altered; proposals of newer stacks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledger_records import record

from fl import ledger, matrix, paths, pin, pin_evidence, wheel
from fl.commands.audit import now_of
from fl.errors import EvidenceError
from fl.evidence import canonical, identified, row_sha256
from fl.images import lock
from fl.ledger_index import entry_of

Fl = Callable[..., "subprocess.CompletedProcess[str]"]
ROWS = matrix.load()
STACK = ROWS.stack("cpu-torch213")
DRY = ("run", "--engine", "host", "--dry-run", "tiny-sft")


def proof(stack: str = "cpu-torch213", **more: Any) -> dict[str, Any]:
    """A record that is proof with the inputs of today."""
    row = ROWS.stack(stack)
    locks = [lock.path(row.id, "train", platform) for platform in row.hosts.platforms]
    environment = {"lock_sha256": next(lock.sha256(file) for file in locks if file is not None)}
    return record(
        stack=stack, lane=row.lane, trainer_sha256=wheel.code_sha256(), row_sha256=row_sha256(ROWS, row), environment=environment, **more
    )


@pytest.fixture
def project(tmp_path: Path, fl: Fl) -> Path:
    """A project with a ledger of one proof, pinned."""
    ledger.add(tmp_path / "evidence", proof())
    done = fl("pin", "cpu-torch213", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def alter(project: Path, *keys: str, value: Any) -> None:
    """Edits a field of the cpu lane by hand."""
    document = json.loads((project / "fl.lock").read_text(encoding="utf-8"))
    place = document["lanes"]["cpu"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (project / "fl.lock").write_text(json.dumps(document), encoding="utf-8")


def test_run_obeys_the_nearest_one(project: Path, fl: Fl) -> None:
    below = project / "one" / "two"
    below.mkdir(parents=True)
    done = fl(*DRY, cwd=below)
    assert done.returncode == 0 and f"{project / 'fl.lock'} pins it" in done.stdout, done.stdout
    (below / "fl.lock").write_text("{}", encoding="utf-8")
    nearer = fl(*DRY, cwd=below)
    assert nearer.returncode == 9 and str(below / "fl.lock") in nearer.stderr


def test_a_pin_rests_on_proof(tmp_path: Path, fl: Fl) -> None:
    (tmp_path / "evidence").mkdir()
    refused = fl("pin", "cpu-torch213", cwd=tmp_path)
    assert refused.returncode == 9 and "--unproven" in refused.stderr and not (tmp_path / "fl.lock").exists()
    assert fl("pin", "cpu-torch213", "--unproven", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "fl.lock").read_text(encoding="utf-8"))["lanes"]["cpu"]["evidence"] == []


def test_the_pin_names_its_evidence(project: Path, fl: Fl) -> None:
    entry = pin.read(project / "fl.lock")["cpu"]
    assert entry.evidence == [proof()["id"]]
    shown = json.loads(fl("pin", "--check", "--json", cwd=project).stdout)
    assert shown["holds"] is True and shown["lanes"]["cpu"]["stack"] == "cpu-torch213"


ALTERED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a version": (("versions", "trl"), "1.13.0", "trl: pinned 1.13.0, the row has 1.12.0"),
    "a version more": (("versions", "vllm"), "0.33.0", "vllm: pinned 0.33.0, the row has nothing"),
    "the row": (("row_sha256",), "0" * 64, "the row cpu-torch213"),
    "the lock": (("locks", "linux/amd64"), "0" * 64, "the lock for linux/amd64"),
    "the lock of extras": (("extras", "linux/amd64"), "0" * 64, "the lock of extras for linux/amd64: pinned 000000000000, this fl has "),
    "the lock of extras, left out": (("extras",), None, "its own hash"),
    "the stack": (("stack",), "cpu-torch212", "no row cpu-torch212"),
    "the evidence": (("evidence",), [], "its own hash"),
    "the image": (("image",), {"reference": "x", "digest": None, "id": "sha256:1"}, "its own hash"),
    "the hash": (("sha256",), "0" * 64, "its own hash"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_every_altered_field_is_found(project: Path, fl: Fl, name: str) -> None:
    keys, value, message = ALTERED[name]
    alter(project, *keys, value=value)
    for words in (DRY, ("pin", "--check")):
        done = fl(*words, cwd=project)
        assert done.returncode == 9 and message in done.stderr, done.stderr
        assert "use what was pinned" in done.stderr and "fl pin" in done.stderr


BROKEN = {
    "no JSON": ("{", "is no JSON"),
    "another form": ("[]", "the whole"),
    "a key too many": ('{"schema": 1, "lanes": {}, "x": 1}', "fl.lock: x: "),
    "a key too few": ('{"schema": 1, "lanes": {"cpu": {"stack": "cpu-torch213"}}}', "lanes.cpu.row_sha256: Field required"),
    "another kind": ('{"schema": 1, "lanes": {"cpu": 3}}', "lanes.cpu"),
    "a newer schema": ('{"schema": 2, "lanes": {}}', "has schema 2"),
    "no schema": ('{"lanes": {}}', "schema"),
    "a lane that is none": ('{"schema": 1, "lanes": {"cpuu": ENTRY}}', "lanes.cpuu: there is no such lane; there are cuda"),
    "a lane twice": ('{"schema": 1, "lanes": {"cpu": ENTRY, "cpu": ENTRY}}', "a key stands twice"),
    "an open merge": ('<<<<<<< HEAD\n{"schema": 1}\n=======\n', "a merge that git left open"),
    "a schema that is no number": ('{"schema": true, "lanes": {}}', "schema"),
    "deep": ("[" * 100_000, "is no JSON"),
    "large": (" " * (2**20 + 1), "is larger than"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_by_hand_with_errors(tmp_path: Path, fl: Fl, name: str) -> None:
    entry = pin.make(STACK, pin.today(ROWS, STACK), None, [])
    text, message = BROKEN[name][0].replace("ENTRY", entry.model_dump_json()), BROKEN[name][1]
    (tmp_path / "fl.lock").write_text(text, encoding="utf-8")
    for words in (DRY, ("pin", "--check"), ("pin", "cpu-torch213", "--unproven")):
        done = fl(*words, cwd=tmp_path)
        assert done.returncode == 9 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "fl.lock").read_text(encoding="utf-8") == text


def test_what_is_in_the_place_of_the_file_is_not_passed_over(tmp_path: Path, fl: Fl) -> None:
    """Somebody put it there to be obeyed: a folder, a pipe, a link to nothing."""
    place = tmp_path / "fl.lock"
    makes: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: place.mkdir(), "no file"),
        (lambda: os.mkfifo(place), "no file"),
        (lambda: place.symlink_to("x"), "link to nothing"),
    )
    for make, message in makes:
        make()
        for words in (DRY, ("pin", "--check"), ("pin", "cpu-torch213", "--unproven")):
            done = fl(*words, cwd=tmp_path)
            assert done.returncode == 9 and message in done.stderr, (words, done.stderr)
        place.rmdir() if place.is_dir() else place.unlink()


def test_an_entry_under_another_lane(project: Path, fl: Fl) -> None:
    document = json.loads((project / "fl.lock").read_text(encoding="utf-8"))
    (project / "fl.lock").write_text(json.dumps({"schema": 1, "lanes": {"cuda": document["lanes"]["cpu"]}}), encoding="utf-8")
    done = fl("pin", "--check", cwd=project)
    assert done.returncode == 9 and "cpu-torch213 is a stack of the cpu lane" in done.stderr


def test_a_file_that_pins_nothing(tmp_path: Path, fl: Fl) -> None:
    (tmp_path / "fl.lock").write_text('{"schema": 1, "lanes": {}}', encoding="utf-8")
    done = fl("pin", "--check", cwd=tmp_path)
    assert done.returncode == 9 and "pins no lane" in done.stderr


def test_a_link_to_a_file_that_projects_share_stays_one(tmp_path: Path, fl: Fl) -> None:
    (tmp_path / "shared.lock").write_text('{"schema": 1, "lanes": {}}', encoding="utf-8")
    (tmp_path / "fl.lock").symlink_to("shared.lock")
    assert fl("pin", "cpu-torch213", "--unproven", cwd=tmp_path).returncode == 0
    assert (tmp_path / "fl.lock").is_symlink() and "cpu-torch213" in (tmp_path / "shared.lock").read_text(encoding="utf-8")


def test_what_the_ledger_has_instead_of_a_proof_is_told(tmp_path: Path, fl: Fl) -> None:
    ledger.add(tmp_path / "evidence", {**proof(), **identified({**proof(), "trainer_sha256": "x" * 64})})
    done = fl("pin", "cpu-torch213", cwd=tmp_path)
    assert done.returncode == 9 and "1 models are stale, such as acme/one" in done.stderr and "changed since: trainer" in done.stderr


def test_escape_sequences_do_not_reach_the_terminal(tmp_path: Path, fl: Fl) -> None:
    (tmp_path / "fl.lock").write_text('{"schema": 1, "lanes": {"\\u001b[31mred": 1}}', encoding="utf-8")
    done = fl("pin", "--check", cwd=tmp_path)
    assert done.returncode == 9 and "\x1b" not in done.stderr
    now = pin.today(ROWS, STACK)
    sealed = pin.make(STACK, now, pin.PinnedImage.model_construct(reference="x\x1b[31m", id="sha256:1"), []).model_dump()
    other = pin.make(STACK.model_copy(update={"id": "y\x1b[31m"}), now, None, []).model_dump()
    for entry in (sealed, other):
        (tmp_path / "fl.lock").write_text(json.dumps({"schema": 1, "lanes": {"cpu": entry}}), encoding="utf-8")
        for flag in ("--check", "--upgrade"):
            done = fl("pin", flag, cwd=tmp_path)
            assert "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stderr, done


@pytest.fixture
def other_fl(tmp_path_factory: pytest.TempPathFactory, fl: Fl) -> tuple[Path, Fl]:
    """The lock of the CPU row's extras in a checkout of its own, and the `fl` of that checkout."""
    checkout, root = tmp_path_factory.mktemp("checkout"), paths.IMAGES.parent
    for name in ("launcher", "trainers", "images/cpu"):
        shutil.copytree(root / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "matrix.yaml", checkout)

    def call(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return fl(*words, env={"PYTHONPATH": f"{checkout / 'launcher'}:{checkout / 'trainers'}"}, **options)

    return checkout / "images" / "cpu" / "locks" / "extras" / "cpu-torch213.linux-amd64.txt", call


def test_a_lock_of_extras_that_is_another_one_by_now(project: Path, other_fl: tuple[Path, Fl]) -> None:
    """Edited, or gone; also for a recipe that asks for none: it may tomorrow."""
    file, call = other_fl
    text = file.read_text(encoding="utf-8")
    assert call(*DRY, "use_galore=true", "finetuning_type=full", cwd=project).returncode == 0
    for edit in (lambda: file.write_text(text.replace("galore-torch==", "galore-torch==9", 1), encoding="utf-8"), file.unlink):
        edit()
        for words in (DRY, (*DRY, "use_galore=true", "finetuning_type=full"), ("pin", "--check")):
            done = call(*words, cwd=project)
            assert done.returncode == 9 and "the lock of extras for linux/amd64: pinned " in done.stderr, (words, done.stderr)
            assert "use what was pinned" in done.stderr and "fl pin cpu-torch213" in done.stderr
    file.write_text(f"{text}# another comment\n", encoding="utf-8")
    proposed = call("pin", "--upgrade", cwd=project)
    assert "another one by now: lock of extras" in proposed.stdout and "accept: fl pin cpu-torch213" in proposed.stdout, proposed
    assert call("pin", "cpu-torch213", cwd=project).returncode == 0
    assert call(*DRY, cwd=project).returncode == 0


def test_a_file_of_an_earlier_fl_pins_no_locks_of_extras(project: Path, fl: Fl) -> None:
    """It holds as it did; what it does not cover is said where that matters, and writing it again adds it."""
    path = project / "fl.lock"
    document = json.loads(path.read_text(encoding="utf-8"))
    entry = document["lanes"]["cpu"]
    del entry["extras"]
    entry["sha256"] = hashlib.sha256(canonical({key: value for key, value in entry.items() if key != "sha256"})).hexdigest()
    path.write_text(json.dumps(document), encoding="utf-8")
    galore = (*DRY, "use_galore=true", "finetuning_type=full")
    lacking = "does not pin the locks of extras"
    assert [lacking in (done := fl(*words, cwd=project)).stdout + done.stderr for words in (DRY, galore)] == [False, True]
    checked = fl("pin", "--check", cwd=project)
    assert checked.returncode == 0 and lacking in checked.stderr and "`fl pin cpu-torch213` adds them" in checked.stderr
    assert fl("pin", "cuda130-torch214", "--unproven", cwd=project).returncode == 0
    assert "extras" not in json.loads(path.read_text(encoding="utf-8"))["lanes"]["cpu"]  # another lane's entry is as it was
    assert "another one by now: lock of extras" in fl("pin", "--upgrade", cwd=project).stdout
    assert fl("pin", "cpu-torch213", cwd=project).returncode == 0
    checked = fl("pin", "--check", cwd=project)
    assert checked.returncode == 0 and lacking not in checked.stderr


def test_a_run_that_asks_for_another_stack_or_image(project: Path, fl: Fl) -> None:
    done = fl(*DRY, "--stack", "cuda130-torch214", cwd=project)
    assert done.returncode == 9 and "this run asks for cuda130-torch214" in done.stderr


def test_an_interpreter_that_is_not_the_locks(project: Path, fl: Fl) -> None:
    done = fl(*DRY, "--python", os.environ.get("PYTHON", "/usr/bin/python3"), cwd=project)
    assert done.returncode == 9 and "the interpreter's packages: " in done.stderr


def test_a_lane_that_is_not_pinned_is_said(project: Path, fl: Fl) -> None:
    document = json.loads((project / "fl.lock").read_text(encoding="utf-8"))
    document["lanes"] = {"cuda": document["lanes"]["cpu"]}
    (project / "fl.lock").write_text(json.dumps(document), encoding="utf-8")
    done = fl(*DRY, cwd=project)
    assert done.returncode == 0 and "pins nothing for the cpu lane" in done.stdout


def test_check_looks_for_the_evidence(project: Path, fl: Fl) -> None:
    for file in (project / "evidence").rglob("*.json"):
        file.unlink()
    done = fl("pin", "--check", cwd=project)
    assert done.returncode == 9 and "the ledger has no such record" in done.stderr
    assert fl("pin", "--check", cwd=project.parent).returncode == 9  # no fl.lock there


def test_an_image_whose_name_an_engine_would_read_as_an_option(project: Path, fl: Fl) -> None:
    """A project that somebody else made brings its fl.lock, and its recipe."""
    entry = pin.make(STACK, pin.today(ROWS, STACK), pin.PinnedImage.model_construct(reference="--privileged"), [])
    (project / "fl.lock").write_text(json.dumps({"schema": 1, "lanes": {"cpu": entry.model_dump()}}), encoding="utf-8")
    done = fl(*DRY, cwd=project)
    assert done.returncode == 9 and "is no reference of an image" in done.stderr
    (project / "fl.lock").unlink()
    for words in (("pin", "cpu-torch213", "--unproven"), ("run", "--hw", "cpu", "--engine", "docker", "--dry-run", "tiny-sft")):
        done = fl(*words, "--image=--privileged", cwd=project)
        assert done.returncode in (2, 6) and "--privileged:" not in done.stdout, done.stderr


def test_a_file_with_an_image_that_a_stranger_left_where_everybody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `/tmp/fl.lock`, found from a project below."""
    path = tmp_path / "fl.lock"
    image = pin.PinnedImage(reference="x:1", id="sha256:1")
    pin.write(path, "cpu", pin.make(STACK, pin.today(ROWS, STACK), image, []))
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(path, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    tmp_path.chmod(0o755)
    assert pin.read(path)
    tmp_path.chmod(0o1777)
    with pytest.raises(EvidenceError, match="belongs to another user"):
        pin.read(path)
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    assert pin.read(path)


def test_other_lanes_stay_as_they_were(project: Path, fl: Fl) -> None:
    assert fl("pin", "cuda130-torch214", "--unproven", cwd=project).returncode == 0
    lanes = pin.read(project / "fl.lock")
    assert list(lanes) == ["cpu", "cuda"] and lanes["cpu"].evidence == [proof()["id"]]


def test_a_disk_that_takes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (project / "fl.lock").read_bytes()

    def full(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pin.json, "dump", full)
    with pytest.raises(EvidenceError, match="No space left"):
        pin.write(project / "fl.lock", "cpu", pin.read(project / "fl.lock")["cpu"])
    assert (project / "fl.lock").read_bytes() == before and len(list(project.iterdir())) == 2


def test_upgrade_proposes_what_was_seen_to_work() -> None:
    cuda = sorted((s for s in ROWS.stacks if s.lane == "cuda" and s.status != "retired"), key=lambda s: s.train["torch"] or "")
    old, new = cuda[0], next(s for s in ROWS.stacks if s.id == "cuda130-torch214")
    entry = pin.make(old, pin.today(ROWS, old), None, [])

    current = now_of(ROWS)
    assert pin_evidence.upgrade("cuda", entry, [], current) is None
    found = pin_evidence.upgrade("cuda", entry, [entry_of(proof(new.id))], current)
    assert found is not None and (found.before, found.after) == (old.id, new.id)
    assert ("torch", old.train["torch"], new.train["torch"]) in found.versions
    there = pin.make(new, pin.today(ROWS, new), None, [])
    assert pin_evidence.upgrade("cuda", there, [entry_of(proof(old.id)), entry_of(proof(new.id))], current) is None
    earlier = there.model_copy(update={"locks": {"linux/amd64": "0" * 64}, "extras": None})
    found = pin_evidence.upgrade("cuda", earlier, [entry_of(proof(new.id))], current)
    assert found is not None and (found.after, found.versions, found.inputs) == (new.id, (), ("lock", "lock of extras"))


def test_upgrade_through_the_command(project: Path, fl: Fl) -> None:
    assert "nothing newer than cpu-torch213" in fl("pin", "--upgrade", cwd=project).stdout
    assert json.loads(fl("pin", "--upgrade", "--json", cwd=project).stdout)["proposals"] == []


def test_a_moved_tag() -> None:
    image = pin.PinnedImage(reference="fl-train:x", digest="sha256:" + "a" * 64)
    entry = pin.make(STACK, pin.today(ROWS, STACK), image, [])
    pinned = pin.Pinned(Path("fl.lock"), "cpu", entry)
    platform = "linux/amd64"

    def used(digest: str) -> pin.Used:
        return pin.Used(engine="docker", platform=platform, lock_sha256=entry.locks[platform], reference="fl-train:x",
                        digest=digest, local=True)  # fmt: skip

    pin.check_used(pinned, used("sha256:" + "a" * 64))
    with pytest.raises(EvidenceError, match=r"fl-train:x: pinned aaaaaaaaaaaa, its tag is now bbbbbbbbbbbb"):
        pin.check_used(pinned, used("sha256:" + "b" * 64))
