"""What fl keeps on the disk and nothing needs: found first, removed in a second step. Everything here can be made or fetched again.

In use is what a run that goes on names in its plan. Not needed is what no lock, code or row of this fl leads to and no run has used for
some days; what belongs to this fl is kept however long it was not used.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fl import __version__, builtin, doctor_cache, modelscope, paths, run_status, runs
from fl.errors import EngineError, UsageError
from fl.images import lock, tags
from fl.matrix import Matrix
from fl.run_status import RunStatus

_DAY: Final = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """Something that can go. `image` is docker's id of it; then `path` is only its name."""

    kind: str
    path: Path
    size: int
    why: str
    image: str | None = None

    def to_json(self) -> dict[str, Any]:
        """One entry of `--json`."""
        return {"kind": self.kind, "path": str(self.path), "bytes": self.size, "why": self.why}


@dataclass(frozen=True, slots=True)
class Use:
    """What the runs say of the folders that they used."""

    going: tuple[str, ...]
    """Plans of runs that are not over."""
    last: tuple[tuple[float, str], ...]
    """(when, plan) of all runs."""

    def in_use(self, path: Path) -> bool:
        """Whether a run that goes on names it."""
        return any(str(path) in plan for plan in self.going)

    def idle_since(self, path: Path) -> float:
        """When it was made or a run last named it."""
        named = [when for when, plan in self.last if str(path) in plan]
        try:
            return max([path.stat().st_mtime, *named])
        except OSError:
            return max(named, default=0.0)


def use(statuses: Iterable[RunStatus]) -> Use:
    """Reads the plans of all runs."""
    known = [(status, _plan(status.folder)) for status in statuses]
    return Use(
        tuple(plan for status, plan in known if not status.over), tuple((status.ended or status.created, plan) for status, plan in known)
    )


def _plan(folder: Path) -> str:
    try:
        return (folder / "plan.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def find(matrix: Matrix, used: Use, days: float) -> list[Waste]:
    """Everything that can go, the largest first. `days`: how long nothing has used it; 0: however short."""
    limit = time.time() - days * _DAY
    found = [*_environments(matrix, used, limit), *_code(used, limit), *_compiled(matrix, used, limit), *_models(used, limit)]
    found += [*_downloads(used, limit), *_apptainer(used, limit), *_images(limit)]
    found += _extras(matrix, used, limit)
    return sorted(found, key=lambda one: (-one.size, str(one.path)))


def _entries(name: str) -> Iterator[Path]:
    try:
        yield from sorted((paths.cache_home() / name).iterdir())
    except OSError:
        return


def _unused(kind: str, name: str, used: Use, limit: float, why: Callable[[Path], str | None]) -> Iterator[Waste]:
    """Entries of a folder of the cache that have a reason to go, are in no use and were idle long enough."""
    for path in _entries(name):
        reason = why(path)
        if reason is not None and not used.in_use(path) and used.idle_since(path) <= limit:
            yield Waste(kind=kind, path=path, size=size(path), why=reason)


def _environments(matrix: Matrix, used: Use, limit: float) -> Iterator[Waste]:
    from fl.engines import environment

    broken = {left.path: left.why for left in doctor_cache.find(paths.cache_home() / "environments")}
    for path, reason in broken.items():
        if not used.in_use(path):
            yield Waste(kind="environment", path=path, size=size(path), why=reason)
    rows = [(stack, flavor, platform) for stack in matrix.stacks for flavor in ("train", "serve") for platform in stack.hosts.platforms]
    files = [(stack, lock.path(stack.id, flavor, platform)) for stack, flavor, platform in rows]
    ours = {environment.location(file, stack.python) for stack, file in files if file is not None}

    def why(path: Path) -> str | None:
        if path in ours or path in broken or not path.is_dir():
            return None
        return "made from a lock that this fl does not have"

    yield from _unused("environment", "environments", used, limit, why)


def _code(used: Use, limit: float) -> Iterator[Waste]:
    from fl import wheel

    mine = wheel.code_sha256()[:16]
    yield from _unused("code", "code", used, limit, lambda path: None if path.name == mine else "another version of the trainer's code")


def _extras(matrix: Matrix, used: Use, limit: float) -> Iterator[Waste]:
    from fl import extras

    ours = {one.folder for stack in matrix.stacks for platform in stack.hosts.platforms for one in extras.locked(matrix, stack, platform)}

    def why(path: Path) -> str | None:
        if path.name.startswith("."):
            return "an installation that was interrupted"
        return None if path.with_suffix("") in ours else "made from a lock of extras that this fl does not have"

    yield from _unused("extra", "extras", used, limit, why)


def _compiled(matrix: Matrix, used: Use, limit: float) -> Iterator[Waste]:
    """Compilers' caches are named STACK-MARK-CHIP; the mark is a lock's or an image's, and of images nobody keeps a list."""
    marks = {lock.sha256(file)[:12] for file in paths.IMAGES.glob("*/locks/*.txt")}
    stacks = {stack.id for stack in matrix.stacks}

    def why(path: Path) -> str | None:
        stack = next((name for name in stacks if path.name.startswith(f"{name}-")), None)
        if stack is None:
            return "compiled for a stack that the matrix does not have"
        mark = path.name.removeprefix(f"{stack}-").split("-")[0]
        return None if mark in marks else "compiled for another lock or image than today's"

    yield from _unused("compiled", "compiled", used, limit, why)


def _models(used: Use, limit: float) -> Iterator[Waste]:
    known = {builtin.folder(package) for package in builtin.PACKAGES.values()}

    def why(path: Path) -> str | None:
        if path.name.startswith(".fetch-"):
            return "a download that was interrupted"
        return None if path in known else "a built-in model that this fl does not have"

    yield from _unused("model", "models", used, limit, why)
    yield from _unused("converted", "converted", used, limit, lambda path: "weights converted from a GGUF file")


def _downloads(used: Use, limit: float) -> Iterator[Waste]:
    """What ModelScope's client left; a repository that is whole has another name, and stays as the hub's cache does."""
    for path in sorted(modelscope.root().glob("*/*/*/*.partial")):
        if not used.in_use(path) and used.idle_since(path) <= limit:
            yield Waste(kind="model", path=path, size=size(path), why="a download that was interrupted")


def _apptainer(used: Use, limit: float) -> Iterator[Waste]:
    """Apptainer's image files are named by the reference that they were made from."""
    from urllib.parse import unquote

    def why(path: Path) -> str | None:
        name = unquote(path.name).rsplit("/", 1)[-1]
        return None if not name.startswith("fl-") or name.endswith(f"-{__version__}") else "an image of another version of fl"

    yield from _unused("image", "apptainer", used, limit, why)


def _images(limit: float) -> Iterator[Waste]:
    """Images of fl in docker's store that have lost their name to a newer build, or are of another version of fl."""
    answer = _docker("image", "ls", "--all", "--filter", "label=fl.stack", "--no-trunc", "--format", "{{json .}}")
    if answer is None:
        return
    ids = dict.fromkeys(json.loads(line)["ID"] for line in answer.splitlines() if line.strip())
    told = _docker("image", "inspect", *ids) if ids else None
    for image in json.loads(told) if told else ():
        why = image_waste(image)
        made = _seconds(str(image.get("Created", "")))
        if why is not None and made <= limit:
            name = next(iter(image.get("RepoTags") or ()), str(image["Id"])[7:19])
            yield Waste(kind="image", path=Path(name), size=int(image.get("Size") or 0), why=why, image=str(image["Id"]))


def image_waste(image: Mapping[str, Any]) -> str | None:
    """Why an image of fl can go; None: it stays. One with a digest may be what a project's fl.lock names. Pure."""
    labels = (image.get("Config") or {}).get("Labels") or {}
    if image.get("RepoDigests"):
        return None
    if not image.get("RepoTags"):
        return f"{labels.get('fl.stack')}: a newer build has its name"
    names = {tags.reference(str(labels.get("fl.stack")), str(labels.get("fl.flavor", "train"))).rsplit("/", 1)[-1]}
    version = labels.get("fl.version")
    if version not in (None, __version__) and not any(str(tag).rsplit("/", 1)[-1] in names for tag in image["RepoTags"]):
        return f"{labels.get('fl.stack')}: of fl {version}"
    return None


def _seconds(created: str) -> float:
    """Seconds since 1970 of docker's time; 0 for an image built for reproduction, and for what cannot be read."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(created[:19] + "+00:00").timestamp()
    except ValueError:
        return 0.0


def _docker(*words: str) -> str | None:
    """docker's answer; None where it is not there or does not answer."""
    try:
        done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def remove(found: Iterable[Waste]) -> list[Waste]:
    """Removes them one by one; those that went. EngineError names what the system does not let go."""
    gone = []
    for one in found:
        if one.image is not None:
            if _docker("image", "rm", one.image) is None:
                continue  # a container has it
        else:
            _discard(one.path)
        gone.append(one)
    return gone


def _discard(path: Path) -> None:
    """Out of the way by one rename, so that nobody finds half of it; then removed."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        path.rename(old)
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    except OSError as error:
        raise EngineError(f"{path} cannot be removed: {error.strerror}", f"ls -ld {path.parent}") from error


def remove_runs(statuses: Iterable[RunStatus]) -> list[Waste]:
    """Removes run folders. UsageError, and nothing is removed, where one of the runs goes on."""
    statuses = list(statuses)
    for status in statuses:
        if not status.over:
            raise UsageError(f"{status.name} goes on: it is {status.state}", f"fl stop {status.name}")
    from fl import run_stop

    removed = []
    for status in statuses:
        if runs.read_state(status.folder) is not None:
            run_stop.clean(status)  # the container of a run whose launcher died
        removed.append(Waste(kind="run", path=status.folder, size=size(status.folder), why=status.state))
        _discard(status.folder)
    return removed


def size(path: Path) -> int:
    """Bytes on the disk, links not followed, files with several names counted once."""
    try:
        facts = path.lstat()
    except OSError:
        return 0
    if not path.is_dir() or path.is_symlink():
        return facts.st_blocks * 512
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                told = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - a hundred thousand files
            except OSError:
                continue
            seen[told.st_dev, told.st_ino] = told.st_blocks * 512
    return sum(seen.values())


def size_text(count: int) -> str:
    """`1.4 GB`, `23 MB`, `4 kB`."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}" if limit == 1e9 else f"{count / limit:.0f} {unit}"
    return f"{count} B"


def all_use() -> Use:
    """The use that all runs of this machine's user tell."""
    return use(run_status.list_runs())
