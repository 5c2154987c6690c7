"""The ledger: whole or absent records, faults by name, and an index that is never trusted over them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ledger_records import record

from fl import audit_sign, ledger, ledger_index
from fl.errors import EvidenceError
from fl.evidence import identified


def test_a_record_lies_by_lane_and_month_and_comes_back(tmp_path: Path) -> None:
    made = record()
    path = ledger.add(tmp_path, made)
    assert path == tmp_path / "cpu" / "2026-11" / f"{made['id']}.json"
    assert list(ledger.read(tmp_path)) == [made]
    assert ledger.verify(tmp_path) == (1, [])
    assert ledger.add(tmp_path, made) == path


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda p: _edit(p, lambda r: r["metrics"].update(loss=[0.1])), "was changed"),
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "truncated"),
        (lambda p: p.write_text(""), "truncated"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "no JSON"),
        (lambda p: p.write_text("[" * 100_000), "no JSON"),
        (lambda p: p.write_text(p.read_text().replace("1.5", "NaN")), "no number"),
        (lambda p: _edit(p, lambda r: r.update(schema=2)), "newer fl"),
        (lambda p: _edit(p, lambda r: r.pop("lane")), "no lane"),
        (lambda p: _edit(p, lambda r: r.update(lane="../..")), "lane"),
        (lambda p: p.rename(p.with_name("0" * 64 + ".json")), "another name"),
        (lambda p: os.truncate(p, 2**30), "larger than"),
        (lambda p: p.write_text(p.read_text().replace("1.5", "1e999")), "numbers that are none"),
        (lambda p: _edit(p, lambda r: r.update(time="../../../x")), "time that no run"),
        (lambda p: _edit(p, lambda r: r.update(time="2026-99-99T99:99:99Z")), "time that no run"),
        (lambda p: _edit(p, lambda r: r.update(lane="signatures")), "lane"),
        (lambda p: p.write_text('{"outcome": "failed", ' + p.read_text()[1:]), "stands twice"),
        (lambda p: p.write_text(p.read_text().replace("acme/one", "acme/\\ud800")), "no Unicode"),
        (lambda p: (p.unlink(), os.mkfifo(p)), "is no file"),
        (lambda p: (p.rename(p.with_suffix(".old")), p.symlink_to(p.with_suffix(".old"))), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_name_and_the_others_still_count(tmp_path: Path, break_it: Any, words: str) -> None:
    ledger.add(tmp_path, record(outcome="failed"))
    break_it(ledger.add(tmp_path, record()))
    good, (fault,) = ledger.verify(tmp_path)
    assert good == 1
    assert words in fault.message
    if "another name" not in words:
        assert [entry.outcome for entry in ledger_index.entries(tmp_path, tmp_path / "cache")] == ["failed"]


def test_a_copy_in_another_month_is_a_second_one(tmp_path: Path) -> None:
    path = ledger.add(tmp_path, record())
    other = tmp_path / "cpu" / "2026-12" / path.name
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    good, (fault,) = ledger.verify(tmp_path)
    assert good == 1
    assert "second copy" in fault.message


def test_a_broken_record_is_not_added(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="was changed"):
        ledger.add(tmp_path, {**record(), "outcome": "failed"})
    with pytest.raises(EvidenceError, match="numbers that are none"):
        ledger.add(tmp_path, {**record(), "metrics": {"loss": [float("nan")]}})
    assert list(tmp_path.rglob("*.json")) == []


def test_a_record_cannot_lead_out_of_the_ledger(tmp_path: Path) -> None:
    for parts in ({"time": "../../x-2026"}, {"lane": "../cpu"}):
        with pytest.raises(EvidenceError, match="no run writes"):
            ledger.add(tmp_path / "ledger", record(**parts))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_in_the_place_of_a_record_is_told_and_kept(tmp_path: Path) -> None:
    path = ledger.add(tmp_path, record())
    path.write_text("{")
    with pytest.raises(EvidenceError, match="not written over"):
        ledger.add(tmp_path, record())
    assert path.read_text() == "{"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EvidenceError, match="No space left"):
        ledger.add(tmp_path, record())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_ledger_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text("a file where a folder should be")
    with pytest.raises(EvidenceError, match="takes no record"):
        ledger.add(tmp_path, record())


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    made = [record(time=f"2026-11-24T15:00:{number:02d}Z") for number in range(20)]
    threads = [threading.Thread(target=lambda: [ledger.add(tmp_path, one) for one in made]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.verify(tmp_path) == (20, [])
    assert not list(tmp_path.rglob("*.part"))


def test_the_index_follows_the_files(tmp_path: Path) -> None:
    place, cache = tmp_path / "ledger", tmp_path / "cache"
    path = ledger.add(place, record())
    (first,) = ledger_index.entries(place, cache)
    assert (first.model, first.loss, first.matches_lock) == ("acme/one", 1.5, True)
    other = record(model={"name": "acme/two"}, environment={"matches_lock": False})
    ledger.add(place, other)
    assert {e.model: e.matches_lock for e in ledger_index.entries(place, cache)} == {"acme/one": True, "acme/two": False}
    path.unlink()
    assert [e.model for e in ledger_index.entries(place, cache)] == ["acme/two"]


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b"not a database, by far"), lambda f: os.truncate(f, 3000)])
def test_a_broken_index_is_made_anew(tmp_path: Path, damage: Any) -> None:
    place, cache = tmp_path / "ledger", tmp_path / "cache"
    ledger.add(place, record())
    ledger_index.entries(place, cache)
    (file,) = cache.glob("*.sqlite3")
    damage(file)
    assert len(ledger_index.entries(place, cache)) == 1


def test_a_row_of_the_index_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    place, cache = tmp_path / "ledger", tmp_path / "cache"
    ledger.add(place, record(outcome="failed"))
    ledger_index.entries(place, cache)
    (file,) = cache.glob("*.sqlite3")
    with sqlite3.connect(file) as base:
        base.execute("UPDATE record SET outcome = 'passed'")
    assert [entry.outcome for entry in ledger_index.entries(place, cache)] == ["failed"]


def test_files_that_hold_no_record_are_counted_with_and_without_an_index(tmp_path: Path) -> None:
    place = tmp_path / "ledger"
    ledger.add(place, record())
    ledger.add(place, record(outcome="failed")).write_text("{")
    (tmp_path / "file").write_text("no folder for an index")
    for cache in (tmp_path / "cache", tmp_path / "cache", tmp_path / "file"):
        entries, broken = ledger_index.read(place, cache)
        assert (len(entries), broken) == (1, 1)


def test_a_broken_index_that_cannot_be_removed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that was made read-only after it had filled up."""
    place, cache = tmp_path / "ledger", tmp_path / "cache"
    ledger.add(place, record())
    ledger_index.entries(place, cache)
    (file,) = cache.glob("*.sqlite3")
    file.write_bytes(b"not a database, by far")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert len(ledger_index.entries(place, cache)) == 1


@pytest.mark.parametrize("odd", [10**400, True, "x", None, [1]])
def test_a_loss_that_no_run_writes_is_none(tmp_path: Path, odd: Any) -> None:
    ledger.add(tmp_path / "ledger", identified({**record(), "metrics": {"loss": [odd]}}))
    for _ in range(2):
        assert [entry.loss for entry in ledger_index.entries(tmp_path / "ledger", tmp_path / "cache")] == [None]


def test_a_record_where_none_is_looked_for_is_told(tmp_path: Path) -> None:
    path = ledger.add(tmp_path, record())
    for other in (tmp_path / "a.json", tmp_path / "cpu" / "b.json", path.parent / "deep" / "c.json"):
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(path.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "cpu")
    good, faults = ledger.verify(tmp_path)
    assert (good, {fault.path.name for fault in faults}) == (1, {"a.json", "b.json", "c.json", "link"})


def test_new_records_go_where_records_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "fl").mkdir()
    assert ledger.target(tmp_path) == tmp_path / "evidence"
    (tmp_path / "fl" / "config.yaml").write_text(f"ledger: {tmp_path}/site\n")
    assert ledger.target(tmp_path) == tmp_path / "site"
    (tmp_path / "evidence").mkdir()
    assert ledger.target(tmp_path) == tmp_path / "evidence"


def test_no_place_for_an_index_is_no_reason_not_to_answer(tmp_path: Path) -> None:
    ledger.add(tmp_path / "ledger", record())
    (tmp_path / "cache").write_text("a file")
    assert len(ledger_index.entries(tmp_path / "ledger", tmp_path / "cache")) == 1


def test_fields_of_odd_kinds_become_empty(tmp_path: Path) -> None:
    odd = identified({**record(), "failure": "text", "accelerator": None, "metrics": {"loss": "none"}, "image": 3})
    ledger.add(tmp_path / "ledger", odd)
    (entry,) = ledger_index.entries(tmp_path / "ledger", tmp_path / "cache")
    assert (entry.device, entry.loss, entry.failure, entry.digest) == ("", None, "", "")


def test_signatures_say_who_vouches(tmp_path: Path) -> None:
    if subprocess.run(["ssh-keygen", "-?"], capture_output=True, check=False).returncode == 127:
        pytest.skip("no ssh-keygen")
    fl = [sys.executable, "-m", "fl", "audit", "--ledger", str(tmp_path / "ledger")]
    path = ledger.add(tmp_path / "ledger", record())
    for name in ("ops", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name], check=True)
    (tmp_path / "signers").write_text("ops@example.org " + (tmp_path / "ops.pub").read_text())

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*fl, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)

    unsigned = run("verify", "--signers", str(tmp_path / "signers"))
    assert (unsigned.returncode, "signed by nobody" in unsigned.stderr) == (9, True)
    assert run("sign", "--key", str(tmp_path / "ops")).returncode == 0
    good = run("verify", "--signers", str(tmp_path / "signers"))
    assert (good.returncode, "1 signed by ops@example.org" in good.stdout) == (0, True), good.stderr
    again = run("sign", "--key", str(tmp_path / "ops"))
    assert (again.returncode, "signed already" in again.stderr) == (9, True)
    (ids,) = (tmp_path / "ledger" / "signatures").glob("*.ids")
    ids.write_text(ids.read_text() + "0" * 64 + "\n")
    changed = run("verify", "--signers", str(tmp_path / "signers"))
    assert (changed.returncode, "was changed after" in changed.stderr) == (9, True), changed.stderr
    ids.with_name(ids.name + ".sig").unlink()  # as when it was cut off: the list counts for nothing, and its records are signed anew
    ids.write_bytes(b"\xff")
    assert run("sign", "--key", str(tmp_path / "ops")).returncode == 0
    for file in (tmp_path / "ledger" / "signatures").iterdir():
        file.unlink()
    (tmp_path / "other").write_text('ops@example.org namespaces="git" ' + (tmp_path / "ops.pub").read_text())
    assert run("sign", "--key", str(tmp_path / "ops")).returncode == 0
    elsewhere = run("verify", "--signers", str(tmp_path / "other"))
    assert (elsewhere.returncode, "may not sign evidence" in elsewhere.stderr) == (9, True), elsewhere.stderr
    for file in (tmp_path / "ledger" / "signatures").iterdir():
        file.unlink()
    assert run("sign", "--key", str(tmp_path / "stranger")).returncode == 0
    foreign = run("verify", "--signers", str(tmp_path / "signers"))
    assert (foreign.returncode, "a key that is not in" in foreign.stderr) == (9, True)
    assert path.is_file()
    assert run("sign", "--key", str(tmp_path / "ops")).returncode == 0  # what a stranger signed first keeps nobody from it
    assert run("sign", "--key", str(tmp_path / "ops")).returncode == 9
    both = run("verify", "--signers", str(tmp_path / "signers"))
    assert (both.returncode, "1 signed by ops@example.org" in both.stdout) == (0, True), both.stderr
    (strange,) = (f for f in (tmp_path / "ledger" / "signatures").glob("*.ids") if f.name not in _signed_by_ops(tmp_path))
    strange.write_text("0" * 64 + "\n")
    assert "was changed after it was signed" in run("verify", "--signers", str(tmp_path / "signers")).stderr


def _signed_by_ops(place: Path) -> set[str]:
    good, _ = audit_sign.signed(place / "ledger", place / "signers")
    return {one.file.name for one in good}
