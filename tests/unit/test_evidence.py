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
def test_half_a_record_of_the_trainer_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    assert evidence.read_trainer(tmp_path) == {}


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"metrics": {"loss": [1.0, NaN, Infinity]}}')
    assert evidence.read_trainer(tmp_path) == {"metrics": {"loss": [1.0, None, None]}}
