"""What `fl doctor` is told about this machine, read once at the edge. The checks (doctor.py) are pure functions of it.

Under a replay only what the record holds is there; what belongs to this machine is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Final, TypeVar

from fl import engines
from fl.detect import detect, open_host
from fl.errors import EngineError, FlError, StackError
from fl.grants import EngineFacts, EngineName
from fl.hardware import Hardware, LaneName
from fl.surroundings import container

if TYPE_CHECKING:
    from fl.doctor_site import Site
    from fl.engines import ImageFacts
    from fl.findings import Finding
    from fl.host import Host
    from fl.matrix import Matrix

T = TypeVar("T")
_PATIENCE: Final = 4.0
"""Seconds for detection and for the lanes' own questions, each: a doctor may wait longer than `fl hw`."""
_BALANCING: Final = "/proc/sys/kernel/numa_balancing"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The host as its own files say."""

    kernel: str | None = None
    release: str | None = None
    inside: str | None = None
    """Kind of container that this is seen from."""
    slurm: str | None = None
    """Id of the Slurm job that this runs in."""
    groups: frozenset[int] = frozenset()
    """Groups of this process."""
    member_of: frozenset[int] = frozenset()
    """Groups that the user database gives to this user: those missing above come with the next login."""
    numa_balancing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """The row that one lane gets, by an image and by this machine's Pythons."""

    lane: LaneName
    stack: str | None
    refused: str = ""
    """Why no row fits."""
    remedy: str = ""
    wants: str | None = None
    """The Python of that row."""
    python: str | None = None
    """The Python that the host engine's row needs and has; None: no row has one here."""
    host_stack: str | None = None
    locked: bool = False
    """The host engine's row has a lock for this platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What every engine said; an engine that is not installed is in neither mapping."""

    answers: Mapping[EngineName, EngineFacts] = field(default_factory=dict)
    errors: Mapping[EngineName, EngineError] = field(default_factory=dict)
    stale: Mapping[str, str] = field(default_factory=dict)
    """File of a CDI specification → the first host file that it names and that is gone."""
    images: Mapping[tuple[EngineName, str], ImageFacts] = field(default_factory=dict)
    """Local images of the rows that fit, by engine and row."""
    pythons: Mapping[str, Path] = field(default_factory=dict)
    asked_for: frozenset[EngineName] = frozenset()
    """Engines that the caller's environment names (DOCKER_HOST): not answering is an error whatever else works."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything. `engines` and `site` are None under a replay."""

    hardware: Hardware
    system: System = System()
    lanes: tuple[Finding, ...] = ()
    """The lanes' own findings."""
    stacks: tuple[Stacks, ...] = ()
    engines: Engines | None = None
    site: Site | None = None
    registry: str | None = None


def gather(replay: Path | None = None) -> Facts:
    """Asks detection, the lanes, the engines and this machine side by side; UsageError for a broken record or broken settings."""
    from fl import doctor_site, matrix, settings

    host = open_host(replay, _PATIENCE)
    registry = settings.load().registry if host.live else None
    with ThreadPoolExecutor(8) as pool:
        asked = {name: pool.submit(engines.ask, name) for name in engines.ENGINES if host.live and installed(name)}
        site = pool.submit(doctor_site.look, registry) if host.live else None
        again = _begun(open_host(replay, _PATIENCE))
        hardware = detect(host)
        system = _system(host)
        lanes = pool.submit(_lanes, again, hardware, system.inside)
        rows = matrix.load()
        pythons = _pythons() if host.live else {}
        stacks = tuple(_stacks(rows, hardware, lane, pythons) for lane in used_lanes(hardware))
        answers = {name: job.result() for name, job in asked.items()}
        return Facts(
            hardware=hardware,
            system=system,
            lanes=lanes.result(),
            stacks=stacks,
            engines=_engines(answers, stacks, registry, pythons) if host.live else None,
            site=site.result() if site else None,
            registry=registry,
        )


def installed(name: str) -> bool:
    """True when the engine's command is here; the host engine needs none."""
    return name == "host" or which(name) is not None or (name == "apptainer" and which("singularity") is not None)


def used_lanes(hardware: Hardware) -> tuple[LaneName, ...]:
    """The lanes whose devices may be used, or the cpu lane."""
    from fl.lanes import LANES

    present = tuple(lane for lane in LANES if any(a.usable is not False for a in hardware.of_lane(lane)))
    return present or tuple(lane for lane, module in LANES.items() if module.DRIVER is None)


def _begun(host: Host) -> Host:
    """The host with the lanes' slow commands started, where they are installed."""
    from fl.host import LiveHost
    from fl.lanes.checks import EARLY

    if isinstance(host, LiveHost):
        for argv in (argv for commands in EARLY.values() for argv in commands if which(argv[0])):
            host.begin(argv)
    return host


def _lanes(host: Host, hardware: Hardware, inside: str | None) -> tuple[Finding, ...]:
    from fl.lanes.checks import CHECKS

    return tuple(f for lane, check in CHECKS.items() if hardware.of_lane(lane) for f in check(host, hardware, inside))


def _system(host: Host) -> System:
    release = (host.read("/etc/os-release").text or "").splitlines()
    pretty = next((line.partition("=")[2].strip("\"'") for line in release if line.startswith("PRETTY_NAME=")), None)
    kernel = (host.read("/proc/sys/kernel/osrelease").text or "").strip() or None
    balancing = (host.read(_BALANCING).text or "").strip() or None
    inside = container(host)
    if not host.live:
        return System(kernel=kernel, release=pretty, inside=inside, numa_balancing=balancing)
    return System(
        kernel=kernel,
        release=pretty,
        inside=inside,
        slurm=os.environ.get("SLURM_JOB_ID"),
        groups=frozenset((*os.getgroups(), os.getegid())),
        member_of=_member_of(),
        numa_balancing=balancing,
    )


def _member_of() -> frozenset[int]:
    import grp
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return frozenset()
    return frozenset(group.gr_gid for group in grp.getgrall() if name in group.gr_mem)


def _pythons() -> Mapping[str, Path]:
    from fl.engines.pythons import pythons

    return pythons()


def _stacks(rows: Matrix, hardware: Hardware, lane: LaneName, pythons: Mapping[str, Path]) -> Stacks:
    """By the same selection as `fl run`."""
    from fl import select
    from fl.images import lock

    devices = tuple(a for a in hardware.of_lane(lane) if a.usable is not False)

    def pick(engine: EngineName, at_hand: frozenset[str] | None) -> select.Choice | StackError:
        needs = select.Needs(platform=hardware.platform, engine=engine, pythons=at_hand)
        return _tried(lambda: select.choose(rows, hardware, devices, lane, needs))

    by_image = pick("docker", None)
    by_host = pick("host", frozenset(pythons)) if pythons else None
    chosen = None if isinstance(by_image, StackError) else by_image.stack
    here = by_host.stack if isinstance(by_host, select.Choice) else None
    return Stacks(
        lane=lane,
        stack=chosen.id if chosen else None,
        wants=chosen.python if chosen else None,
        refused=by_image.message if isinstance(by_image, StackError) else "",
        remedy=by_image.remedy if isinstance(by_image, StackError) else "",
        python=here.python if here else None,
        host_stack=here.id if here else None,
        locked=here is not None and lock.path(here.id, "train", hardware.platform) is not None,
    )


def _tried(action: Callable[[], T]) -> T | StackError:
    try:
        return action()
    except StackError as error:
        return error


def _engines(
    answers: Mapping[EngineName, EngineFacts | EngineError], stacks: tuple[Stacks, ...], registry: str | None, pythons: Mapping[str, Path]
) -> Engines:
    from fl.engines import cdi

    good = {name: answer for name, answer in answers.items() if isinstance(answer, EngineFacts)}
    wanted: list[tuple[EngineName, str]] = [(name, row.stack) for name in good if name != "host" for row in stacks if row.stack]
    images = {(name, stack): found for name, stack in wanted if (found := _image(name, stack, registry)) is not None}
    return Engines(
        answers=good,
        errors={name: answer for name, answer in answers.items() if isinstance(answer, EngineError)},
        stale=cdi.stale(cdi.KNOWN_DIRECTORIES),
        images=images,
        pythons=pythons,
        asked_for=frozenset({"docker"}) if os.environ.get("DOCKER_HOST") or os.environ.get("DOCKER_CONTEXT") else frozenset(),
    )


def _image(engine: EngineName, stack: str, registry: str | None) -> ImageFacts | None:
    try:
        return engines.get(engine).image(reference(stack, registry))
    except FlError:
        return None  # the engine check tells what is wrong with it


def reference(stack: str, registry: str | None) -> str:
    """The image that `fl run` would use."""
    from fl import __version__
    from fl.images import tags

    return tags.reference(stack, "train", __version__, registry)
