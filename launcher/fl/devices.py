"""Which lane, and which of its devices, a run gets. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

from fl.errors import HardwareError
from fl.hardware import Accelerator, Hardware, LaneName, Problem, names
from fl.lanes import LANES

_COUNT: Final = re.compile(r"count:(\d{1,4})")
_WITHHELD: Final = "device-withheld"
_BDF: Final = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])")


def choose_lane(hardware: Hardware, requested: str = "auto") -> LaneName:
    """`auto`: the one lane with usable devices; the cpu lane only when no accelerator is present. HardwareError otherwise."""
    if requested == "auto":
        return _auto(hardware)
    lane = next((name for name in LANES if name == requested), None)
    if lane is None:
        near = get_close_matches(requested, ["auto", *LANES], 1)
        raise HardwareError(
            f"--hw {requested}: there is no such lane", f"--hw {near[0]}" if near else f"--hw {' | '.join(('auto', *LANES))}"
        )
    if LANES[lane].DRIVER is None:
        return lane
    if not hardware.of_lane(lane):
        others = [other for other in LANES if hardware.of_lane(other)]
        found = (
            f"this machine has {', '.join(names(hardware.of_lane(other)) for other in others)}"
            if others
            else "this machine has no accelerator"
        )
        reason = next((problem for problem in hardware.problems if problem.lane == lane), None)
        raise HardwareError(
            f"--hw {lane}: no {LANES[lane].TITLE} device found; {found}" + (f" ({reason.message})" if reason else ""),
            "\n".join([*([reason.remedy] if reason and reason.remedy else []), f"--hw {others[0] if others else 'cpu'}", "fl hw"]),
        )
    if not any(a.usable is not False for a in _within_reach(hardware, lane)):
        raise _unusable(hardware, [lane])
    return lane


def _auto(hardware: Hardware) -> LaneName:
    present = [lane for lane in LANES if hardware.of_lane(lane)]
    foreign = next((problem for problem in hardware.problems if problem.lane is None and problem.severity == "error"), None)
    if not present and foreign is not None:
        raise HardwareError(f"--hw auto: {foreign.message}", f"{foreign.remedy}\n--hw cpu")
    if not present:
        return next(lane for lane, module in LANES.items() if module.DRIVER is None)
    sure = [lane for lane in present if any(a.usable for a in _within_reach(hardware, lane))]
    usable = sure or [lane for lane in present if any(a.usable is None for a in _within_reach(hardware, lane))]
    if not usable:
        raise _unusable(hardware, present)
    if len(usable) > 1:
        told = " and ".join(f"{lane}: {names([a for a in _within_reach(hardware, lane) if a.usable is not False])}" for lane in usable)
        raise HardwareError(
            f"--hw auto: this machine has usable devices of several lanes, {told}", "\n".join(f"--hw {lane}" for lane in (*usable, "cpu"))
        )
    return usable[0]


def _within_reach(hardware: Hardware, lane: LaneName) -> tuple[Accelerator, ...]:
    return tuple(a for a in hardware.of_lane(lane) if (lane, a.index) not in hardware.withheld)


def _unusable(hardware: Hardware, lanes: Sequence[LaneName]) -> HardwareError:
    found = names([a for lane in lanes for a in hardware.of_lane(lane)])
    reasons = _reasons(hardware, lanes)
    why = "; ".join(problem.message for problem in reasons) or "its driver or its device nodes are not there"
    remedies = [problem.remedy for problem in reasons if problem.remedy] or ["fl hw"]
    return HardwareError(
        f"{found} {'is' if len(found.split(', ')) == 1 else 'are'} present but cannot be used: {why}", "\n".join([*remedies, "--hw cpu"])
    )


def _reasons(hardware: Hardware, lanes: Sequence[LaneName]) -> list[Problem]:
    of_lanes = [problem for problem in hardware.problems if problem.lane in lanes]
    out_of_reach = [problem for problem in of_lanes if problem.code == _WITHHELD]
    if out_of_reach and not any(a.usable is False for lane in lanes for a in _within_reach(hardware, lane)):
        return out_of_reach
    return [problem for problem in of_lanes if problem.severity == "error"] or of_lanes


def choose_devices(hardware: Hardware, lane: LaneName, spec: str | None = None) -> tuple[tuple[Accelerator, ...], tuple[str, ...]]:
    """(devices, notes). `spec`: indices (`0,2`, `0-3`), UUIDs, PCI addresses, `free`, `count:N`; None: every usable one.

    A busy device is taken with a note, on a lane whose devices are exclusive it is left out. HardwareError for what is not there
    or not usable.
    """
    module, devices = LANES[lane], _within_reach(hardware, lane)
    if module.DRIVER is None:
        processes(hardware, (), spec)
        return (), ()
    usable = tuple(a for a in devices if a.usable is not False)
    if not usable:
        raise _unusable(hardware, [lane]) if hardware.of_lane(lane) else HardwareError(f"no {module.TITLE} device found", "fl hw")
    if spec is None:
        chosen, notes = _default(devices, module.EXCLUSIVE)
        return _one_partition(chosen, notes) if not module.PARTITIONS_TOGETHER else (chosen, notes)
    chosen, notes = _asked(spec, devices, usable, hardware, lane)
    if not module.PARTITIONS_TOGETHER and len(chosen) > 1 and any(a.partition for a in chosen):
        raise HardwareError(
            f"--devices {spec}: {_list(chosen)} are {module.TITLE} partitions; a run can use one, they cannot talk to each other",
            f"--devices {chosen[0].index}",
        )
    return chosen, notes


def processes(hardware: Hardware, chosen: tuple[Accelerator, ...], spec: str | None) -> int:
    """How many processes train as one: one a device; on a processor one, or N with `count:N`. HardwareError for anything else there."""
    if chosen or spec is None:
        return max(1, len(chosen))
    cores, match = hardware.cpu.cores, _COUNT.fullmatch(spec)
    if match is None:
        raise HardwareError(f"--devices {spec}: the cpu lane has no devices to choose from", "Leave --devices out.\n"
                            "--devices count:2   trains with two processes")  # fmt: skip
    if not 1 <= int(match[1]) <= max(1, cores):
        raise HardwareError(f"--devices {spec}: this machine has {cores} cores, a process needs one", f"--devices count:{max(1, cores)}")
    return int(match[1])


Choice = tuple[tuple[Accelerator, ...], tuple[str, ...]]


def _asked(spec: str, devices: tuple[Accelerator, ...], usable: tuple[Accelerator, ...], hardware: Hardware, lane: LaneName) -> Choice:
    exclusive = LANES[lane].EXCLUSIVE
    if spec == "free":
        free = tuple(a for a in _preferred(usable) if not a.busy)
        if not free:
            raise HardwareError(f"--devices free: all {len(usable)} devices of the lane {lane} are busy", "Wait, or name one: --devices 0")
        return free, _unknown_load(free)
    if match := _COUNT.fullmatch(spec):
        return _counted(int(match[1]), usable, exclusive, lane)
    return _named(spec, devices, exclusive, hardware, lane)


def _preferred(usable: tuple[Accelerator, ...]) -> tuple[Accelerator, ...]:
    """Those that are known to be usable; where that is known of none, all."""
    return tuple(a for a in usable if a.usable) or usable


def _one_partition(chosen: tuple[Accelerator, ...], notes: tuple[str, ...]) -> Choice:
    """Whole devices if there are any, else one partition: a free one, the biggest."""
    parts = [a for a in chosen if a.partition]
    if not parts or len(chosen) == 1:
        return chosen, notes
    whole = tuple(a for a in chosen if a.partition is None)
    if whole:
        return whole, (*notes, f"{_list(parts)} left out: partitions do not work together with whole devices")
    best = max(parts, key=lambda a: (not a.busy, a.memory_mib or 0, -a.index))
    return (best,), (*notes, f"device {best.index} of {len(parts)} partitions: a run can use one, they cannot talk to each other")


def _default(devices: tuple[Accelerator, ...], exclusive: bool) -> Choice:
    usable = _preferred(tuple(a for a in devices if a.usable is not False))
    left = [a for a in devices if a not in usable]
    notes = [f"{_list(left)} left out: not usable, or not known to be"] if left else []
    busy = [a for a in usable if a.busy]
    if not exclusive:
        return usable, (
            *notes,
            *([f"{_list(busy)} busy: other processes run there (`--devices free` leaves busy ones out)"] if busy else []),
        )
    free = tuple(a for a in usable if not a.busy)
    if not free:
        raise HardwareError(
            f"all devices are busy ({_list(busy)}), and a device of this lane cannot be shared",
            "Stop what runs there: `fl ps`, or the vendor's tool.",
        )
    return free, (*notes, *([f"{_list(busy)} left out: busy, and a device of this lane cannot be shared"] if busy else []))


def _counted(count: int, usable: tuple[Accelerator, ...], exclusive: bool, lane: LaneName) -> Choice:
    """Free devices first, then those whose load is not known, busy ones last (and never on an exclusive lane)."""
    pool = [a for a in usable if not (exclusive and a.busy)]
    if not 0 < count <= len(pool):
        raise HardwareError(
            f"--devices count:{count}: the lane {lane} has {len(pool)} devices to give", f"--devices count:{len(pool)}" if pool else "fl hw"
        )
    ranked = sorted(pool, key=lambda a: (a.usable is None, a.busy is True, a.busy is None, a.index))[:count]
    chosen = tuple(sorted(ranked, key=lambda a: a.index))
    return chosen, _busy_notes(chosen)


def _named(spec: str, devices: tuple[Accelerator, ...], exclusive: bool, hardware: Hardware, lane: LaneName) -> Choice:
    chosen: list[Accelerator] = []
    for word in [word for part in spec.split(",") for word in _spread(part.strip())]:
        device = _find(word, devices)
        if device is None and _find(word, hardware.of_lane(lane)) is not None:
            reason = next(problem for problem in hardware.problems if problem.lane == lane and problem.code == _WITHHELD)
            raise HardwareError(f"--devices {spec}: device {word} is out of reach: {reason.message}", reason.remedy)
        if device is None:
            offered = ", ".join(str(a.index) for a in devices)
            known = [identifier for a in devices for identifier in (a.uuid, a.pci) if identifier]
            near = get_close_matches(word, known, 1, 0.8)
            raise HardwareError(
                f"--devices {spec}: there is no {lane} device {word!r}; there are {offered}"
                + (f" (did you mean {near[0]}?)" if near else ""),
                f"--devices {devices[0].index}, a UUID, a PCI address, free, or count:N",
            )
        if device.usable is False:
            reasons = _reasons(hardware, [lane])
            raise HardwareError(
                f"--devices {spec}: device {device.index} ({device.name or device.pci}) cannot be used: "
                + ("; ".join(problem.message for problem in reasons) or "see its evidence in `fl hw --json`"),
                "\n".join(problem.remedy for problem in reasons if problem.remedy) or "fl hw",
            )
        if exclusive and device.busy:
            raise HardwareError(
                f"--devices {spec}: device {device.index} is busy, and a device of this lane cannot be shared", "--devices free"
            )
        if device not in chosen:
            chosen.append(device)
    return tuple(chosen), _busy_notes(chosen)


def _spread(word: str) -> list[str]:
    """`0-3` → 0, 1, 2, 3."""
    match = re.fullmatch(r"(\d{1,4})-(\d{1,4})", word)
    return [str(n) for n in range(int(match[1]), int(match[2]) + 1)] if match and int(match[1]) <= int(match[2]) else [word]


def _find(word: str, devices: Sequence[Accelerator]) -> Accelerator | None:
    if word.isascii() and word.isdigit():
        return next((a for a in devices if a.index == int(word)), None)
    if match := _BDF.fullmatch(word):
        address = f"{int(match[1] or '0', 16):04x}:{match[2].lower()}"
        return next((a for a in devices if a.pci == address), None)
    found = [a for a in devices if word and a.uuid and a.uuid.lower().startswith(word.lower())]
    exact = [a for a in found if a.uuid == word]
    return exact[0] if exact else found[0] if len(found) == 1 else None


def _busy_notes(chosen: Sequence[Accelerator]) -> tuple[str, ...]:
    busy = [a for a in chosen if a.busy]
    return (f"{_list(busy)} busy: other processes run there",) if busy else ()


def _unknown_load(chosen: Sequence[Accelerator]) -> tuple[str, ...]:
    unknown = [a for a in chosen if a.busy is None]
    return (f"{_list(unknown)}: whether other processes run there cannot be told",) if unknown else ()


def _list(devices: Sequence[Accelerator]) -> str:
    return f"device{'s' if len(devices) > 1 else ''} {', '.join(str(a.index) for a in devices)}"


def restrict(hardware: Hardware, environment: Mapping[str, str]) -> tuple[Hardware, tuple[str, ...]]:
    """(the hardware with what the caller's variables, Slurm or Kubernetes withhold marked, notes).

    A record is another machine's: under a replay nothing is restricted.
    """
    if hardware.replayed:
        return hardware, ()
    withheld: set[tuple[LaneName, int]] = set()
    notes: list[str] = []
    problems: list[Problem] = []
    for lane, module in LANES.items():
        devices = hardware.of_lane(lane)
        found = module.restriction(devices, environment) if devices else None
        if found is None:
            continue
        left = [a for a in devices if a.index in found.kept]
        withheld |= {(lane, a.index) for a in devices if a.index not in found.kept}
        text = f"{found.why} leaves {_list(left) if left else 'no device'} of the lane {lane}" + (f" ({found.note})" if found.note else "")
        if len(left) < len(devices) or found.note:
            notes.append(text)
        if len(left) < len(devices):
            variable = found.why.partition("=")[0]
            remedy = f"Name other devices with {variable}, or unset it where it is not the scheduler's."
            problems.append(Problem(code=_WITHHELD, severity="warning", lane=lane, message=text, remedy=remedy))
    return replace(hardware, withheld=frozenset(withheld), problems=(*hardware.problems, *problems)), tuple(notes)
