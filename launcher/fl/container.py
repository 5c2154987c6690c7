"""The argv of `docker run` and `podman run`: devices, groups, mounts, limits, user. Pure; plan.py asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fl import mounts, paths
from fl.grants import EngineFacts, Mount

if TYPE_CHECKING:
    from fl.plan import Request

# Wanted limits; -1 is unlimited. Many shards and workers; pinned memory; deep autograd stacks.
_ULIMITS = {"memlock": -1, "nofile": 1048576, "stack": 67108864}
_LOG_OPTIONS = {
    "docker": ("--log-driver", "json-file", "--log-opt", "max-size=20m", "--log-opt", "max-file=3"),
    "podman": ("--log-driver", "k8s-file", "--log-opt", "max-size=20mb"),
}
MEMORY_POLICY = paths.IMAGES / "common" / "seccomp-memory-policy.json"
"""Refuses what docker's own profile refuses of an ordinary user, but for the memory policy calls."""
_SHM_MIB = 16384
"""Shared memory for data loaders and collectives; half of the memory where that is less (docker's own 64 MB is not enough)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """What a container is started with, beside the program."""

    arguments: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    options: Mapping[str, object] = field(
        default_factory=lambda: {"shm_size": None, "ipc": None, "ulimits": {}, "network": "host", "security": []}
    )


def identity(name: str, home: str) -> dict[str, str]:
    """What programs ask for before getpwuid; torch's inductor cache and HCCL fail without."""
    return {"HOME": home, "LOGNAME": name, "USER": name}


def describe(request: Request, environment: Mapping[str, str]) -> Box:
    """The container of a request."""
    limits = ulimits(request.engine)
    shm = f"{min(_SHM_MIB, (request.hardware.cpu.memory_mib or 2 * _SHM_MIB) // 2)}m"
    security = ["no-new-privileges", *request.grants.security]
    if request.grants.memory_policy and request.engine.name == "docker":  # podman's own profile allows these calls
        security.append(f"seccomp={MEMORY_POLICY}")
    if request.engine.selinux:
        security.append("label=disable")  # relabelling the user's folders would outlive the run
    options: dict[str, object] = {
        "shm_size": None if request.grants.ipc == "host" else shm,
        "ipc": request.grants.ipc,
        "ulimits": limits,
        "network": request.network,
        "security": security,
    }
    binds = container_mounts(request)
    return Box(arguments=tuple(_arguments(request, environment, binds, options, limits, security)), mounts=binds, options=options)


def _arguments(
    request: Request,
    environment: Mapping[str, str],
    binds: tuple[Mount, ...],
    options: Mapping[str, object],
    limits: Mapping[str, int],
    security: list[str],
) -> Iterator[str]:
    grants, engine = request.grants, request.engine
    yield from (engine.name, "run", "--detach", "--name", f"fl-{request.run}")
    yield from ("--label", f"fl.run={request.run}", "--label", f"fl.stack={request.stack}", "--init", "--pull", "never")
    # Rootless: root inside is the caller outside. Rootful: the caller's own ids.
    yield from ("--user", "0:0" if engine.rootless else f"{request.caller.uid}:{request.caller.gid}")
    yield from (a for group in grants.groups for a in ("--group-add", str(group)))
    yield from (a for node in grants.devices for a in ("--device", node))
    yield from (a for name in grants.cdi for a in ("--device", name))
    if grants.gpus is not None:
        yield from ("--gpus", grants.gpus)
    yield from grants.flags
    yield from ("--ipc", grants.ipc) if grants.ipc else ("--shm-size", str(options["shm_size"]))
    yield from (a for name, value in limits.items() for a in ("--ulimit", f"{name}={value}" if value < 0 else f"{name}={value}:{value}"))
    yield from (a for value in security for a in ("--security-opt", value))
    yield from ("--network", request.network)
    yield from _LOG_OPTIONS[engine.name]
    yield from (a for mount in binds for a in ("--mount", mount_option(mount)))
    yield from (a for name in sorted(environment) for a in ("--env", f"{name}={environment[name]}"))
    yield from ("--workdir", request.folder, "--entrypoint", "", request.image.reference or "")


def mount_option(mount: Mount) -> str:
    """The value of `--mount`, which fails where the source is missing (`--volume` would make a folder owned by root)."""
    return csv_record(("type=bind", f"source={mount.source}", f"target={mount.target}", *(("readonly",) if mount.read_only else ())))


def csv_record(fields: Sequence[str]) -> str:
    """One line of CSV, as the engines read lists in a flag: any path or value can be said in it."""
    return ",".join('"' + f.replace('"', '""') + '"' if any(c in f for c in ',"\n\r') else f for f in fields)


def ulimits(engine: EngineFacts) -> dict[str, int]:
    """The wanted limits, lowered to what the engine may grant: asking for more fails the start."""
    result = {}
    for name, wanted in _ULIMITS.items():
        most = engine.hard_limits.get(name)
        result[name] = most if most is not None and most >= 0 and (wanted < 0 or most < wanted) else wanted
    return result


def container_mounts(request: Request) -> tuple[Mount, ...]:
    """Everything the container sees, merged; the caller's paths are checked, the vendor's and our own are known."""
    own = [Mount(source=path, target=path, read_only=False) for path in (request.folder, request.cache, *request.outputs)]
    ours = [*([] if request.code is None else [request.code]), *(str(extra.folder) for extra in request.extras)]
    code = [Mount(source=path, target=path) for path in ours]
    for mount in (*request.inputs, *own):
        mounts.refuse(mount.target)
    users = [Mount(source=f"{request.folder}/{name}", target=f"/etc/{name}") for name in ("passwd", "group")]
    return (*mounts.merge([*request.inputs, *own, *code]), *request.grants.mounts, *users)
