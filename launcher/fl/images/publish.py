"""From an image on this machine to names in a registry: one push, an index where a stack has several platforms, digests recorded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from fl import __version__, paths
from fl.engines import daemon
from fl.errors import EngineError, ImageError
from fl.images import push, registry, tags

if TYPE_CHECKING:
    from fl.matrix import Flavor, Stack

_SAME: Final = ("fl.stack", "fl.flavor", "fl.variant", "fl.version", "fl.matrix.sha256", "org.opencontainers.image.revision")
"""Labels that the platforms of one index share: it is one release, not what happened to be there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a registry holds after a push. `digest` is the one to pin: that of the index, where there is one."""

    names: tuple[str, ...]
    digest: str
    image: push.Pushed
    platforms: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """Platforms of the row that no image of the same release was pushed for yet."""


def need_docker() -> None:
    """EngineError without docker's command, which runs, saves and loads images; the daemon says of itself when it is not there."""
    if shutil.which("docker") is None:
        raise EngineError("there is no `docker` command on PATH", "install docker's client")
    daemon.info(daemon.endpoint(os.environ))


def local(reference: str) -> Mapping[str, Any]:
    """What the daemon knows of an image. ImageError where it is not there."""
    found = daemon.image(daemon.endpoint(os.environ), reference)
    if found is None:
        raise ImageError(f"the image {reference} is not on this machine", "fl images build STACK")
    return found


def platform_of(inspected: Mapping[str, Any]) -> str:
    """OCI platform of an inspected image."""
    return f"{inspected.get('Os', 'linux')}/{inspected.get('Architecture', 'unknown')}"


def variant_of(inspected: Mapping[str, Any]) -> str | None:
    """Which variant of its stack's image it is; None: the plain one, which most stacks have alone."""
    told = ((inspected.get("Config") or {}).get("Labels") or {}).get("fl.variant")
    return None if told in (None, "plain") else str(told)


def names(stack: Stack, flavor: Flavor, host: str, only_moving: bool, variant: str | None = None) -> tuple[str, ...]:
    """What a push gives an image: the release's name and the moving one."""
    both = (tags.reference(stack.id, flavor, registry=host, variant=variant), tags.moving(stack.id, flavor, host, variant))
    return both[1:] if only_moving else both


def mismatch(inspected: Mapping[str, Any], stack: Stack, flavor: Flavor) -> str | None:
    """Why an image may not go out under a stack's name."""
    labels = (inspected.get("Config") or {}).get("Labels") or {}
    wanted = {"fl.stack": stack.id, "fl.flavor": flavor, "fl.version": __version__}
    wrong = [f"{name} is {labels.get(name, 'absent')}, not {value}" for name, value in wanted.items() if labels.get(name) != value]
    if (have := platform_of(inspected)) not in stack.hosts.platforms:
        wrong.append(f"it is for {have}, the row for {', '.join(stack.hosts.platforms)}")
    return "; ".join(wrong) or None


def publish(
    stack: Stack,
    flavor: Flavor,
    source: str,
    host: str,
    report: Callable[[str], None],
    *,
    only_moving: bool = False,
    silence: float = push.SILENCE,
    retries: int = 2,
) -> Published:
    """Pushes `source` under the stack's names in the registry `host`. Names move only after everything they name has arrived."""
    inspected = local(source)
    if (wrong := mismatch(inspected, stack, flavor)) is not None:
        raise ImageError(f"{source} cannot be pushed as {stack.id}: {wrong}", f"fl images build {stack.id}")
    targets = names(stack, flavor, host, only_moving, variant_of(inspected))
    several = len(stack.hosts.platforms) > 1
    first = tags.of_platform(targets[0], platform_of(inspected)) if several else targets[0]
    with _named(source, first, keep=not several):
        pushed = push.push(first, report, silence=silence, retries=retries)
    holder = registry.Registry(registry.parse(first).host)
    manifest = holder.manifest(registry.parse(f"{first.rsplit(':', 1)[0]}@{pushed.digest}"))
    if manifest is None:
        raise ImageError(f"{holder.host} took {first} and does not have it", "fl images push again")
    if not several:
        for name in targets[1:]:
            holder.put(registry.parse(name), manifest.media_type, manifest.body)
        done = Published(names=targets, digest=pushed.digest, image=pushed, platforms=(pushed.platform,))
    else:
        digest, entries, missing = _index(holder, stack, targets, pushed, manifest)
        have = tuple(f"{e['platform']['os']}/{e['platform']['architecture']}" for e in entries)
        done = Published(names=targets, digest=digest, image=pushed, platforms=have, missing=missing)
    record(stack, flavor, inspected, done)
    return done


def _index(
    holder: registry.Registry, stack: Stack, targets: Sequence[str], pushed: push.Pushed, manifest: registry.Manifest
) -> tuple[str, list[dict[str, Any]], tuple[str, ...]]:
    """Puts an index of the release's images under the names: (its digest, entries, platforms that are missing).

    Another machine may push its platform at the same time: the members are looked up again after the names were given.
    """
    entries, missing = _members(holder, stack, targets[0], pushed, manifest)
    while True:
        kind, body = index(entries)
        digests = {holder.put(registry.parse(name), kind, body) for name in targets}
        before = entries
        entries, missing = _members(holder, stack, targets[0], pushed, manifest)
        if len(entries) <= len(before):
            return digests.pop(), before, missing


def _members(
    holder: registry.Registry, stack: Stack, target: str, pushed: push.Pushed, manifest: registry.Manifest
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The images of one release that the registry has: index entries, and the platforms that are missing."""
    own = registry.parse(target)
    mine = _labels(holder.config(own, manifest))
    entries, missing = [], []
    for platform in stack.hosts.platforms:
        found = manifest if platform == pushed.platform else holder.manifest(registry.parse(tags.of_platform(target, platform)))
        if found is None or {k: _labels(holder.config(own, found)).get(k) for k in _SAME} != {k: mine.get(k) for k in _SAME}:
            missing.append(platform)
            continue
        system, _, machine = platform.partition("/")
        entries.append({
            "mediaType": found.media_type, "digest": found.digest, "size": len(found.body),
            "platform": {"os": system, "architecture": machine},
        })  # fmt: skip
    return entries, tuple(missing)


def _labels(config: Mapping[str, Any]) -> Mapping[str, str]:
    own = config.get("config")
    labels = own.get("Labels") if isinstance(own, Mapping) else None
    return labels if isinstance(labels, Mapping) else {}


def index(entries: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
    """(media type, bytes) of an index of several platforms: docker's own kind where all it names is docker's."""
    kind = registry.LIST if all("docker" in str(entry["mediaType"]) for entry in entries) else registry.INDEX
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": list(entries)}
    return kind, json.dumps(document, indent=1).encode()


def record(stack: Stack, flavor: Flavor, inspected: Mapping[str, Any], done: Published) -> None:
    """Appends what was pushed to `$XDG_STATE_HOME/fl/pushed.jsonl`."""
    labels = (inspected.get("Config") or {}).get("Labels") or {}
    line = {
        "schema": 1, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stack": stack.id, "flavor": flavor, **asdict(done),
        "id": inspected.get("Id"), "lock_sha256": labels.get("fl.lock.sha256"), "matrix_sha256": labels.get("fl.matrix.sha256"),
    }  # fmt: skip
    file = paths.state_home() / "pushed.jsonl"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        said = f"{done.names[0]} was pushed as {done.digest}, but {file} cannot be written: {error.strerror}"
        raise ImageError(said, f"ls -ld {file.parent}") from error


def release(stack: Stack, flavor: Flavor, host: str) -> tuple[str, str, bool]:
    """Gives what the moving name points at the name of this release, in the registry: (name, digest, whether it was new).

    A release's name never moves: ImageError where it is another image's already, or where the image was built by another version.
    """
    source = registry.parse(tags.moving(stack.id, flavor, host))
    target = registry.parse(tags.reference(stack.id, flavor, registry=host))
    holder = registry.Registry(source.host)
    manifest = holder.manifest(source)
    if manifest is None:
        raise ImageError(f"{source.host} has no image {source}", f"fl images push {stack.id}")
    images = [holder.manifest(source.at(str(child["digest"]))) for child in manifest.children] if manifest.children else [manifest]
    for image in images:
        version = _labels(holder.config(source, image)).get("fl.version") if image else None
        if version != __version__:
            raise ImageError(f"{source} was built by fl {version or 'unknown'}, and this is {__version__}", f"fl images build {stack.id}")
    there = holder.manifest(target)
    if there is not None and there.digest != manifest.digest:
        said = f"{target} is {there.digest} already, and a release's name does not move to {manifest.digest}"
        raise ImageError(said, "raise fl's version")
    if there is None:
        holder.put(target, manifest.media_type, manifest.body)
    return str(target), manifest.digest, there is None


def look_up(name: str) -> dict[str, Any]:
    """What a registry and this machine have under a name: digest and platforms, and the local id."""
    parsed = registry.parse(name)
    holder = registry.Registry(parsed.host)
    manifest = holder.manifest(parsed)
    if manifest is None:
        return {"digest": None, "platforms": []}
    found = [child.get("platform") for child in manifest.children] or [holder.config(parsed, manifest)]
    platforms = [f"{one.get('os')}/{one.get('architecture')}" for one in found if isinstance(one, Mapping)]
    return {"digest": manifest.digest, "platforms": platforms}


@contextlib.contextmanager
def _named(source: str, name: str, *, keep: bool) -> Iterator[None]:
    """Another name of an image on this machine. After a failure, or without `keep`, it names again what it named before, or nothing."""
    address, done = daemon.endpoint(os.environ), False
    before = daemon.image(address, name)
    _tag(source, name)
    try:
        yield
        done = True
    finally:
        if name != source and not (done and keep):
            if before is None:
                _untag(name)
            else:
                _tag(str(before["Id"]), name)


def _tag(source: str, target: str) -> None:
    from docker.errors import DockerException
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(target)
    try:
        daemon.client(daemon.endpoint(os.environ), 30).tag(source, repository, tag)
    except DockerException as error:
        raise ImageError(f"{source} cannot be named {target}: {error}", f"docker tag {source} {target}") from error


def _untag(name: str) -> None:
    from docker.errors import DockerException

    with contextlib.suppress(DockerException):
        daemon.client(daemon.endpoint(os.environ), 30).remove_image(name, noprune=True)
