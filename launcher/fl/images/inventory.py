"""What an image or a lock holds: packages, system packages, layers and sizes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl import paths
from fl.engines import daemon
from fl.errors import ImageError, UsageError
from fl.images import lock, lock_header, render
from fl.images.build_log import OPENING
from fl.images.publish import local, need_docker, platform_of

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_STATUS: Final = "/var/lib/dpkg/status"
_RELEASE: Final = "/usr/lib/os-release"
_LOCK: Final = "/opt/fl/lock.txt"
_MOST: Final = 64 << 20



@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What is known of one side of a comparison, or of a bill of materials."""

    name: str
    kind: str
    """`image` or `lock`."""
    source: str
    """Where the packages were read: `installed`, or `lock`."""
    packages: Mapping[str, str]
    """Normalized name → version."""
    details: tuple[Mapping[str, Any], ...] = ()
    """One entry for each installed package, where it was asked: licence, requirements."""
    system: Mapping[str, str] | None = None
    """Debian package → version; None where it is not known."""
    layers: tuple[tuple[str, int], ...] = ()
    """(what made it, bytes), oldest first."""
    size: int | None = None
    id: str | None = None
    digest: str | None = None
    platform: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    lock_text: str | None = None
    unlocked: tuple[str, ...] = ()
    """What a partial lock lacks."""
    python: str | None = None
    """Full version, where it was asked."""
    release: Mapping[str, str] = field(default_factory=dict)
    """What /etc/os-release says."""


def of(matrix: Matrix, name: str, flavor: Flavor, platform: str) -> Inventory:
    """What a stack's id (`STACK` or `STACK@REVISION`) or the reference of an image on this machine means."""
    stack, _, revision = name.partition("@")
    if stack in {row.id for row in matrix.stacks} or (revision and ":" not in name and "/" not in name):
        return of_lock(matrix, stack, flavor, platform, revision or None)
    near = get_close_matches(name, [row.id for row in matrix.stacks], 1)
    if near and ":" not in name and daemon.image(daemon.endpoint(os.environ), name) is None:
        raise ImageError(f"{name} is neither a stack nor an image on this machine; did you mean {near[0]}?", "fl images list")
    return of_image(name)


def of_lock(matrix: Matrix, stack: str, flavor: Flavor, platform: str, revision: str | None = None) -> Inventory:
    """The lock of an image, as it is or as it was at a revision of this checkout."""
    if revision is None:
        _known(matrix.stack(stack), flavor, platform)
        found = lock.path(stack, flavor, platform, partial=True)
        text = found.read_text(encoding="utf-8") if found else None
        where = stack
    else:
        text, where = _at(revision, lock.filename(stack, flavor, platform)), f"{stack}@{revision}"
    if text is None:
        raise ImageError(f"{where} has no lock for {flavor} on {platform}", f"fl images lock {stack}")
    header = lock_header.parse(text)
    missing = tuple(f"{one.name}=={one.version}" for one in header.unlocked) if header else ()
    return Inventory(
        name=where, kind="lock", source="lock", packages=lock.parse(text), platform=platform, lock_text=text, unlocked=missing
    )


def _known(stack: Stack, flavor: Flavor, platform: str) -> None:
    """ImageError for an image that no row describes."""
    if flavor not in (have := render.flavors(stack)):
        raise ImageError(f"{stack.id} has no {flavor} image: it has {', '.join(have)}", "fl images list")
    if platform not in stack.hosts.platforms:
        said = f"{stack.id} has no lock for {flavor} on {platform}: it is for {', '.join(stack.hosts.platforms)}"
        raise ImageError(said, f"--platform {stack.hosts.platforms[0]}")


def _at(revision: str, filename: str) -> str | None:
    """A lock as it stood at a revision."""
    commit(revision)
    listed = git("ls-tree", "-r", "--name-only", revision, "--", "images")
    found = [line for line in listed.splitlines() if line.endswith(f"/locks/{filename}")]
    return git("show", f"{revision}:{found[0]}") if found else None


def git(*words: str) -> str:
    """Output of git in the checkout. UsageError outside one, and for a revision that it does not have."""
    root = paths.IMAGES.parent
    if not (root / ".git").exists():
        raise UsageError("revisions are known in a checkout of the project only: this fl is an installed one", "git clone, then try again")
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"git cannot be asked: {error.strerror}", "install git") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        what = words[-1].removesuffix("^{commit}") if words[0] == "rev-parse" else " ".join(words)
        raise UsageError(f"git does not know the revision {what}: {last}", "git fetch --unshallow, or another revision")
    return done.stdout


def commit(revision: str) -> str:
    """The commit of a revision; UsageError where there is none."""
    if revision.startswith("-"):
        raise UsageError(f"'{revision}' is no revision", "git log --oneline")
    return git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()


def of_image(reference: str) -> Inventory:
    """Asks an image on this machine: its own Python where that runs, else the lock that it carries. EngineError without docker."""
    need_docker()
    inspected = local(reference)
    config = inspected.get("Config") or {}
    files = _files(reference, (_LOCK, _STATUS, _RELEASE))
    python, told = _installed(reference)
    text = files.get(_LOCK)
    if told is None and text is None:
        raise ImageError(f"{reference} has neither a Python that answers nor {_LOCK}: is it an image of fl?", "fl images list")
    packages = {lock.normalize(str(one["name"])): str(one["version"]) for one in told} if told else lock.parse(text or "")
    status = files.get(_STATUS)
    digests = [str(one).partition("@")[2] for one in inspected.get("RepoDigests") or ()]
    return Inventory(
        name=reference,
        kind="image",
        source="installed" if told else "lock",
        packages=packages,
        details=tuple(told or ()),
        system=debian(status) if status is not None else None,
        layers=layers(reference),
        size=int(inspected.get("Size", 0)),
        id=str(inspected.get("Id")),
        digest=digests[0] if digests else None,
        platform=platform_of(inspected),
        labels=config.get("Labels") or {},
        lock_text=text,
        python=python,
        release=os_release(files.get(_RELEASE, "")),
    )


def os_release(text: str) -> dict[str, str]:
    """Name → value of an os-release file."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def _installed(reference: str) -> tuple[str | None, list[dict[str, Any]] | None]:
    """(Python's version, every distribution that it sees) of an image; None where it has no Python that runs here."""
    script = Path(__file__).with_name("inside_list.py").read_text(encoding="utf-8")
    command = ["docker", "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "", reference, "python3", "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None, None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return str(answer["python"]), list(answer["packages"])
    except (ValueError, KeyError, IndexError):
        return None, None


def _files(reference: str, names: tuple[str, ...]) -> dict[str, str]:
    """Small files out of an image, without running it: so that another machine's platform is no obstacle."""
    from docker.errors import DockerException, NotFound

    client = daemon.client(daemon.endpoint(os.environ), 60)
    found: dict[str, str] = {}
    try:
        container = client.create_container(reference, command=["true"])["Id"]
        try:
            for name in names:
                try:
                    blocks, stat = client.get_archive(container, name)
                except NotFound:
                    continue
                if int(stat.get("size", 0)) > _MOST:
                    continue
                with tarfile.open(fileobj=io.BytesIO(b"".join(blocks))) as archive:
                    member = archive.next()
                    stream = archive.extractfile(member) if member is not None and member.isreg() else None
                    if stream is not None:
                        found[name] = stream.read().decode("utf-8", "replace")
        finally:
            client.remove_container(container, force=True)
    except DockerException as error:
        raise ImageError(f"{reference} cannot be looked into: {error}", f"docker create {reference}") from error
    return found


def debian(status: str) -> dict[str, str]:
    """Package → version of what dpkg says is installed."""
    found = {}
    for block in status.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))
        if lines.get("Status", "").endswith(" installed") and "Package" in lines:
            found[lines["Package"]] = lines.get("Version", "")
    return found


def history(reference: str) -> list[dict[str, Any]]:
    """What docker tells of each step of an image, oldest first."""
    from docker.errors import DockerException

    client: Any = daemon.client(daemon.endpoint(os.environ), 60)
    try:
        return list(reversed(client.history(reference)))
    except DockerException as error:
        raise ImageError(f"docker has no history of {reference}: {error}", f"docker history {reference}") from error


def layers(reference: str) -> tuple[tuple[str, int], ...]:
    """What made each layer that holds something, and its size, oldest first."""
    entries = [(step(str(entry.get("CreatedBy", ""))), int(entry.get("Size", 0))) for entry in history(reference)]
    return tuple((what, size) for what, size in entries if size)


def step(created_by: str) -> str:
    """What a layer's history says, without the shell, the build arguments, the mounts and our steps' opening."""
    text = re.sub(r"--mount=\S+\s*", "", created_by)
    text = re.sub(r"^RUN (\|\d+ .*? )?(/bin/bash -euo pipefail -c|/bin/sh -c) ", "RUN ", text)
    text = re.sub(r"^/bin/sh -c #\(nop\)\s*", "", text)
    text = " ".join(text.replace("# buildkit", "").split())
    return OPENING.sub("", text) or "the base image"
