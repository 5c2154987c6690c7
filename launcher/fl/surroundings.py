"""Where this machine is seen from: bare, in a container, under a scheduler."""

from __future__ import annotations

from typing import Final

from fl.host import Host

_MARKS: Final = (
    ("/run/.containerenv", "podman"),
    ("/.dockerenv", "docker"),
    ("/.singularity.d", "apptainer"),
    ("/var/run/secrets/kubernetes.io", "kubernetes"),
)
_MANAGERS: Final = (("kubepods", "kubernetes"), ("docker", "docker"), ("libpod", "podman"), ("/lxc", "lxc"))


def container(host: Host) -> str | None:
    """The kind of container that this is seen from; None: no sign of one."""
    marked = next((kind for path, kind in _MARKS if host.exists(path)), None)
    if marked:
        return marked
    groups = host.read("/proc/1/cgroup").text or ""
    return next((kind for word, kind in _MANAGERS if word in groups), None)
