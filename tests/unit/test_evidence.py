"""evidence.py: the id is the hash of the rest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fl import evidence


def test_the_id_is_the_hash_of_the_canonical_rest() -> None:
    record = evidence.identified({"schema": 1, "b": [1.5, None], "a": "ü"})
    rest = {key: value for key, value in record.items() if key != "id"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert record["id"] == hashlib.sha256(text.encode()).hexdigest()
    assert evidence.identified(record) == record


def test_any_change_changes_the_id() -> None:
    one, two = evidence.identified({"schema": 1, "loss": [1.0]}), evidence.identified({"schema": 1, "loss": [1.0000001]})
    assert one["id"] != two["id"]


def test_what_is_no_number_is_no_evidence() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        evidence.identified({"schema": 1, "loss": [float("nan")]})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_broken_files_leave_their_fields_null(tmp_path: Path, text: str) -> None:
    for name in ("plan.json", "config.json", "hardware.json", "record.json"):
        (tmp_path / name).write_text(text)
    record = evidence.of_run(tmp_path, "failed", {"type": "Orphaned", "message": "x"})
    assert record["outcome"] == "failed"
    assert record["model"]["name"] is None
    assert record["environment"]["matches_lock"] is False
    assert record["metrics"]["loss"] == []


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"metrics": {"loss": [1.0, NaN, Infinity]}}')
    assert evidence.of_run(tmp_path, "failed", None)["metrics"] == {"loss": [1.0, None, None]}


def test_devices_and_driver_are_those_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"lane": "cuda", "accelerators": [1]}))
    devices = [{"lane": "cuda", "index": n, "name": f"GPU {n}", "arch": "sm_90"} for n in (0, 1)]
    hardware = {"accelerators": devices, "drivers": {"amdgpu": {"version": "6"}, "nvidia": {"version": "580.1"}}}
    (tmp_path / "hardware.json").write_text(json.dumps(hardware))
    accelerator = evidence.of_run(tmp_path, "passed", None)["accelerator"]
    assert (accelerator["name"], accelerator["count"], accelerator["driver"]) == ("GPU 1", 1, "580.1")
