"""Which groups a process needs to open device nodes, by number: names and numbers differ between host and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl.grants import EngineFacts
from fl.hardware import Hardware, LaneName, Problem


@dataclass(frozen=True, slots=True)
class GroupGrants:
    """Numeric groups, or the flag that keeps the caller's, or why neither works."""

    groups: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def group_grants(paths: Sequence[str], hardware: Hardware, engine: EngineFacts, lane: LaneName) -> GroupGrants:
    """Nodes that everyone may open need no group. Rootless engines map numbers away: crun can keep the caller's groups, others cannot."""
    nodes = [hardware.nodes[path] for path in paths if path in hardware.nodes]
    gids = tuple(sorted({node.gid for node in nodes if node.mode & 0o006 != 0o006 and node.gid != 0}))
    if not gids or engine.name in ("apptainer", "host"):
        return GroupGrants()
    if not engine.rootless:
        return GroupGrants(groups=gids)
    if engine.name == "podman" and engine.crun:
        return GroupGrants(flags=("--group-add=keep-groups",))
    without = "" if engine.name == "docker" else " without crun"
    listed = ", ".join(str(gid) for gid in gids)
    return GroupGrants(
        problems=(
            Problem(
                code="no-permission",
                severity="error",
                lane=lane,
                message=f"the device nodes belong to group {listed}, and rootless {engine.name}{without} cannot pass it",
                remedy="Use `--engine podman` with crun, the rootful engine, or `--engine host`.",
            ),
        )
    )


def missing_nodes(paths: Sequence[str], hardware: Hardware, lane: LaneName, remedy: str) -> tuple[Problem, ...]:
    """Preflight: nodes that the plan passes and that are not there."""
    return tuple(
        Problem(code="nodes-missing", severity="error", lane=lane, message=f"{path} is not on this machine", remedy=remedy)
        for path in paths
        if path not in hardware.nodes
    )
