"""The recorded incompatibilities, held against versions: those that a row pins, or those that a lock holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from packaging.version import Version

from fl.versions import fits, is_specifier, is_version

if TYPE_CHECKING:
    from fl.matrix import Flavor, Incompatibility, Matrix, Stack

_TOOLKIT: Final = re.compile(r"(?:.*/)?nvidia/cuda:([0-9]+\.[0-9]+)")
_NO_PACKAGES: Final = ("python", "glibc", "toolkit")


def findings(
    matrix: Matrix, stack: Stack, flavor: Flavor, pins: Mapping[str, str], platform: str | None = None
) -> Iterator[tuple[str, str, str]]:
    """(name, what is wrong and why, the rule's id) for every rule that versions of a row break.

    `platform`: on that one only, else on any of the row's.
    """
    values = named(matrix, stack, pins)
    if not all(is_version(value) for value in values.values()):
        return
    for one in matrix.incompatibilities:
        if is_rule_for(one, stack, values, flavor, platform):
            for name, message in _broken(one, stack, pins, values):
                yield name, f"{message}: {one.why} ({one.source})", one.id


def constraints(matrix: Matrix, stack: Stack, flavor: Flavor, pins: Mapping[str, str], platform: str) -> list[str]:
    """What the rules ask of packages that the row does not pin, for the resolver: `setuptools<82`, `nvidia-cuda-nvcc==13.0.*`."""
    values = named(matrix, stack, pins)
    rules = [one for one in matrix.incompatibilities if is_rule_for(one, stack, values, flavor, platform)]
    wanted = [(name, specifier) for one in rules for name, specifier in one.requires.items()]
    for one in rules:
        known = [Version(values[name]).release for name in one.same_minor if name in values]
        wanted += [(name, f"=={known[0][0]}.{known[0][1]}.*") for name in one.same_minor if known and len(known[0]) > 1]
    names = {*_NO_PACKAGES, *matrix.drivers, *values}
    return sorted({f"{name}{specifier}" for name, specifier in wanted if specifier and "||" not in specifier and name not in names})


def named(matrix: Matrix, stack: Stack, pins: Mapping[str, str]) -> dict[str, str]:
    """Version by the names that rules use: distributions, the runtimes, `python`; of the base, `glibc` and the CUDA `toolkit`."""
    system, toolkit = matrix.system(stack), _TOOLKIT.match(stack.base.image)
    known = {name: version for name, version in pins.items() if is_version(version)}
    base = {**({"glibc": system.glibc} if system else {}), **({"toolkit": toolkit[1]} if toolkit else {})}
    return {**known, "python": stack.python, **stack.runtime, **base}


def is_rule_for(
    one: Incompatibility, stack: Stack, values: Mapping[str, str], flavor: Flavor = "train", platform: str | None = None
) -> bool:
    """Whether a rule speaks of a row. `values`: version by name, see `named`."""
    origin = None if stack.torch_from == "base" else "ordinary" if stack.index is None else "vendor"
    platforms = stack.hosts.platforms if platform is None else (platform,)
    return (
        (not one.lanes or stack.lane in one.lanes)
        and (not one.platforms or any(name in one.platforms for name in platforms))
        and (not one.flavors or flavor in one.flavors)
        and (one.index is None or one.index == origin)
        and all(name in values and is_specifier(wanted) and fits(values[name], wanted) for name, wanted in one.when.items())
    )


def _broken(one: Incompatibility, stack: Stack, pins: Mapping[str, str], values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    cause = ", ".join(f"{name} {values[name]}" for name in one.when)
    because = f"with {cause}, " if cause else ""
    for name, wanted in one.requires.items():
        if name in values and wanted is None:
            yield name, f"{because}{name} must not be pinned, found {values[name]}"
        elif name in values and wanted is not None and is_specifier(wanted) and not fits(values[name], wanted):
            yield name, f"{because}{name} must be {wanted}, found {values[name]}"
    for name in one.needs:
        if name not in pins:
            yield name, f"{because}{name} must be pinned"
    yield from _unequal(one.same, pins, None, "of one release")
    yield from _unequal(one.same_minor, values, 2, "of one minor release")
    listed = {chip for chips in (stack.hosts.arches, *stack.hosts.arches_on.values()) for chip in chips}
    wrong = sorted(listed.intersection(one.without_arches))
    if wrong:
        yield "torch", f"{because}{', '.join(wrong)} must not be listed"


def _unequal(names: tuple[str, ...], values: Mapping[str, str], parts: int | None, what: str) -> Iterator[tuple[str, str]]:
    """Names whose releases differ in their first `parts` numbers."""
    releases = {name: Version(values[name]).release[:parts] for name in names if name in values}
    if len(set(releases.values())) > 1:
        yield next(iter(releases)), f"{' and '.join(f'{name} {values[name]}' for name in releases)} must be {what}"
