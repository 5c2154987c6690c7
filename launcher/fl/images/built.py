"""Records of images that were built and found to be right: `images/built/STACK.FLAVOR.PLATFORM.json`, by `fl images verify --record`.

`fl images push --record` adds the digest. They are what docs/images.md tells of digests, sizes and changes: nobody writes one by hand, and
what has no record is unknown there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths
from fl.errors import ImageError, MatrixError
from fl.images import diff, lock, render, tags

if TYPE_CHECKING:
    from fl.images.verify import Report
    from fl.matrix import Flavor, Matrix, Stack

FOLDER: Final = paths.IMAGES / "built"
_SHOWN: Final = 6
"""Changes of packages that the page names; the rest are counted."""
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One image as it was when it was looked at."""

    stack: str
    flavor: str
    platform: str
    version: str
    time: str
    lock_sha256: str
    id: str
    """What docker calls it."""
    base: str | None
    """What it was built on, as its label says."""
    size: int
    """Bytes on the disk of the machine that built it."""
    digest: str | None
    """Of its manifest, where it was pushed."""
    download: int | None
    """Bytes in the registry, where it was pushed."""
    packages: Mapping[str, str]
    changed: tuple[str, ...]
    """What differs from the record of the lock before; empty in a first one."""

    @property
    def key(self) -> Key:
        """Stack, flavor and platform."""
        return self.stack, self.flavor, self.platform


def read(folder: Path = FOLDER) -> dict[Key, Built]:
    """All records. MatrixError names a file that is none."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            values = json.loads(file.read_bytes())
            one = Built(**{key: value for key, value in values.items() if key != "schema"})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise MatrixError(f"{file} is no record of an image: {error}", "fl images verify STACK --record DIR") from error
        found[one.key] = one
    return found


def write(folder: Path, report: Report, version: str, base: str | None) -> Path:
    """Adds or replaces the record of an image that passed. ImageError where it did not: such a one is no record."""
    if report.problems:
        raise ImageError(f"{report.reference} is not recorded: it is not what its lock and its row say", f"fl images build {report.stack}")
    file = lock.path(report.stack, report.flavor, report.platform)
    packages = lock.parse(file.read_text(encoding="utf-8")) if file else {}
    size = next(int(one["bytes"]) for one in report.sizes if one["kind"] == "image")
    before = read(folder).get((report.stack, report.flavor, report.platform))
    same = before if before is not None and before.id == report.id else None
    return _save(folder, Built(
        stack=report.stack, flavor=report.flavor, platform=report.platform, version=version, time=report.time, size=size, id=report.id,
        base=base, lock_sha256=report.lock_sha256, digest=same.digest if same else None,
        download=same.download if same else None, packages=packages, changed=changes(before, packages, report, size),
    ))  # fmt: skip


def add_digest(folder: Path, key: Key, image: str, digest: str, download: int) -> Path:
    """What a push tells of an image that was recorded. ImageError where no record is of it."""
    found = read(folder).get(key)
    if found is None or found.id != image:
        raise ImageError(f"{folder} has no record of this image of {key[0]}", f"fl images verify {key[0]} --record {folder}")
    return _save(folder, replace(found, digest=digest, download=download))


def _save(folder: Path, made: Built) -> Path:
    target = folder / f"{made.stack}.{made.flavor}.{made.platform.replace('/', '-')}.json"
    part = folder / f".{target.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"schema": 1, **asdict(made)}, indent=1) + "\n", encoding="utf-8")
        os.replace(part, target)  # noqa: PTH105
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ImageError(f"{target} cannot be written: {error.strerror}", f"ls -ld {folder}") from error
    return target


def changes(before: Built | None, packages: Mapping[str, str], report: Report, size: int) -> tuple[str, ...]:
    """What differs from the record before, in words; what the record of the same lock told stays."""
    if before is None:
        return ()
    if before.lock_sha256 == report.lock_sha256:
        return tuple(before.changed)
    told = [f"{one.name} {one.before or 'none'} → {one.after or 'none'}" for one in diff.changes(before.packages, packages)]
    if abs(size - before.size) >= 1e6:
        told.append(f"{(size - before.size) / 1e6:+.0f} MB")
    return tuple(told)


def page(matrix: Matrix, records: Mapping[Key, Built]) -> str:
    """The table of docs/images.md: every image that a row describes. Pure but for reading locks."""
    lines = ["| image | platform | status | versions | lock | digest | size | what changed |", "|---" * 8 + "|"]
    for stack in matrix.stacks:
        for flavor in render.flavors(stack):
            for platform in stack.hosts.platforms:
                lines.append(_line(matrix, stack, flavor, platform, records.get((stack.id, flavor, platform))))
    return "\n".join(lines)


def _line(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, record: Built | None) -> str:
    file = lock.path(stack.id, flavor, platform)
    locked = lock.sha256(file) if file else None
    packages = matrix.packages(stack, flavor)
    told = (name for name in ("torch", "transformers", "trl", "vllm", "sglang") if name in packages)
    versions = [f"Python {stack.of(flavor).python}", *(f"{name} {packages[name]}" for name in told)]
    shown = f"`{locked[:12]}`" if locked else "partial" if lock.path(stack.id, flavor, platform, partial=True) else "none yet"
    name = tags.reference(stack.id, flavor)
    cells = [f"`{name}`", platform, stack.status, ", ".join(versions), shown, *_recorded(record, locked, stack.of(flavor).base.image)]
    return "| " + " | ".join(cells) + " |"


def _recorded(record: Built | None, locked: str | None, base: str) -> tuple[str, str, str]:
    """Digest, size, changes; `unknown` where nobody recorded them."""
    if record is None:
        return "unknown", "unknown", "unknown"
    size = f"{record.size / 1e9:.2f} GB" + (f", download {record.download / 1e9:.2f} GB" if record.download else "")
    old = "" if record.lock_sha256 == locked else f", with lock `{record.lock_sha256[:12]}`"
    old += "" if record.base == base else f", on another base: {record.base or 'unknown'}"
    digest = f"`{record.digest[:19]}`" if record.digest else "not pushed"
    return digest, f"{size} ({record.time[:10]}{old})", _few(record.changed)


def _few(changed: Iterable[str]) -> str:
    told = list(changed)
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return ", ".join(told[:_SHOWN]) + more if told else "first record"
