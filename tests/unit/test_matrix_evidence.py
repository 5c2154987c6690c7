"""`fl matrix check --evidence`: what rows claim beside what the ledger shows; and the pages that tell it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledger_records import record

from fl import audit, conform_set, ledger, ledger_index, matrix, matrix_evidence, paths, stacks_page, wheel
from fl.evidence import row_sha256
from fl.images import lock
from fl.ledger_index import entry_of

Fl = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[2]
ROWS = matrix.load()
CPU = ROWS.stack("cpu-torch213")
DECLARED = [case for case in conform_set.CASES if conform_set.declared(case, CPU) is True]
LOCK = lock.sha256(lock.path("cpu-torch213", "train", "linux/amd64") or Path())


def of(case: conform_set.Case, engine: str = "host", **more: Any) -> dict[str, Any]:
    environment = {"lock_sha256": LOCK, "engine": engine, "matches_lock": more.pop("matches_lock", True)}
    return record(
        recipe_sha256=hashlib.sha256(case.recipe()).hexdigest(), trainer_sha256=more.pop("trainer", wheel.code_sha256()),
        row_sha256=row_sha256(ROWS, CPU), environment=environment, **more,
    )  # fmt: skip


def found(*records: dict[str, Any]) -> list[str]:
    now = audit.now(ROWS, wheel.code_sha256(), lambda stack: frozenset({LOCK}) if stack.id == CPU.id else frozenset())
    return [one.message for one in matrix_evidence.findings(ROWS, [entry_of(r) for r in records], now) if one.stack == CPU.id]


ALL = [of(case) for case in DECLARED]
BOXED = of(DECLARED[0], "docker")


def test_a_row_that_the_ledger_shows() -> None:
    assert found(*ALL, BOXED) == []
    absent = of(DECLARED[0], outcome="refused", failure={"type": "EngineError", "message": "no network"}, time="2026-11-26T00:00:00Z")
    assert found(*ALL, absent, BOXED) == []  # of the engine, not of the row
    older = [of(case, trainer="t" * 64) for case in DECLARED]
    assert found(*older, of(DECLARED[0], "podman", trainer="t" * 64)) == []


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], f"{len(DECLARED)} of {len(DECLARED)} cases that it claims did not pass"),
        ([*ALL[1:], BOXED, of(DECLARED[0], outcome="failed", time="2026-11-25T00:00:00Z")], "(failed)"),
        ([*ALL[1:], of(DECLARED[1], "docker")], f"{DECLARED[0].name} (not run)"),
        (ALL, "nothing was seen to train in its image"),
        ([of(case, matches_lock=False) for case in DECLARED], f"{len(DECLARED)} of {len(DECLARED)} cases"),
        ([*ALL, of(DECLARED[0], "docker", outcome="failed")], f"{DECLARED[0].name} (failed)"),
    ],
)
def test_claims_that_it_does_not_show(records: list[dict[str, Any]], message: str) -> None:
    assert any(message in said for said in found(*records)), found(*records)


def test_another_lock_or_row_shows_nothing() -> None:
    other = [record(**{**one, "environment": {**one["environment"], "lock_sha256": "x" * 64}}) for one in [*ALL, BOXED]]
    assert len(found(*other)) == 2


def test_the_command(fl: Fl, tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    empty = fl("matrix", "check", "--evidence", cwd=tmp_path)
    assert empty.returncode == 9 and "cpu-torch213: is stable, and" in empty.stderr and "fl conform --stack cpu-torch213" in empty.stderr
    for one in [*ALL, BOXED]:
        ledger.add(tmp_path / "evidence", one)
    full = fl("matrix", "check", "--evidence", cwd=tmp_path)
    assert full.returncode == 0 and "the ledger shows what it claims" in full.stdout, full.stderr
    assert fl("matrix", "check", "--evidence", "--ledger", str(tmp_path / "none")).returncode == 9


def test_this_project_claims_what_its_ledger_shows(fl: Fl) -> None:
    """A row, a lock or the set changed: `fl conform` on host and docker, and commit its records."""
    done = fl("matrix", "check", "--evidence", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert ledger.verify(paths.EVIDENCE)[1] == []


def test_the_table_of_the_readme_is_current() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("<!-- stacks: fl matrix list --md --brief -->\n")[1].split("<!-- /stacks -->")[0]
    assert block.strip() == stacks_page.brief(ROWS, ledger_index.entries(paths.EVIDENCE))
