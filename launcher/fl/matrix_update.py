"""Newer versions for rows: looked for by the resolver, held to the matrix's rules, locked again. Only `write` writes.

A version moves within its major release, torch within the minor one that the row's id names. What a resolver cannot read without
building (`lock.SOURCE_ONLY`) stays. A version that a rule of the matrix forbids is left out and the next lower one is looked for.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from packaging.version import Version

from fl import audit, matrix_edit, matrix_rules, paths, whole
from fl.errors import MatrixError
from fl.images import lock, lock_resolve, render
from fl.matrix import Flavor, Matrix, Stack, parse
from fl.matrix_check import check
from fl.matrix_form import Location

_BY_MINOR: Final = frozenset({"torch", "torch-npu"})
"""A row is for one minor release of these: another one is another row. A serving engine brings the torch that it wants."""
_ROUNDS: Final = 12
_DAY: Final = 86400

Resolve = Callable[[Stack, Flavor, Mapping[str, str], str], Mapping[str, str]]
"""(row, flavor, distribution → what follows `==`, platform) → distribution → version. MatrixError with the resolver's reason."""
Lock = Callable[[Matrix, Stack, Flavor, str, str | None], str]
"""(matrix, row, flavor, platform, lock of before) → text of the lock."""


@dataclass(frozen=True, slots=True)
class Change:
    """One pin: `name` in the row, or in its layer."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Held:
    """A newer version that is there and was not taken."""

    name: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class LockChange:
    """What becomes of one lock. `before` is None where there was none."""

    stack: Stack
    flavor: Flavor
    platform: str
    before: str | None
    after: str

    @property
    def difference(self) -> list[Change]:
        """Packages whose version is another; an empty text where there is none."""
        old, new = lock.parse(self.before or ""), lock.parse(self.after)
        return [Change(n, old.get(n, ""), new.get(n, "")) for n in sorted(old | new) if old.get(n) != new.get(n)]


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A platform that the indexes of this machine cannot resolve, and why."""

    stack: str
    flavor: Flavor
    platform: str
    reason: str

    def __str__(self) -> str:
        return f"{self.stack}, {self.flavor}, {self.platform}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What an update would do to a row, or to a layer and all its rows."""

    title: str
    changes: tuple[Change, ...] = ()
    held: tuple[Held, ...] = ()
    locks: tuple[LockChange, ...] = ()
    unlocked: tuple[Unlocked, ...] = ()
    refused: str | None = None
    edits: Mapping[Location, str] = field(default_factory=dict)
    before: Matrix
    after: Matrix

    @property
    def rows(self) -> tuple[tuple[Stack, Stack], ...]:
        """Rows whose packages change, as they were and as they would be."""
        pairs = ((old, self.after.stack(old.id)) for old in self.before.stacks)
        return tuple((o, n) for o, n in pairs if o != n or self.before.packages(o) != self.after.packages(n))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is looked at: pins of one table of the matrix, and the rows that they are for."""

    title: str
    rows: tuple[Stack, ...]
    flavor: Flavor
    table: Location
    pins: Mapping[str, str]


def of_row(matrix: Matrix, stack: Stack, flavor: Flavor, resolve: Resolve, make: Lock) -> Proposal:
    """Newer versions of the packages that a row pins itself for a flavor."""
    fixed = {*lock.SOURCE_ONLY, *(("torch", "triton") if stack.torch_from == "base" else ())}
    table = stack.train if flavor == "train" else {} if stack.serve_base is not None else stack.serve
    own = {name: version for name, version in table.items() if version is not None and name not in fixed}
    place: Location = ("stacks", matrix.stacks.index(stack), flavor)
    title = stack.id if flavor == "train" else f"{stack.id}, {flavor}"
    return _propose(matrix, Scope(title=title, rows=(stack,), flavor=flavor, table=place, pins=own), resolve, make)


def of_layer(matrix: Matrix, name: str, resolve: Resolve, make: Lock) -> Proposal:
    """Newer versions of the libraries that rows share: what every row of the layer can have. Every row is locked again."""
    if name not in matrix.layers:
        near = difflib.get_close_matches(name, list(matrix.layers), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise MatrixError(f"no layer is called '{name}'.{hint}", f"known layers: {', '.join(matrix.layers)}")
    rows = tuple(s for s in matrix.stacks if s.layer == name and s.status != "retired")
    scope = Scope(title=f"layer {name}", rows=rows, flavor="train", table=("layers", name), pins=matrix.layers[name])
    return _propose(matrix, scope, resolve, make)


def _propose(matrix: Matrix, scope: Scope, resolve: Resolve, make: Lock) -> Proposal:
    excluded: dict[str, set[str]] = {}
    held: list[Held] = []
    unreached: dict[tuple[str, str], Unlocked] = {}

    def refused(reason: str) -> Proposal:
        return Proposal(title=scope.title, refused=reason, held=tuple(held), before=matrix, after=matrix)

    for _ in range(_ROUNDS):
        try:
            found = _newest(matrix, scope, excluded, unreached, resolve)
        except MatrixError as error:
            return refused(error.message)
        changed = {name: version for name, version in found.items() if version != scope.pins[name]}
        wrong = _forbidden(matrix, scope.table, changed)
        if not wrong:
            try:
                return _locked(matrix, scope, changed, held, list(unreached.values()), make)
            except MatrixError as error:
                return refused(error.message)
        for name, version, reason in wrong:
            excluded.setdefault(name, set()).update([f"!={version}", *_clauses(matrix, scope, name)])
            held.append(Held(name, version, reason))
    return refused(f"no versions that the rules allow in {_ROUNDS} tries")


def loosened(
    pins: Mapping[str, str], loose: Iterable[str], excluded: Mapping[str, Iterable[str]], flavor: Flavor = "train"
) -> dict[str, str]:
    """What follows `==` for the resolver: a prefix of the release, not older than now, and the clauses of `excluded`. Pure."""
    wanted = dict(pins)
    for name in loose:
        version = Version(pins[name])
        kept = version.release[: 2 if name in _BY_MINOR and flavor == "train" else 1]
        prefix = ".".join(str(part) for part in kept) + ".*"
        wanted[name] = ",".join([prefix, f">={version.public}", *sorted(excluded.get(name, ()))])
    return wanted


def _clauses(matrix: Matrix, scope: Scope, name: str) -> set[str]:
    """What the rules ask of a package as the rows are now: so that a whole range is left out at once."""
    found = set()
    for stack in scope.rows:
        values = matrix_rules.named(matrix, stack, matrix.packages(stack, scope.flavor))
        for one in matrix.incompatibilities:
            wanted = one.requires.get(name)
            if wanted and wanted != "*" and "||" not in wanted and matrix_rules.is_rule_for(one, stack, values, scope.flavor):
                found.add(wanted)
    return found


def _newest(
    matrix: Matrix, scope: Scope, excluded: Mapping[str, Iterable[str]], unreached: dict[tuple[str, str], Unlocked], resolve: Resolve
) -> dict[str, str]:
    """The newest versions that every platform of every row can have. MatrixError: none could be asked.

    `unreached` takes in the platforms that could not be asked; those that are in it are not asked again.
    """
    best: dict[str, str] = {}
    for stack in scope.rows:
        wanted = loosened(matrix.packages(stack, scope.flavor), scope.pins, excluded, scope.flavor)
        for platform in stack.hosts.platforms:
            if (stack.id, platform) in unreached:
                continue
            try:
                versions = resolve(stack, scope.flavor, wanted, platform)
            except MatrixError as error:
                unreached[stack.id, platform] = Unlocked(stack.id, scope.flavor, platform, error.message)
                continue
            for name, version in scope.pins.items():
                new = _as_pinned(version, versions.get(lock.normalize(name), version))
                best[name] = min(best.get(name, new), new, key=Version)
    if scope.pins and not best:
        raise MatrixError("; ".join(str(place) for place in unreached.values()) or "no row has a platform")
    return best


def _as_pinned(before: str, found: str) -> str:
    """A found version as a row writes it: with its local label only where the row has one."""
    return found if "+" in before else found.split("+", 1)[0]


def _forbidden(matrix: Matrix, table: Location, changed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(name, version, the rule's words) of what breaks a rule: by itself, else all of it together. Packages of one release move as one."""
    reasons = _broken(matrix, table, changed)
    if not reasons:
        return []
    groups = _together(matrix, changed)
    alone = [(group, found) for group in groups if (found := _broken(matrix, table, {name: changed[name] for name in group}))]
    guilty = alone or [(tuple(changed), reasons)]
    return [(name, changed[name], "; ".join(found)) for group, found in guilty for name in group]


def _together(matrix: Matrix, changed: Mapping[str, str]) -> list[tuple[str, ...]]:
    tied = [tuple(name for name in one.same if name in changed) for one in matrix.incompatibilities if one.same]
    groups = [group for group in dict.fromkeys(tied) if len(group) > 1]
    return [*groups, *((name,) for name in changed if not any(name in group for group in groups))]


def _broken(matrix: Matrix, table: Location, changed: Mapping[str, str]) -> list[str]:
    """What `fl matrix check` says of a change that it does not say now."""
    if not changed:
        return []
    edited = matrix_edit.replace(matrix.text, {(*table, name): version for name, version in changed.items()})
    known = {finding.message for finding in check(matrix.text)}
    return list(dict.fromkeys(finding.message for finding in check(edited) if finding.message not in known))


def _locked(
    matrix: Matrix, scope: Scope, changed: Mapping[str, str], held: list[Held], unreached: list[Unlocked], make: Lock
) -> Proposal:
    """The proposal with its locks. MatrixError where a lock that is there cannot be made again: its row must not move away from it."""
    if not changed:
        return Proposal(title=scope.title, held=tuple(held), unlocked=tuple(unreached), before=matrix, after=matrix)
    edits: dict[Location, str] = {(*scope.table, name): version for name, version in changed.items()}
    for stack in scope.rows:
        edits |= claims(matrix, stack, scope.flavor, time.time())
    after = _loaded(matrix_edit.replace(matrix.text, edits))
    locks, unlocked = [], []
    for stack, flavor, platform in _to_lock(scope, after):
        file = lock.path(stack.id, flavor, platform, partial=True)
        before = file.read_text(encoding="utf-8") if file else None
        try:
            locks.append(LockChange(stack, flavor, platform, before, make(after, stack, flavor, platform, before)))
        except MatrixError as error:
            if before is not None:
                raise
            unlocked.append(Unlocked(stack.id, flavor, platform, error.message))
    changes = tuple(Change(name, scope.pins[name], changed[name]) for name in sorted(changed))
    return Proposal(
        title=scope.title, changes=changes, held=tuple(held), locks=tuple(locks), unlocked=tuple(unlocked), edits=edits,
        before=matrix, after=after,
    )  # fmt: skip


def _to_lock(scope: Scope, after: Matrix) -> Iterator[tuple[Stack, Flavor, str]]:
    """The locks of the flavor, and those of the other that the row's new day makes old."""
    flavors: tuple[Flavor, ...] = ("train", "serve")
    for old in scope.rows:
        new = after.stack(old.id)
        for flavor in flavors:
            for platform in new.hosts.platforms:
                moved = old.until(flavor) != new.until(flavor) and lock.path(new.id, flavor, platform, partial=True) is not None
                if flavor == scope.flavor or moved:
                    yield new, flavor, platform


def claims(matrix: Matrix, stack: Stack, flavor: Flavor, now: float) -> dict[Location, str]:
    """What a row may say of itself once its pins are others: nobody has trained with them. Proof gives it back. `now`: in seconds."""
    here: Location = ("stacks", matrix.stacks.index(stack))
    edits: dict[Location, str] = {}
    told = "pins" if flavor == "train" else flavor
    if told in stack.sources:
        platforms = " and ".join(name.split("/")[1] for name in stack.hosts.platforms)
        date = time.strftime("%Y-%m-%d", time.gmtime(now))
        edits[(*here, "sources", told)] = f"resolved by fl matrix update for Python {stack.python}, {platforms}, {date}; not run yet"
    for day in ("serve_exclude_newer", "exclude_newer") if flavor == "serve" else ("exclude_newer",):
        if getattr(stack, day) is not None:
            edits[(*here, day)] = time.strftime("%Y-%m-%d", time.gmtime(now + _DAY))
            break
    if stack.confidence == "verified" and flavor == "train":
        edits[(*here, "confidence")] = "documented"
    if stack.status == "stable" and flavor == "train":
        edits[(*here, "status")] = "edge"
    return edits


def _loaded(text: str) -> Matrix:
    matrix = Matrix.model_validate(parse(text))
    matrix._text = text
    return matrix


def dockerfiles(proposal: Proposal) -> str:
    """The difference of the rendered Dockerfiles, as a patch; empty where they stay."""
    parts: list[str] = []
    for old, new in proposal.rows:
        for flavor in render.flavors(new):
            name = str(render.filename(old, flavor))
            was = render.dockerfile(proposal.before, old, flavor).splitlines(keepends=True)
            now = render.dockerfile(proposal.after, new, flavor).splitlines(keepends=True)
            parts += difflib.unified_diff(was, now, f"a/{name}", f"b/{name}", n=1)
    return "".join(parts)


def models(proposal: Proposal) -> list[dict[str, Any]]:
    """Model families for which a row's metadata says something else than before."""
    found = []
    for old, new in proposal.rows:
        for family, known in proposal.before.models.items():
            was = audit.metadata(list(known.types), old, proposal.before)
            now = audit.metadata(list(known.types), new, proposal.after)
            if was[0] != now[0]:
                found.append({"stack": old.id, "model": family, "before": was[0], "after": now[0], "why": now[1]})
    return found


def left_over(proposal: Proposal) -> list[str]:
    """Sources and notes of the rows that still name a replaced version: people wrote them, and people must look at them."""
    found = []
    for _, row in proposal.rows:
        told = [*((f"sources.{name}", text) for name, text in row.sources.items()), *(("notes", text) for text in row.notes)]
        for place, text in told:
            if any(re.search(rf"(?<![0-9.]){re.escape(c.before)}(?![0-9])", text) for c in proposal.changes):
                found.append(f"{row.id}.{place}: {text}")
    return found


def write(proposals: Iterable[Proposal]) -> list[str]:
    """Writes matrix.yaml and the locks; names of what was written. All edits are against one text, so they are joined first."""
    chosen = [one for one in proposals if one.changes]
    if not chosen:
        return []
    edits = {place: value for one in chosen for place, value in one.edits.items()}
    text = matrix_edit.replace(chosen[0].before.text, edits)
    if wrong := check(text):
        raise MatrixError(f"the new matrix does not hold together: {wrong[0].where}: {wrong[0].message}", "fl matrix update STACK")
    return write_matrix(text, [c for one in chosen for c in one.locks])


def write_matrix(text: str, locks: Iterable[LockChange] = ()) -> list[str]:
    """Replaces matrix.yaml and the locks that belong to it, all or none; their names."""
    lock.of_project()
    files = {paths.MATRIX: text, **{lock.place(c.stack, c.flavor, c.platform): c.after for c in locks}}
    return whole.write(files, MatrixError, "the same command again")


def resolver(matrix: Matrix) -> Resolve:
    """The resolver of the locks, asked for the newest versions of today instead of given ones."""

    def resolve(stack: Stack, flavor: Flavor, wanted: Mapping[str, str], platform: str) -> Mapping[str, str]:
        system = matrix.system(stack)
        rules = matrix_rules.constraints(matrix, stack, flavor, matrix.packages(stack, flavor), platform)
        question = lock_resolve.Question(
            stack=stack, pins=wanted, platform=platform, glibc=system.glibc if system else None, constraints=tuple(rules)
        )
        reasons = []
        for place in (None, matrix.indexes[stack.index].url) if stack.index else (None,):
            try:
                text = lock_resolve.ask(question, place)
            except MatrixError as error:
                reasons.append(error.message)
                continue
            wrong = lock.problems(text, {}, stack)
            if not wrong:
                return lock.parse(text)
            reasons.append("; ".join(wrong))
        raise MatrixError("; then, with the row's own index: ".join(reasons))

    return resolve


def locker(*, fresh: bool) -> Lock:
    """Locks of the new pins. `fresh`: also packages that no row pins move; else those that still fit stay."""

    def make(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, before: str | None) -> str:
        return lock.resolve(matrix, stack, flavor, platform, None if fresh else before)

    return make
