"""(matrix, hardware, what the recipe needs) → one stack, or why every stack was refused. Pure.

What the data cannot tell (no driver version, no chip) never refuses a row; it is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from packaging.version import Version

from fl.errors import StackError
from fl.grants import EngineName
from fl.hardware import Accelerator, Hardware, LaneName
from fl.matrix import Drivers, Flavor, Matrix, Stack
from fl.versions import driver_above, driver_below, driver_clauses, driver_fits, driver_key

_RANK: Final = {"stable": 3, "lts": 2, "edge": 1, "retired": 0}
_NO_CODE: Final = "has no code for"
_UNCHECKED: Final = "nobody has checked which models"
_SM: Final = re.compile(r"sm_([0-9]+)([0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What must be true of a row beside the hardware."""

    platform: str | None
    """OCI platform; None, or a part `unknown`: the data cannot tell."""
    engine: EngineName | None = None
    pythons: frozenset[str] | None = None
    """Versions (`3.11`) of which a row's Python must be one; None: any, an image brings it."""
    own_interpreter: bool = False
    """An interpreter is used as it is (--python, or inside an image of ours): it may bring what a base image would."""
    model_type: str | None = None
    features: frozenset[str] = frozenset()
    """Keys of `features` that the recipe cannot do without."""
    flavor: Flavor = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found for one stack."""

    stack: Stack
    chosen: bool
    fits: bool
    why: tuple[str, ...]
    """All checks that it fails; or, where it fits, what speaks for it or what was preferred."""
    warnings: tuple[str, ...] = ()
    of_lane: bool = True
    """False: it is for another lane, and nothing else was looked at."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The stack to use, and every stack's verdict in the order of the matrix."""

    stack: Stack
    verdicts: tuple[Verdict, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be told about the chosen stack."""
        return next(v.warnings for v in self.verdicts if v.chosen)


@dataclass(frozen=True, slots=True)
class _Note:
    says: Literal["yes", "no", "maybe"]
    text: str


def runs_on(chip: str, arches: Sequence[str]) -> bool:
    """Whether wheels built for `arches` hold code for a chip. CUDA's machine code for sm_Xy runs on sm_Xz with z >= y, not on
    another major (CUDA C++ programming guide, binary compatibility; pytorch PR #178891); other vendors' names must be equal."""
    if chip in arches:
        return True
    wanted = _SM.fullmatch(chip)
    if wanted is None:
        return False
    built = (match for match in map(_SM.fullmatch, arches) if match)
    return any(match[1] == wanted[1] and match[2] <= wanted[2] for match in built)


def translated(chip: str, ptx: Sequence[str]) -> str | None:
    """The PTX from which the driver can make code for a chip that no machine code is for: that of a chip before it, also of another
    major (CUDA C++ programming guide, PTX compatibility)."""
    wanted = _SM.fullmatch(chip)
    held = sorted(((int(m[1]), int(m[2])), m[0]) for m in map(_SM.fullmatch, ptx) if m)
    before = [name for version, name in held if wanted is not None and version <= (int(wanted[1]), int(wanted[2]))]
    return before[-1] if before else None


def _check_platform(stack: Stack, needs: Needs) -> Iterator[_Note]:
    platforms = ", ".join(stack.hosts.platforms)
    if needs.platform is None or "unknown" in needs.platform.split("/"):
        yield _Note("maybe", f"the machine's platform is not known; {stack.id} is for {platforms}")
    elif needs.platform not in stack.hosts.platforms:
        yield _Note("no", f"is for {platforms}, this machine is {needs.platform}")


def _check_chips(stack: Stack, accelerators: Sequence[Accelerator], needs: Needs) -> Iterator[_Note]:
    arches = stack.hosts.arches_of(needs.platform or "")
    for chip in dict.fromkeys(a.arch for a in accelerators):
        name = next((a.name for a in accelerators if a.arch == chip and a.name), "")
        if chip is None:
            yield _Note("maybe", f"the chip of {name or 'a device'} is not known; {stack.id} is for {', '.join(arches)}")
        elif runs_on(chip, arches):
            yield _Note("yes", f"has code for {chip}")
        elif (ptx := translated(chip, stack.hosts.ptx)) is not None:
            how = f"PTX for {ptx}, which the driver translates at every first use; nobody has tried it"
            yield _Note("maybe", f"{_NO_CODE} {chip}, but {how}")
        else:
            yield _Note("no", f"{_NO_CODE} {chip}{f' ({name})' if name else ''}, only for {', '.join(arches)}")


def driver_title(matrix: Matrix, name: str) -> str:
    """What messages call a driver."""
    return next((d.title for d in matrix.drivers.values() if d.driver == name), f"{name} driver")


def _check_driver(matrix: Matrix, stack: Stack, hardware: Hardware) -> Iterator[_Note]:
    for name, specifier in stack.hosts.driver.items():
        wanted = f"{driver_title(matrix, name)} {' and '.join(f'{operator} {bound}' for operator, bound in driver_clauses(specifier))}"
        version = hardware.drivers.get(name, {}).get("version")
        fits = None if version is None else driver_fits(version, specifier)
        if version is None:
            yield _Note("maybe", f"needs {wanted}, this machine's version is not known")
        elif fits is None:
            yield _Note("maybe", f"needs {wanted}, this machine's version '{version}' cannot be compared")
        elif fits:
            yield _Note("yes", f"{wanted} is there ({version})")
        else:
            yield _Note("no", f"needs {wanted}, this machine has {version}")


def _check_windows(matrix: Matrix, stack: Stack, hardware: Hardware, accelerators: Sequence[Accelerator]) -> Iterator[_Note]:
    """What holds inside the driver's range: chips that it or the compilers do not know, what it must translate, what was documented."""
    for runtime, release in stack.runtime.items():
        table = matrix.drivers.get(runtime)
        if table is None:
            continue
        version = hardware.drivers.get(table.driver, {}).get("version")
        version = version if version is not None and driver_key(version) is not None else None
        if table.is_unrecorded(release):
            yield _Note("maybe", f"which {table.title} {runtime} {release} needs is in no document that was seen")
        for arch in dict.fromkeys(a.arch for a in accelerators if a.arch):
            chip = table.chips.get(arch)
            if chip is not None and version is not None and driver_below(version, chip.driver):
                yield _Note("no", f"{arch} needs {table.title} >= {chip.driver}, the first that knows it, this machine has {version}")
            if chip is not None and Version(release) < Version(chip.runtime):
                first = f"{chip.runtime} is the first"
                yield _Note("maybe", f"compilers of {runtime} {release} do not know {arch} ({first}): what is compiled in a run may fail")
        if version is not None:
            yield from _driver_notes(table, f"{runtime} {release}", release, version)


def _driver_notes(table: Drivers, runtime: str, release: str, version: str) -> Iterator[_Note]:
    shipped, newest, floor = table.shipped.get(release), table.newest_known(release), table.floor(release)
    allowed = floor is None or not driver_below(version, floor)
    if table.translates and shipped and allowed and driver_below(version, shipped):
        yield _Note(
            "maybe",
            f"{runtime} runs on {table.title} {version} by minor version compatibility; {table.translates} that the driver must translate "
            f"needs {shipped}, so what is compiled in a run may fail (error 222)",
        )
    if (other := table.undocumented(release, version)) is not None:
        yield _Note("maybe", f"{table.title} {other}, not with {runtime} (its module is {version}); a year apart is allowed from 6.4 on")
    if newest is not None and driver_above(version, newest):
        yield _Note("maybe", f"{runtime} is documented with {table.title} up to {newest}, this machine has {version}")


def _check_model(matrix: Matrix, stack: Stack, needs: Needs) -> Iterator[_Note]:
    if needs.model_type is None:
        return
    known = matrix.model_type(needs.model_type)
    if known is None:
        yield _Note("maybe", f"the matrix does not know the model type {needs.model_type}")
        return
    library, first, last = ("transformers", known.transformers, None) if needs.flavor == "train" else ("vllm", known.vllm, known.vllm_last)
    pins = matrix.packages(stack, needs.flavor)
    has = pins.get(library)
    if has is None:
        engine = next((f"{name} {pins[name]}" for name in ("vllm-ascend", "sglang") if name in pins), None)
        if engine is not None:
            yield _Note("maybe", f"{_UNCHECKED} {engine} serves, so neither for {needs.model_type}")
        return
    if first is None:
        yield _Note("maybe", f"no {library} knows the model type {needs.model_type} by itself: it runs only with the model's own code")
    elif Version(has) < Version(first):
        yield _Note("no", f"the model type {needs.model_type} needs {library} >= {first}, this row has {has}")
    elif last is not None and Version(has) > Version(last):
        yield _Note("no", f"the model type {needs.model_type} needs {library} <= {last}, this row has {has}")
    else:
        yield _Note("yes", f"{library} {has} knows {needs.model_type}")


def _check_features(matrix: Matrix, stack: Stack, needs: Needs) -> Iterator[_Note]:
    for feature in sorted(needs.features):
        value = stack.features.get(feature)
        if value is None:
            yield _Note("maybe", f"nobody has checked whether {stack.id} can do {feature}")
        elif value is False or value == "none":
            source = matrix.feature_source(stack, feature)
            yield _Note("no", f"cannot do {feature}{f' ({source})' if source else ''}")


def _check_environment(stack: Stack, needs: Needs) -> Iterator[_Note]:
    if needs.flavor == "serve" and not stack.serve:
        yield _Note("no", "has no serve flavor")
    if needs.pythons is not None and stack.python not in needs.pythons:
        there = ", ".join(sorted(needs.pythons, key=Version)) or "none"
        yield _Note("no", f"needs Python {stack.python}, at hand: {there}")
    seen = stack.of(needs.flavor)
    if needs.engine == "host" and seen.torch_from == "base" and not needs.own_interpreter:
        yield _Note("no", f"takes torch from the image {seen.base.image}, which the host engine does not have")


def _notes(matrix: Matrix, stack: Stack, hardware: Hardware, accelerators: Sequence[Accelerator], needs: Needs) -> Iterator[_Note]:
    if stack.status == "retired":
        yield _Note("no", "is retired")
    yield from _check_platform(stack, needs)
    yield from _check_chips(stack, accelerators, needs)
    yield from _check_driver(matrix, stack, hardware)
    yield from _check_windows(matrix, stack, hardware, accelerators)
    yield from _check_model(matrix, stack, needs)
    yield from _check_features(matrix, stack, needs)
    yield from _check_environment(stack, needs)


def _order(stack: Stack, flavor: Flavor) -> tuple[int, Version, Version]:
    """The greatest is taken: by status, then the newest runtime, then the newest torch."""
    runtime = max((Version(release) for release in stack.runtime.values()), default=Version("0"))
    pins = stack.train if flavor == "train" else stack.serve
    return _RANK[stack.status], runtime, Version(pins.get("torch") or "0")


def _preferred(best: Stack, other: Stack) -> str:
    """Why one row that fits was taken before another."""
    if best.status != other.status:
        return f"fits, but {best.id} is {best.status} and this one {other.status}"
    if _order(best, "train")[1] != _order(other, "train")[1]:
        return f"fits, but {best.id} has the newer runtime"
    return f"fits, but {best.id} has the newer torch"


def verdicts(
    matrix: Matrix, hardware: Hardware, accelerators: Sequence[Accelerator], lane: LaneName, needs: Needs
) -> tuple[Verdict, ...]:
    """Every row's verdict for the accelerators that were chosen (none on the cpu lane), in the order of the matrix."""
    notes = {s.id: tuple(_notes(matrix, s, hardware, accelerators, needs)) for s in matrix.stacks if s.lane == lane}
    fitting = [s for s in matrix.stacks if s.lane == lane and not any(n.says == "no" for n in notes[s.id])]
    # a row whose engine is known to have the model comes before one whose engine nobody has looked at, whatever their status
    unknown = {name for name, said in notes.items() if any(n.text.startswith(_UNCHECKED) for n in said)}
    best = max(fitting, key=lambda s: (s.id not in unknown, *_order(s, needs.flavor)), default=None)
    found = []
    for stack in matrix.stacks:
        if stack.lane != lane:
            found.append(Verdict(stack=stack, chosen=False, fits=False, why=(f"is for the {stack.lane} lane",), of_lane=False))
            continue
        said = {kind: tuple(n.text for n in notes[stack.id] if n.says == kind) for kind in ("yes", "no", "maybe")}
        if said["no"]:
            why = said["no"]
        elif best is not None and stack.id in unknown and best.id not in unknown:
            why = (f"fits, but of {best.id} it is known which models it serves",)
        elif best is not None and stack.id != best.id:
            why = (_preferred(best, stack),)
        else:
            why = (*said["yes"], f"status {stack.status}")
        found.append(Verdict(stack=stack, chosen=stack is best, fits=not said["no"], why=why, warnings=said["maybe"]))
    return tuple(found)


def _line(verdict: Verdict) -> str:
    return f"  {verdict.stack.id}: {'; '.join(verdict.why)}"


def _remedy(matrix: Matrix, found: Sequence[Verdict], accelerators: Sequence[Accelerator]) -> str:
    """A newer driver, where nothing else keeps a row from fitting; and the processor."""
    lines = []
    missing: dict[str, list[str]] = {}
    for verdict in found:
        for name, specifier in verdict.stack.hosts.driver.items() if verdict.of_lane and not verdict.fits else ():
            if all(reason.startswith(f"needs {driver_title(matrix, name)} ") for reason in verdict.why):
                missing.setdefault(name, []).extend(bound for operator, bound in driver_clauses(specifier) if operator == ">=")
    for name, bounds in missing.items():
        lines.append(f"upgrade the {driver_title(matrix, name)} to {min(bounds, key=lambda b: driver_key(b) or ())} or newer")
    if missing:
        lines += _forward(matrix, [v.stack for v in found if not v.fits], accelerators)
    lines += _without(found, accelerators)
    if accelerators:
        lines.append("--hw cpu, which trains on the processor")
    return "\n".join([*lines, "fl matrix list"])


def _without(found: Sequence[Verdict], accelerators: Sequence[Accelerator]) -> list[str]:
    """`--devices` with those that fit, where the other chips are all that keeps a row from fitting."""
    for verdict in found:
        if verdict.of_lane and not verdict.fits and all(reason.startswith(_NO_CODE) for reason in verdict.why):
            chips = verdict.stack.hosts.arches + tuple(chip for chips in verdict.stack.hosts.arches_on.values() for chip in chips)
            fit = [str(a.index) for a in accelerators if a.arch is None or runs_on(a.arch, chips)]
            if 0 < len(fit) < len(accelerators):
                return [f"--devices {','.join(fit)}, for which {verdict.stack.id} has code"]
    return []


def _forward(matrix: Matrix, stacks: Sequence[Stack], accelerators: Sequence[Accelerator]) -> list[str]:
    """The package that lifts the oldest of the runtimes over an old driver, where every chosen product is one that it is allowed on."""
    tables = [(Version(release), matrix.drivers[name].forward, stack) for stack in stacks for name, release in stack.runtime.items()
              if name in matrix.drivers]  # fmt: skip
    for release, forward, stack in sorted(tables, key=lambda one: one[0]):
        if forward is not None and accelerators and all(_is_product(a.name, forward.products) for a in accelerators):
            package = forward.package.format(major=release.major, minor=release.minor)
            return [f"or an image of your own with {package} (allowed on data-center GPUs): --stack {stack.id} --force --image REF"]
    return []


def _is_product(name: str | None, products: Sequence[str]) -> bool:
    return any(word in products for word in re.split(r"[ \-]", name or ""))


def choose(
    matrix: Matrix, hardware: Hardware, accelerators: Sequence[Accelerator], lane: LaneName, needs: Needs,
    stack_id: str | None = None, force: bool = False, named_by: str = "--stack was given",
) -> Choice:
    """The row to use: the best that fits, or the one that was named (`named_by` says how). StackError when none fits, or the named
    one does not (unless `force`); it tells every check that each row of the lane fails."""
    found = verdicts(matrix, hardware, accelerators, lane, needs)
    if stack_id is not None:
        named = matrix.stack(stack_id)
        return _named(matrix, found, named, lane, accelerators, force, named_by)
    chosen = next((v.stack for v in found if v.chosen), None)
    if chosen is None:
        lines = "\n".join(_line(v) for v in found if v.of_lane) or f"  the matrix has no row for the {lane} lane"
        raise StackError(f"no stack fits this machine ({lane} lane):\n{lines}", _remedy(matrix, found, accelerators))
    return Choice(chosen, found)


def _named(
    matrix: Matrix, found: Sequence[Verdict], named: Stack, lane: LaneName, accelerators: Sequence[Accelerator], force: bool, by: str
) -> Choice:
    """The choice where a row was asked for by its id."""
    verdict = next(v for v in found if v.stack.id == named.id)
    if not verdict.of_lane:
        raise StackError(f"the stack {named.id} is for the {named.lane} lane, this run is for {lane}", f"--hw {named.lane}\nfl matrix list")
    if not verdict.fits and not force:
        remedy = _remedy(matrix, [verdict], accelerators)
        raise StackError(f"the stack {named.id} does not fit this machine:\n{_line(verdict)}", f"{remedy}\n--force, to use it all the same")
    changed = []
    for one in found:
        if one.stack.id != named.id:
            why = one.why if not one.fits else (f"fits, but {by.replace('--stack', f'--stack {named.id}')}",)
            changed.append(Verdict(stack=one.stack, chosen=False, fits=one.fits, why=why, warnings=one.warnings, of_lane=one.of_lane))
        else:
            forced = () if one.fits else tuple(f"forced: {reason}" for reason in one.why)
            why = (by,) if one.fits else (f"{by}, and --force",)
            changed.append(Verdict(stack=one.stack, chosen=True, fits=one.fits, why=why, warnings=(*one.warnings, *forced)))
    return Choice(named, tuple(changed))
