"""images/built.py: records of images, and the table of docs/images.md that is made from them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import ROOT

from fl import matrix
from fl.errors import ImageError, MatrixError
from fl.images import built, lock
from fl.images.verify import Check, Report

ROWS = matrix.load()
KEY = ("cpu-torch213", "train", "linux/amd64")
BASE = ROWS.stack("cpu-torch213").base.image


def report(size: int = 1_500_000_000, **changed: object) -> Report:
    """What `fl images verify` found of an image that is right."""
    file = lock.path(*KEY)
    assert file is not None
    found = Report(
        reference="fl-train:cpu-torch213", stack=KEY[0], flavor=KEY[1], platform=KEY[2], id="sha256:" + "a" * 64, digest=None,
        lock_sha256=lock.sha256(file), time="2026-11-29T01:00:00Z", checks=(Check(name="lock", passed=True),),
        sizes=({"kind": "image", "what": "fl-train:cpu-torch213", "bytes": size},),
    )  # fmt: skip
    return replace(found, **changed)  # type: ignore[arg-type]


def line(records: dict[built.Key, built.Built]) -> list[str]:
    """The cells of one image."""
    rows = [row for row in built.page(ROWS, records).splitlines() if "`fl-train:cpu-torch213-" in row]
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


def test_a_record_is_what_the_page_tells(tmp_path: Path) -> None:
    file = built.write(tmp_path, report(), "0.1.0", BASE)
    assert file.name == "cpu-torch213.train.linux-amd64.json"
    (one,) = built.read(tmp_path).values()
    assert (one.key, one.size, one.digest, one.packages["torch"]) == (KEY, 1_500_000_000, None, "2.13.0+cpu")
    assert line(built.read(tmp_path))[-3:] == ["not pushed", "1.50 GB (2026-11-29)", "first record"]
    assert line({})[-3:] == ["unknown"] * 3
    built.write(tmp_path, report(), "0.1.0", "mine:1")
    assert line(built.read(tmp_path))[-2] == "1.50 GB (2026-11-29, on another base: mine:1)"


def test_what_was_pushed_has_a_digest(tmp_path: Path) -> None:
    built.write(tmp_path, report(), "0.1.0", BASE)
    built.add_digest(tmp_path, KEY, "sha256:" + "a" * 64, "sha256:" + "d" * 64, 590_000_000)
    told = ["`sha256:dddddddddddd`", "1.50 GB, download 0.59 GB (2026-11-29)"]
    assert line(built.read(tmp_path))[-3:-1] == told
    built.write(tmp_path, report(), "0.1.0", BASE)
    assert line(built.read(tmp_path))[-3:-1] == told, "the same image, looked at again"
    built.write(tmp_path, report(id="sha256:" + "e" * 64), "0.1.0", BASE)
    assert line(built.read(tmp_path))[-3] == "not pushed"
    with pytest.raises(ImageError, match="has no record of this image"):
        built.add_digest(tmp_path, KEY, "sha256:" + "a" * 64, "sha256:" + "d" * 64, 1)


def test_what_changed_is_told_from_the_record_before(tmp_path: Path) -> None:
    file = built.write(tmp_path, report(), "0.1.0", BASE)
    old = json.loads(file.read_text())
    old.update(lock_sha256="b" * 64, packages={**old["packages"], "torch": "2.12.0+cpu", "gone": "1.0"})
    file.write_text(json.dumps(old))
    assert line(built.read(tmp_path))[-2] == "1.50 GB (2026-11-29, with lock `bbbbbbbbbbbb`)", "a record of another lock says so"
    built.write(tmp_path, report(size=1_600_000_000), "0.2.0", BASE)
    told = line(built.read(tmp_path))[-1]
    assert told == "gone 1.0 → none, torch 2.12.0+cpu → 2.13.0+cpu, +100 MB"
    built.write(tmp_path, report(size=1_700_000_000), "0.2.0", BASE)
    assert line(built.read(tmp_path))[-1] == told, "the same lock again: what it changed stays"


def test_an_image_that_is_wrong_is_not_recorded(tmp_path: Path) -> None:
    wrong = report(checks=(Check(name="versions", passed=False, found=("torch is 1",)),))
    with pytest.raises(ImageError, match="is not recorded"):
        built.write(tmp_path, wrong, "0.1.0", BASE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "other": 2}'])
def test_a_record_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(MatrixError, match=r"x\.json is no record of an image"):
        built.read(tmp_path)


def test_the_table_of_docs_images_is_current(fl: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`make generated` writes it."""
    text = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    block = text.split("<!-- images: fl images list --md -->\n")[1].split("<!-- /images -->")[0]
    told = fl("images", "list", "--md", cwd=ROOT).stdout
    assert block.strip() == told.strip(), "make generated"
    for stack in ROWS.stacks:
        assert f":{stack.id}-" in block
