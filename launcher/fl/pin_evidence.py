"""What a pin rests on, and what it could be lifted to. Pure: (entries of the ledger, matrix) → records, proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from packaging.version import InvalidVersion, Version

from fl import audit
from fl.ledger_index import Entry as Record
from fl.matrix import Matrix, Stack
from fl.pin import Entry

MOST: Final = 32
"""Records that a pin names: a reviewer reads them."""


def proofs(records: Sequence[Record], now: audit.Now, stack: str) -> list[Record]:
    """The newest proof of each model on a stack, the newest first."""
    by_id = {record.id: record for record in records}
    cells = audit.cells(records, now)
    newest = [by_id[c.evidence[0]] for c in cells if c.stack == stack and c.state == "proven"]
    return sorted({record.id: record for record in newest}.values(), key=lambda record: (record.time, record.id), reverse=True)[:MOST]


def unproven(records: Sequence[Record], now: audit.Now, stack: str) -> str:
    """What the ledger has of a stack instead of a proof; empty: nothing."""
    cells = [cell for cell in audit.cells(records, now) if cell.stack == stack and cell.evidence]
    said = []
    for state in ("stale", "failed"):
        if found := [cell for cell in cells if cell.state == state]:
            said.append(f"{len(found)} models are {state}, such as {found[0].model}: {found[0].why}")
    return "\n".join(said)


def lost(entry: Entry, records: Mapping[str, Record]) -> list[str]:
    """What is wrong with the records that a pin names."""
    found = []
    for name in entry.evidence:
        record = records.get(name)
        if record is None:
            found.append(f"the evidence {name[:12]}: the ledger has no such record, or it does not hold")
        elif record.stack != entry.stack or record.outcome != "passed":
            found.append(f"the evidence {name[:12]}: it {record.outcome} on {record.stack or 'no stack'}")
    return found


@dataclass(frozen=True, slots=True)
class Proposal:
    """A newer stack of the same lane that was seen to work."""

    lane: str
    before: str
    after: str
    versions: tuple[tuple[str, str, str], ...]
    """(distribution, pinned, proposed) where they differ; empty: not there."""
    inputs: tuple[str, ...]
    """Of the same stack: row, lock or lock of extras, where it is another one now."""
    evidence: tuple[Record, ...]


def upgrade(lane: str, entry: Entry, records: Sequence[Record], now: audit.Now) -> Proposal | None:
    """The newest proven stack of a lane, where it is newer than the pinned one, or is the pinned one made of something else by now."""
    rows = [stack for stack in now.matrix.stacks if stack.lane == lane and stack.status != "retired"]
    pinned = next((stack for stack in now.matrix.stacks if stack.id == entry.stack), None)
    for stack in sorted(rows, key=_age, reverse=True):
        if pinned is not None and _age(stack) < _age(pinned):
            return None
        found = proofs(records, now, stack.id)
        changed = versions(entry.versions, now.matrix, stack)
        others = _inputs(entry, now.stacks[stack.id]) if stack.id == entry.stack else ()
        if found and (stack.id != entry.stack or changed or others):
            return Proposal(lane, entry.stack, stack.id, changed, others, tuple(found))
        if stack.id == entry.stack:
            return None
    return None


def _inputs(entry: Entry, now: audit.Inputs) -> tuple[str, ...]:
    """An entry that does not pin the locks of extras gains by being written again only where there are any."""
    found = {
        "row": entry.row_sha256 != now.row_sha256, "lock": set(entry.locks.values()) != now.locks,
        "lock of extras": set((entry.extras or {}).values()) != now.extras,
    }  # fmt: skip
    return tuple(name for name, other in found.items() if other)


def versions(pinned: Mapping[str, str], matrix: Matrix, stack: Stack) -> tuple[tuple[str, str, str], ...]:
    """What would change, by distribution."""
    has = matrix.packages(stack)
    names = sorted(pinned.keys() | has.keys())
    return tuple((name, pinned.get(name, ""), has.get(name, "")) for name in names if pinned.get(name) != has.get(name))


def _age(stack: Stack) -> tuple[Version, Version]:
    """The newer the runtime, then the newer torch."""
    runtime = max((_version(release) for release in stack.runtime.values()), default=Version("0"))
    return runtime, _version(stack.train.get("torch") or "0")


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")
