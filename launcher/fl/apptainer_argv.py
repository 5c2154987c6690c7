"""The argv of `apptainer exec`: no daemon, no image of its own store, so a plan names a file and the processes are the caller's own. Pure.

With --containall /dev holds only what is bound, so nodes bound one by one isolate on every version. Only NVIDIA's libraries need more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from fl.container import Box, container_mounts, csv_record
from fl.grants import Mount

if TYPE_CHECKING:
    from fl.plan import Request

MARK: Final = "FL_RUN"
"""Every process of the run carries it, so that it is found again: --cleanenv keeps the caller's own variables out."""
SCRATCH: Final = "apptainer"
"""Folder in the run's own folder behind /tmp: apptainer's own is a tmpfs of 64 MB for an ordinary user."""


def describe(request: Request, environment: Mapping[str, str]) -> Box:
    """The container of a request. Limits and groups are the caller's; shared memory is a tmpfs without a limit of its own."""
    binds = container_mounts(request)
    options: dict[str, object] = {
        "shm_size": None,
        "ipc": None,
        "ulimits": {},
        "network": "none" if request.network == "none" else "host",
        "security": ["no-privs"],
    }
    return Box(arguments=tuple(_arguments(request, environment, binds)), mounts=binds, options=options)


def _arguments(request: Request, environment: Mapping[str, str], binds: tuple[Mount, ...]) -> Iterator[str]:
    grants = request.grants
    yield from ("apptainer", "exec", "--containall", "--cleanenv", "--no-eval", "--no-privs")
    if request.network == "none":
        yield from ("--net", "--network", "none")
    yield from grants.flags
    yield from (a for name in grants.cdi for a in ("--device", name))
    yield from ("--home", environment["HOME"], "--workdir", f"{request.folder}/{SCRATCH}")
    # A node keeps its name: apptainer skips the others without failing, so lanes do not ask for that.
    yield from (a for node in grants.devices for a in ("--mount", mount_option(Mount(source=node, target=node, read_only=False))))
    yield from (a for mount in binds for a in ("--mount", mount_option(mount)))
    yield from (a for name in sorted(environment) if name != "HOME" for a in ("--env", variable(name, environment[name])))
    yield from ("--pwd", request.folder, request.image.file or "")


def mount_option(mount: Mount) -> str:
    """The value of `--mount`: any path can be said with it (`--bind` cuts at commas and colons), and a missing source fails the start."""
    fields = ("type=bind", f"source={mount.source}", f"destination={mount.target}", *(("ro",) if mount.read_only else ()))
    return csv_record(fields)


def variable(name: str, value: str) -> str:
    """The value of `--env`. With one `=` in it it is taken as it is, its outer quotes lost; with more it is a CSV record of variables."""
    text = f"{name}={value}"
    if "=" in value:
        return csv_record((text,))
    return csv_record((text, text)) if value.endswith('"') else text
