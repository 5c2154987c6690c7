"""Does the ledger show what the rows claim? Pure: (matrix, entries of the ledger, inputs of today) → findings.

A record speaks for a row as long as row and lock are those that it ran with. The trainer may be a newer one: its tests are in this
project, and a row claims nothing of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fl import audit, conform_set
from fl.choose_engine import CONTAINERS
from fl.conform_set import Case
from fl.ledger_index import Entry
from fl.matrix import Matrix, Stack


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim that nothing in the ledger shows, and what would show it."""

    stack: str
    message: str
    remedy: str


def findings(matrix: Matrix, entries: Sequence[Entry], now: audit.Now) -> list[Finding]:
    """stable: every case of `fl conform` that the row claims passed, and one of them in its image. The other statuses claim no run;
    what `verified` rests on stands in the row's sources."""
    found: list[Finding] = []
    for stack in matrix.stacks:
        own = [e for e in entries if e.stack == stack.id and e.matches_lock and set(audit.changed(e, stack, now)) <= {"trainer"}]
        if stack.status == "stable":
            found += _stable(stack, own)
    return found


def _stable(stack: Stack, own: Sequence[Entry]) -> list[Finding]:
    found = []
    wanted = [case for case in conform_set.CASES if conform_set.declared(case, stack) is True]
    open_ = [(case, state) for case in wanted if (state := _state(case, own)) != "passed"]
    if open_:
        shown = ", ".join(f"{case.name} ({state})" for case, state in open_[:5]) + (f" and {len(open_) - 5} more" if len(open_) > 5 else "")
        claim = f"is stable, and {len(open_)} of {len(wanted)} cases that it claims did not pass: {shown}"
        found.append(Finding(stack.id, claim, f"fl conform --stack {stack.id}"))
    if not any(entry.outcome == "passed" and entry.engine in CONTAINERS for entry in own):
        claim = "is stable, and nothing was seen to train in its image"
        found.append(Finding(stack.id, claim, f"fl images build {stack.id}; fl conform --stack {stack.id} --engine docker"))
    return found


def _state(case: Case, own: Sequence[Entry]) -> str:
    """What the newest run of a case came to on each engine; the worst of them."""
    digest = hashlib.sha256(case.recipe()).hexdigest()
    newest: dict[str, Entry] = {}
    for entry in sorted((e for e in own if e.recipe_sha256 == digest and not audit.silent(e)), key=lambda e: (e.time, e.id)):
        newest[entry.engine] = entry
    outcomes = {entry.outcome for entry in newest.values()}
    if not outcomes:
        return "not run"
    return "passed" if outcomes == {"passed"} else next(outcome for outcome in ("failed", "refused") if outcome in outcomes)
