"""Which model works on which stack, and how we know. Pure: (entries of the ledger, matrix, what is installed here) → cells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from packaging.version import InvalidVersion, Version

from fl.evidence import row_sha256
from fl.ledger_index import Entry
from fl.matrix import Matrix, Stack

State = Literal["proven", "failed", "stale", "declared", "impossible", "unknown"]
ORDER: Final[tuple[State, ...]] = ("proven", "failed", "stale", "declared", "impossible", "unknown")
"""Of a lane the first of these that one of its stacks has."""
_SILENT: Final = frozenset(("Interrupted", "Terminated", "Orphaned", "EngineError", "ImageError"))


@dataclass(frozen=True, slots=True)
class Cell:
    """One model on one stack."""

    model: str
    lane: str
    stack: str
    state: State
    why: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run of a stack would be made of today."""

    locks: frozenset[str]
    """Hashes, one a platform."""
    row_sha256: str
    packages: Mapping[str, str]
    extras: frozenset[str] = frozenset()
    """Hashes of the locks of optional packages, one a platform."""


@dataclass(frozen=True, slots=True)
class Now:
    """What a record's inputs are compared with."""

    matrix: Matrix
    matrix_sha256: str
    trainer_sha256: str
    stacks: Mapping[str, Inputs]
    """Stack id → its inputs."""


def now(
    matrix: Matrix, trainer_sha256: str, locks: Callable[[Stack], frozenset[str]],
    extras: Callable[[Stack], frozenset[str]] = lambda stack: frozenset(),
) -> Now:  # fmt: skip
    """The inputs of every stack of a matrix."""
    stacks = {s.id: Inputs(locks(s), row_sha256(matrix, s), matrix.packages(s), extras(s)) for s in matrix.stacks}
    return Now(matrix, matrix.sha256, trainer_sha256, stacks)


def cells(entries: Sequence[Entry], now: Now, *, models: Mapping[str, Sequence[str]] | None = None) -> list[Cell]:
    """Every model that the ledger or the matrix names, on every stack. models: name → model types; None: all of them."""
    by_place: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        by_place[entry.model, entry.stack].append(entry)
    named = dict(models) if models is not None else _models(entries, now.matrix)
    stacks = now.matrix.stacks
    found = [cell(model, types, stack, by_place.get((model, stack.id), ()), now) for model, types in named.items() for stack in stacks]
    gone = [records for (model, stack), records in by_place.items() if model in named and stack not in now.stacks]
    return found + [_without_row(records) for records in gone]


def told_apart(entries: Sequence[Entry]) -> list[Entry]:
    """Folders of one name that hold different models get the start of their config's hash: a record is no proof of another model."""
    configs: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if "/" not in entry.model and entry.config_sha256:
            configs[entry.model].add(entry.config_sha256)
    several = {name for name, hashes in configs.items() if len(hashes) > 1}
    return [
        entry._replace(model=f"{entry.model} ({entry.config_sha256[:8] or 'config not known'})") if entry.model in several else entry
        for entry in entries
    ]


def _without_row(records: Sequence[Entry]) -> Cell:
    """The evidence of a stack that was taken out of the matrix."""
    newest = max(records, key=lambda entry: entry.time)
    why = f"{newest.outcome} on {newest.time[:10]}; changed since: the matrix has no row {newest.stack or 'of that run'}"
    return Cell(newest.model, newest.lane, newest.stack, "stale", why, tuple(entry.id for entry in records))


def _models(entries: Iterable[Entry], matrix: Matrix) -> dict[str, Sequence[str]]:
    """Models of the ledger first, then the matrix's families."""
    tried: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        tried[entry.model] |= {entry.model_type} if entry.model_type else set()
    return {**{name: sorted(types) for name, types in sorted(tried.items())}, **{name: list(f.types) for name, f in matrix.models.items()}}


def cell(model: str, types: Sequence[str], stack: Stack, records: Sequence[Entry], now: Now) -> Cell:
    """The state of one model on one stack: by its records where there are any, else by metadata. `proven` is never inferred."""

    def made(state: State, why: str, shown: Sequence[Entry] = ()) -> Cell:
        return Cell(model, stack.lane, stack.id, state, why, tuple(entry.id for entry in shown))

    recent = sorted((e for e in records if not silent(e)), key=lambda entry: (entry.time, entry.id), reverse=True)
    within = [entry for entry in recent if entry.matches_lock]
    fresh = [entry for entry in within if not changed(entry, stack, now)]
    if proofs := [entry for place, entry in enumerate(fresh) if entry.outcome == "passed" and not _again(entry, fresh[:place])]:
        others = [entry for entry in fresh if entry not in proofs]
        later = [entry for entry in others if entry.outcome != "passed" and entry.time > proofs[0].time]
        return made("proven", _proof(proofs[0]) + (f"; later with another recipe: {later[0].failure}" if later else ""), proofs + others)
    if fresh:
        newest = fresh[0]
        return made("failed", f"{newest.time[:10]} on {newest.device}: {newest.failure or newest.outcome}", fresh)
    if within:
        newest = within[0]
        return made("stale", f"{newest.outcome} on {newest.time[:10]}; changed since: {', '.join(changed(newest, stack, now))}", within)
    state, why = metadata(types, stack, now.matrix)
    if recent:  # none of them in the environment of the lock
        ran = recent[0]
        why += f"; {ran.outcome} on {ran.time[:10]} on {ran.device} in an environment that is not the lock's"
    return made(state, why, recent)


def silent(entry: Entry) -> bool:
    """Whether a run says nothing of its model: somebody stopped it, or the engine or image failed before."""
    return entry.outcome != "passed" and entry.failure.split(":", 1)[0] in _SILENT


def _again(entry: Entry, newer: Sequence[Entry]) -> bool:
    """Whether the same recipe did not pass when it was run again."""
    return any(other.outcome != "passed" and other.recipe_sha256 == entry.recipe_sha256 for other in newer)


def _proof(entry: Entry) -> str:
    parts = [entry.time[:10], entry.device, f"{entry.stage} {entry.method}".strip()]
    parts += [f"loss {entry.loss:.4g}"] if entry.loss is not None else []
    parts += [entry.digest[:19]] if entry.digest else [entry.engine]
    return ", ".join(part for part in parts if part)


def changed(entry: Entry, stack: Stack, now: Now) -> list[str]:
    """Which inputs of a record are others today. Records without the hash of their row are compared by their versions."""
    inputs = now.stacks[stack.id]
    found = [] if entry.trainer_sha256 == now.trainer_sha256 else ["trainer"]
    found += [] if entry.lock_sha256 in inputs.locks else ["lock"]
    found += [] if inputs.extras.issuperset(entry.extras.split()) else ["lock of its extras"]
    if entry.row_sha256 == inputs.row_sha256 or entry.matrix_sha256 == now.matrix_sha256:
        return found
    had, pins = _versions(entry.versions), inputs.packages
    other = [f"{name} {version} → {pins[name]}" for name, version in had if name in pins and not _same(version, pins[name])]
    return found + (other or (["matrix row"] if entry.row_sha256 else []))


@lru_cache
def _versions(text: str) -> list[tuple[str, str]]:
    """Thousands of records name the same few sets."""
    return sorted(dict(pair.split("==", 1) for pair in text.split() if "==" in pair).items())


def _same(had: str, pinned: str) -> bool:
    """A local label that the row does not name (`+cpu`) makes no other version."""
    return had == pinned or had.split("+", 1)[0] == pinned


def metadata(types: Sequence[str], stack: Stack, matrix: Matrix) -> tuple[State, str]:
    """What the matrix says of model types on a stack; of several types the best."""
    verdicts = [_by_type(name, stack, matrix) for name in types]
    if not verdicts:
        return "unknown", "its model type is not known"
    return min(verdicts, key=lambda verdict: ORDER.index(verdict[0]))


def _by_type(name: str, stack: Stack, matrix: Matrix) -> tuple[State, str]:
    known, has = matrix.model_type(name), matrix.packages(stack).get("transformers")
    if known is None or has is None:
        return "unknown", f"the matrix does not know the model type {name}" if known is None else "the row names no transformers"
    if known.transformers is None:
        return "unknown", f"no transformers knows {name} by itself: it runs only with the model's own code"
    try:
        enough = _version(has) >= _version(known.transformers)
    except InvalidVersion:
        return "unknown", f"transformers {known.transformers} is no version"
    if enough:
        return "declared", f"{name} is in transformers since {known.transformers}, this stack has {has}"
    return "impossible", f"{name} is first in transformers {known.transformers}, this stack has {has}"


_version: Final = lru_cache(Version)


def lanes(found: Sequence[Cell]) -> dict[str, dict[str, Cell]]:
    """model → lane → the cell of its best stack."""
    best: dict[str, dict[str, Cell]] = {}
    for one in found:
        row = best.setdefault(one.model, {})
        if one.lane not in row or ORDER.index(one.state) < ORDER.index(row[one.lane].state):
            row[one.lane] = one
    return best


def difference(before: Sequence[Cell], after: Sequence[Cell]) -> list[tuple[Cell | None, Cell | None]]:
    """The cells whose state is another, or that only one side has."""
    left, right = ({(one.model, one.stack): one for one in side} for side in (before, after))
    keys = [*left, *(key for key in right if key not in left)]
    pairs = [(left.get(key), right.get(key)) for key in keys]
    return [(one, other) for one, other in pairs if (one and one.state) != (other and other.state)]


@dataclass(frozen=True, slots=True)
class Need:
    """What runs on a stack would win."""

    stack: Stack
    declared: int
    """Cells that only metadata speaks for."""
    again: int
    """Cells that are stale or failed."""
    proves: int
    """Models of `fl conform` that are not proven there: what its run would turn into proven."""
    types: tuple[tuple[str, int], ...]
    """Model types with the families that they are declared for, the widest first."""


def needs(found: Sequence[Cell], matrix: Matrix, conforming: Set[str]) -> list[Need]:
    """What to run next: stacks whose evidence went stale or failed first, then those that are chosen most and have the most to win; where
    `fl conform` (its models: `conforming`) would prove nothing more, last."""
    wins = []
    for stack in matrix.stacks:
        of_stack = [one for one in found if one.stack == stack.id]
        declared = [one for one in of_stack if one.state == "declared"]
        types = Counter(name for one in declared for name in (matrix.models[one.model].types if one.model in matrix.models else ()))
        again = sum(one.state in ("stale", "failed") for one in of_stack)
        proves = len(conforming - {one.model for one in of_stack if one.state == "proven"})
        wins.append(Need(stack, len(declared), again, proves, tuple(types.most_common(3))))
    rank = {"stable": 0, "lts": 1, "edge": 2, "retired": 3}
    return sorted(wins, key=lambda win: (-win.again, not win.proves, rank[win.stack.status], -win.proves, -win.declared))
