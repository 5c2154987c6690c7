"""What would fail after the start, said before it. `look` asks this machine, `findings` decides, and errors stop a real run.

That the devices reach the container is said by the lanes' grants; that driver and chip fit the row, by the selection.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl.errors import EngineError, FlError, HardwareError, ImageError
from fl.grants import EngineFacts, Grants
from fl.hardware import Accelerator, Hardware, LaneName, Problem, Severity

if TYPE_CHECKING:
    from fl.plan import Image

_GIB: Final = 1 << 30
_LEAST: Final = 3 * _GIB // 2
"""Bytes that the smallest environment and the smallest image take (the cpu row: 1.5 GiB and 1.8 GiB, measured)."""
_USUAL: Final = 20 * _GIB
"""Below this an accelerator's may not fit: the vendors' libraries are several times the cpu row's size. A warning only."""
_SHM: Final = _GIB
_LOCKED: Final = 64 << 20
_DEVICE: Final = frozenset({"no-permission", "nodes-missing", "uvm", "requirement-unmet"})
_IMAGE: Final = frozenset({"image-platform", "disk-image"})
"""Codes whose errors end with 3 and 7; all others with 6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the decision is made of. None: not known, or (under a replay) not looked at."""

    engine: EngineFacts
    lane: LaneName
    hardware: Hardware
    chosen: tuple[Accelerator, ...]
    grants: Grants
    image: Image
    image_platform: str | None = None
    named_image: bool = False
    """`--image`: its own demands on the driver are not those of the row."""
    image_environment: Mapping[str, str] | None = None
    """What such an image sets, where it is here."""
    installs: str | None = None
    """Folder of the environment that is to be made; None: it is there, or none is needed."""
    free: int | None = None
    """Bytes free where image or environment will be."""
    where: str = ""
    locked: int = resource.RLIM_INFINITY
    """Soft limit of locked memory, for the host engine."""
    shm: int | None = None
    """Bytes of /dev/shm, for the host engine."""
    workers: int = 0
    """Data loader processes of each rank."""
    stale: Mapping[str, str] = field(default_factory=dict)
    """File of a CDI specification → the file that it names and that is gone."""
    inside: str | None = None
    """Kind of container that fl itself runs in."""


def findings(facts: Facts) -> tuple[Problem, ...]:
    """Everything, the lanes' own findings first. Under a replay all are warnings: a record need not hold every file of the machine."""
    found = (*_grants(facts), *_nodes(facts), *_quick(facts), *_image(facts), *_disk(facts), *_limits(facts))
    return tuple(replace(p, severity="warning") for p in found) if facts.hardware.replayed else found


def error(problems: Sequence[Problem]) -> FlError | None:
    """The errors among them as one FlError, of the worst class: 3 (device), 6 (engine), 7 (image)."""
    errors = [p for p in problems if p.severity == "error"]
    if not errors:
        return None
    codes = {p.code for p in errors}
    kind = HardwareError if codes & _DEVICE else EngineError if codes - _IMAGE else ImageError
    return kind("\n".join(p.message for p in errors), "\n".join(dict.fromkeys(p.remedy for p in errors if p.remedy)))


def _grants(facts: Facts) -> Iterator[Problem]:
    """The lane's findings. Where a CDI spec is missing because it is stale, that is the reason to tell."""
    stale = next(iter(facts.stale.items()), None)
    for problem in facts.grants.problems:
        if problem.code == "no-toolkit" and stale is not None:
            path, gone = stale
            yield replace(
                problem,
                code="cdi-stale",
                message=f"{facts.engine.name} cannot pass the devices: the CDI spec {path} is stale, it names {gone}, which is gone",
                remedy=f"sudo nvidia-ctk cdi generate --output={path}\nfl doctor --fix   does it with your consent",
            )
        else:
            yield problem
    if facts.grants.cdi and facts.named_image:
        yield from _requirement(facts)


def _requirement(facts: Facts) -> Iterator[Problem]:
    """Devices come by CDI, where the engine compares nothing: an image of --image that wants a newer driver starts, and fails later."""
    from fl.lanes.checks import UNMET

    ask, environment = UNMET.get(facts.lane), facts.image_environment
    unmet = None if ask is None or environment is None else ask(environment, facts.hardware, facts.chosen)
    if unmet is None:
        yield Problem(
            code="requirement-unchecked",
            severity="warning",
            lane=facts.lane,
            message="devices come by CDI, where nobody compares the driver with what an image of --image asks for (NVIDIA_REQUIRE_CUDA)",
            remedy=f"{facts.engine.name} image inspect {facts.image.reference}   shows it; fl matrix explain shows the driver",
        )
    elif unmet:
        drivers = ", ".join(f"{key} {value}" for values in facts.hardware.drivers.values() for key, value in values.items() if value)
        yield Problem(
            code="requirement-unmet",
            severity="error",
            lane=facts.lane,
            message=f"the image {facts.image.reference} asks for more than this driver has: {'; '.join(unmet)[:200]} (driver: {drivers})",
            remedy="fl matrix explain   shows which stack fits this driver, and which driver the others need",
        )


def _nodes(facts: Facts) -> Iterator[Problem]:
    """Nodes that this user may not open. A rootful daemon opens them for the container when it may be given their group."""
    if not facts.chosen:
        return
    from fl.lanes.checks import COMPANIONS

    own = [path for a in facts.chosen for path in a.nodes]
    for path in dict.fromkeys((*COMPANIONS.get(facts.lane, ()), *own, *facts.grants.devices)):
        node = facts.hardware.nodes.get(path.partition(":")[0])
        if node is None or node.openable is not False:
            continue
        by_group = node.mode & 0o060 == 0o060 and (node.gid in facts.grants.groups)
        if (
            facts.engine.name == "docker"
            and not facts.engine.rootless
            and node.error != "EPERM"
            and (by_group or node.mode & 0o006 == 0o006)
        ):
            continue
        owner = f"mode {node.mode:04o}, uid {node.uid}, gid {node.gid}"
        yield Problem(
            code="no-permission",
            severity="error",
            lane=facts.lane,
            message=f"{node.path} cannot be opened by this user ({node.error or 'refused'}; {owner})",
            remedy="start this container with the device" if facts.inside else f"sudo usermod -aG {node.gid} $USER   then log in again",
        )


def _quick(facts: Facts) -> Iterator[Problem]:
    """The lane's own checks of what detection saw, for processes of this machine."""
    if not facts.chosen or facts.engine.name != "host":
        return
    from fl.lanes.checks import QUICK

    check = QUICK.get(facts.lane)
    for finding in check(facts.hardware, facts.inside) if check else ():
        if finding.status in ("warning", "error") and not any(
            e.source in facts.hardware.nodes for e in finding.evidence
        ):  # else told above
            severity: Severity = "error" if finding.status == "error" else "warning"
            yield Problem(code=finding.check, severity=severity, lane=facts.lane, message=finding.finding, remedy=finding.remedy)


def _image(facts: Facts) -> Iterator[Problem]:
    if facts.image_platform is not None and facts.image_platform != facts.hardware.platform:
        yield Problem(
            code="image-platform",
            severity="error",
            message=f"the image {facts.image.reference} is for {facts.image_platform}, this machine is {facts.hardware.platform}",
            remedy="fl images build   makes one for this machine\n--engine host   needs none",
        )


def _disk(facts: Facts) -> Iterator[Problem]:
    """Room for what is to be fetched or installed."""
    pulls = facts.image.source == "pull"
    if facts.free is None or not (pulls or facts.installs):
        return
    what = f"the image {facts.image.reference}" if pulls else "the environment"
    wanted, bound = (_LEAST, "at least") if facts.free < _LEAST else (_USUAL, "up to")
    if facts.free < _LEAST or (facts.chosen and facts.free < _USUAL):
        yield Problem(
            code="disk-image" if pulls else "disk-environment",
            severity="error" if wanted is _LEAST else "warning",
            message=f"{what} needs {bound} {wanted / _GIB:.1f} GiB; {facts.where} has {facts.free / _GIB:.1f}",
            remedy=f"df -h {facts.where}\n" + (f"{facts.engine.name} system prune" if pulls else "XDG_CACHE_HOME=/other/disk"),
        )


def _limits(facts: Facts) -> Iterator[Problem]:
    """Locked memory, which collectives over RDMA need, and shared memory, which data loaders and collectives need."""
    host, ranks = facts.engine.name == "host", len(facts.chosen)
    locked = facts.locked if host else facts.engine.hard_limits.get("memlock", resource.RLIM_INFINITY)
    if ranks > 1 and 0 <= locked < _LOCKED:
        yield Problem(
            code="memlock",
            severity="warning",
            lane=facts.lane,
            message=f"at most {locked >> 10} KiB of memory may be locked; collectives of {ranks} devices over RDMA need more",
            remedy="ulimit -l unlimited" if host else f"LimitMEMLOCK=infinity in the unit of the {facts.engine.name} daemon",
        )
    if host and facts.shm is not None and facts.shm < _SHM and (ranks > 1 or facts.workers):
        yield Problem(
            code="shared-memory",
            severity="warning",
            message=f"/dev/shm has {facts.shm >> 20} MiB; {'several ranks' if ranks > 1 else 'data loader workers'} share data there",
            remedy="start this container with --shm-size 16g" if facts.inside else "sudo mount -o remount,size=16G /dev/shm",
        )


def look(facts: Facts) -> Facts:
    """The same with what this machine says; a record is left as it is."""
    if facts.hardware.replayed:
        return facts
    from fl.engines import cdi
    from fl.host import LiveHost
    from fl.surroundings import container

    host = facts.engine.name == "host"
    place = facts.installs if host else facts.engine.storage if facts.image.source == "pull" else None
    there = None if place is None else next((p for p in (Path(place), *Path(place).parents) if os.path.exists(p)), None)  # noqa: PTH110
    return replace(
        facts,
        free=None if there is None else shutil.disk_usage(there).free,
        where=str(there or ""),
        locked=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        shm=_total("/dev/shm") if host else None,
        image_environment=_image_environment(facts) if facts.named_image and facts.grants.cdi else None,
        stale=cdi.stale(cdi.KNOWN_DIRECTORIES) if any(p.code == "no-toolkit" for p in facts.grants.problems) else {},
        inside=container(LiveHost()) if facts.chosen or host else None,
    )


def _image_environment(facts: Facts) -> Mapping[str, str] | None:
    from fl import engines

    try:
        found = engines.get(facts.engine.name).image(facts.image.reference or "")
    except FlError:
        return None  # told where the engine is asked for what it starts
    return None if found is None else found.environment


def _total(path: str) -> int | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_blocks * status.f_frsize
