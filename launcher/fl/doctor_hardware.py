"""Checks of the machine: host, drivers, fabric, memory errors, NUMA, access to the devices. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fl.causes import explain
from fl.findings import CheckName, Finding
from fl.hardware import Accelerator, Evidence, LaneName, Problem, names
from fl.lanes import LANES

if TYPE_CHECKING:
    from fl.doctor_facts import Facts

_CHECK_OF: Final[dict[str, CheckName]] = {
    "fabric-not-ready": "fabric",
    "no-permission": "access",
    "nodes-missing": "access",
    "device-busy": "access",
    "exclusive-mode": "access",
    "partition-mixed": "access",
    "device-unhealthy": "ecc",
}
"""Where a problem of detection is told; the others are the driver's."""


_NONE: Final = "no accelerator"


def host(facts: Facts) -> Iterator[Finding]:
    """What kind of machine this is, and from where it is seen."""
    hardware, system = facts.hardware, facts.system
    words = [f"{hardware.os} {hardware.arch}"]
    words += [f"kernel {system.kernel}"] if system.kernel else []
    words += [system.release] if system.release else []
    words += [f"seen from a container ({system.inside})"] if system.inside else []
    words += [f"in Slurm job {system.slurm}"] if system.slurm else []
    seen = (Evidence("/proc/sys/kernel/osrelease", system.kernel),) if system.kernel else ()
    if hardware.os != "linux":
        text = f"{', '.join(words)}: fl runs containers and environments on Linux only"
        cure = "wsl --install   and fl inside it" if hardware.os == "windows" else "a Linux machine"
        yield Finding(check="host", status="warning", finding=text, evidence=seen, remedy=cure)
        return
    yield Finding(check="host", status="ok", finding=", ".join(words), evidence=seen)


def driver(facts: Facts) -> Iterator[Finding]:
    """Every lane's driver, what is wrong with it, and which row of the matrix it allows."""
    hardware = facts.hardware
    wrong = tuple(_problems(facts, "driver"))
    yield from wrong
    broken = {p.lane for p in hardware.problems if p.severity == "error" and _CHECK_OF.get(p.code, "driver") == "driver"}
    for lane, module in LANES.items():
        version = hardware.drivers.get(str(module.DRIVER), {})
        if hardware.of_lane(lane) and lane not in broken:
            more = ", ".join(f"{key} {value}" for key, value in version.items() if value and key != "version")
            told = f"{version.get('version') or 'driver of unknown version'}" + (f" ({more})" if more else "")
            yield Finding(
                check="driver",
                status="ok",
                finding=f"{module.TITLE} {told}{_row(facts, lane)}",
                evidence=tuple(e for a in hardware.of_lane(lane)[:1] for e in a.evidence if "version" in e.source or "module" in e.source),
            )
    for row in facts.stacks:
        if row.stack is None:
            why = [line.strip() for line in row.refused.splitlines()[1:]]
            text = f"no stack fits this machine ({row.lane} lane): {'; '.join(why[:3])}"
            seen = tuple(Evidence("fl matrix explain", line) for line in why)
            yield Finding(check="driver", status="error", finding=text, evidence=seen, remedy=row.remedy)
    if not hardware.accelerators and not wrong:
        yield Finding(check="driver", status="skipped", finding="no accelerator: the cpu lane is used" + _cpu_row(facts))


def _row(facts: Facts, lane: LaneName) -> str:
    return next((f"; {row.stack} fits" for row in facts.stacks if row.lane == lane and row.stack), "")


def _cpu_row(facts: Facts) -> str:
    return next((f", {row.stack}" for row in facts.stacks if row.stack), "")


def _problems(facts: Facts, check: CheckName) -> Iterator[Finding]:
    """Detection's problems of one check. Where the text is known, cause and cure come from the table of causes."""
    for problem in facts.hardware.problems:
        if _CHECK_OF.get(problem.code, "driver") == check:
            yield _finding(facts, check, problem)


def _finding(facts: Facts, check: CheckName, problem: Problem) -> Finding:
    cause = explain(problem.message)
    text = f"{problem.message}: {cause.cause}" if cause and problem.code == "tool-failed" else problem.message
    title = LANES[problem.lane].TITLE if problem.lane else ""
    return Finding(
        check=check,
        status=problem.severity,
        finding=text if title in text else f"{title}: {text}",
        evidence=(Evidence("fl hw", problem.code), *_seen(facts, problem)),
        remedy=cause.cure if cause else problem.remedy,
    )


def _seen(facts: Facts, problem: Problem) -> tuple[Evidence, ...]:
    """What the devices of the lane that cannot be used say, and the nodes that do not open."""
    nodes = [n for n in facts.hardware.nodes.values() if n.openable is False and n.path in problem.message]
    if nodes:
        return tuple(Evidence(n.path, f"mode {n.mode:04o}, uid {n.uid}, gid {n.gid}, {n.error or 'refused'}") for n in nodes[:2])
    devices = [a for a in facts.hardware.accelerators if a.lane == problem.lane and a.usable is not True]
    return devices[0].evidence[:3] if devices else ()


def fabric(facts: Facts) -> Iterator[Finding]:
    """Fabric manager of machines with NVSwitches."""
    known = tuple(_problems(facts, "fabric"))
    yield from known or _of_lanes(facts, "fabric", "no device here has one")


def uvm(facts: Facts) -> Iterator[Finding]:
    """Unified memory's node."""
    yield from _of_lanes(facts, "uvm", "no device here needs it")


def ecc(facts: Facts) -> Iterator[Finding]:
    """Memory errors, Xid messages, health."""
    known = tuple(_problems(facts, "ecc"))
    own = tuple(f for f in facts.lanes if f.check == "ecc")
    yield from (*known, *own)
    healthy = [a for a in facts.hardware.accelerators if a.healthy]
    if healthy and not known:
        yield Finding(check="ecc", status="ok", finding=f"healthy by their own tool: {names(healthy)}", evidence=healthy[0].evidence[-1:])
    if not (known or own or healthy):
        yield Finding(
            check="ecc", status="skipped", finding="no device here counts memory errors" if facts.hardware.accelerators else _NONE
        )


def persistence(facts: Facts) -> Iterator[Finding]:
    """Persistence mode."""
    yield from _of_lanes(facts, "persistence", "no device here has such a mode")


def numa(facts: Facts) -> Iterator[Finding]:
    """Automatic NUMA balancing, where a vendor advises against it."""
    own = tuple(f for f in facts.lanes if f.check == "numa")
    value = facts.system.numa_balancing
    if own:
        yield from own
    elif value is None:
        yield Finding(check="numa", status="skipped", finding="the kernel shows no NUMA balancing")
    else:
        text = "automatic NUMA balancing is off" if value == "0" else "automatic NUMA balancing is on, which does no harm here"
        yield Finding(check="numa", status="ok", finding=text, evidence=(Evidence("/proc/sys/kernel/numa_balancing", value),))


def _of_lanes(facts: Facts, check: CheckName, otherwise: str) -> Iterator[Finding]:
    own = tuple(f for f in facts.lanes if f.check == check)
    yield from own or (Finding(check=check, status="skipped", finding=otherwise if facts.hardware.accelerators else _NONE),)


def access(facts: Facts) -> Iterator[Finding]:
    """The devices' nodes can be opened, and their drivers answer."""
    known = tuple(_with_login(facts, f) for f in _problems(facts, "access"))
    yield from known
    hardware = facts.hardware
    if not hardware.accelerators:
        if not known:
            yield Finding(check="access", status="skipped", finding=_NONE)
        return
    for lane in LANES:
        devices = hardware.of_lane(lane)
        usable, unknown = [a for a in devices if a.usable], [a for a in devices if a.usable is None]
        if usable:
            yield Finding(check="access", status="ok", finding=_usable(usable, len(devices)), evidence=_opened(usable[0]))
        if unknown:
            yield Finding(
                check="access", status="warning", finding=f"cannot be told whether usable: {names(unknown)}", remedy="fl hw --json"
            )
        dead = [a for a in devices if a.usable is False]
        # Where others can be used a warning is enough: a container that was given some of the host's devices is well.
        told = any(p.lane == lane and (p.severity == "error" or usable) for p in hardware.problems)
        if dead and told:
            yield Finding(
                check="access", status="skipped", finding=f"cannot be used, as said above: {names(dead)}", evidence=dead[0].evidence
            )
        elif dead:
            yield _dead(dead)
    lanes = [row.lane for row in facts.stacks]
    if len(lanes) > 1:
        text = f"usable devices of several lanes ({', '.join(lanes)}): a run must be told which"
        yield Finding(check="access", status="warning", finding=text, remedy="\n".join(f"--hw {lane}" for lane in lanes))


def _dead(devices: list[Accelerator]) -> Finding:
    text = f"cannot be used: {names(devices)}"
    return Finding(check="access", status="error", finding=text, evidence=devices[0].evidence, remedy="fl hw --json")


def _usable(usable: list[Accelerator], of: int) -> str:
    return ("" if len(usable) == of else f"{len(usable)} of {of} ") + f"usable: {names(usable)}"


def _opened(device: Accelerator) -> tuple[Evidence, ...]:
    return tuple(e for e in device.evidence if e.source.startswith("/dev/"))[:1]


def _with_login(facts: Facts, finding: Finding) -> Finding:
    """The user database has the group already, this session does not: logging in again is all that is missing."""
    gids = {node.gid for node in facts.hardware.nodes.values() if node.openable is False and node.error in ("EACCES", "EPERM", None)}
    coming = sorted(gids & (facts.system.member_of - facts.system.groups))
    if not coming or finding.status != "error":
        return finding
    text = f"{finding.finding}; this user is in group {', '.join(map(str, coming))}, but this session began before that"
    return replace(finding, finding=text, remedy="log out and in again, or: newgrp " + str(coming[0]))
