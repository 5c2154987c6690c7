"""Images as files, for sites without internet: written whole or not at all, and every part looked at before the daemon gets it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from fl.engines import daemon
from fl.errors import ImageError
from fl.images.publish import local

_CHUNK: Final = 1 << 20
_EVERY: Final = 500 << 20
"""Bytes between two lines of progress."""
_JSON: Final = 4 << 20
"""Manifests and configurations are not larger; layers are only hashed."""
_ZIPPED: Final = (".gz", ".tgz")
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_FREE: Final = 1 << 30
"""Bytes that stay free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """An archive that was written."""

    path: str
    names: tuple[str, ...]
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An image in an archive, as its manifest tells it; each layer has the hash that its configuration states."""

    names: tuple[str, ...]
    platform: str
    layers: tuple[str, ...]
    """Hashes of the unpacked layers: what makes two images the same wherever they are kept."""
    size: int
    labels: Mapping[str, str]


def room(folder: Path, wanted: int, what: str) -> None:
    """ImageError where a folder's disk has not this many bytes and some more."""
    place = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    free = shutil.disk_usage(place).free
    if free < wanted + _FREE:
        raise ImageError(
            f"{what} takes about {wanted / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free",
            f"df -h {place}\nanother disk, or: docker system df; docker builder prune",
        )


def save(names: Sequence[str], target: Path, report: Callable[[str], None]) -> Saved:
    """Writes images of this machine into one file that `docker load`, podman and `fl images load` read; compressed where its name
    ends in .gz. A failure leaves nothing behind."""
    size = sum(int(local(name).get("Size", 0)) for name in dict.fromkeys(names))
    zipped = target.suffix in _ZIPPED
    room(target.parent, size // 3 if zipped else size, f"an archive of {', '.join(names)}")
    part = target.with_name(f".{target.name}.part")
    found = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for block in _pack(names, zipped, report):
                found.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = part.stat().st_size
        part.replace(target)
    except OSError as error:
        said = f"{target} cannot be written: {error.strerror}"
        raise ImageError(said, f"df -h {target.parent}\n--output FILE on another disk") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return Saved(path=str(target), names=tuple(names), size=written, sha256=found.hexdigest())


def _pack(names: Sequence[str], zipped: bool, report: Callable[[str], None]) -> Iterator[bytes]:
    """The bytes of `docker save`, compressed or not. ImageError where it fails."""
    command = ["docker", "save", *names]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stderr is not None
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS) if zipped else None
    done = 0
    try:
        while block := process.stdout.read(_CHUNK):
            if done // _EVERY != (done + len(block)) // _EVERY:
                report(f"{(done + len(block)) / 1e6:.0f} MB read from docker")
            done += len(block)
            yield squeeze.compress(block) if squeeze else block
        said = process.stderr.read().decode(errors="replace").strip()
        if process.wait() != 0:
            raise ImageError(f"docker cannot save {', '.join(names)}: {said}", " ".join(command))
        if squeeze:
            yield squeeze.flush()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def examine(file: Path, report: Callable[[str], None]) -> list[Held]:
    """Reads an archive once, unpacks nothing, and compares every layer and configuration with the hashes that are stated for them.

    ImageError names what is damaged.
    """
    try:
        hashes, small, links = _read(file, report)
        manifest = json.loads(small["manifest.json"])
        return [_held(entry, hashes, small, links, file) for entry in manifest]
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(file, f"it ends too early or is no archive ({error})") from error
    except OSError as error:
        raise ImageError(f"{file} cannot be read: {error.strerror or error}", f"ls -l {file}") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(file, f"it is no archive of images ({type(error).__name__}: {error})") from error


def _read(file: Path, report: Callable[[str], None]) -> tuple[dict[str, tuple[str, int]], dict[str, bytes], dict[str, str]]:
    """(name → sha256 and size, small files, links) of a tar, compressed or not."""
    hashes: dict[str, tuple[str, int]] = {}
    small: dict[str, bytes] = {}
    links: dict[str, str] = {}
    with tarfile.open(file, "r|*") as archive:
        for member in archive:
            if member.issym() or member.islnk():
                base = "" if member.islnk() else os.path.dirname(member.name)  # noqa: PTH120 (a name in the archive, no path here)
                links[member.name] = os.path.normpath(f"{base}/{member.linkname}").lstrip("/")
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None:
                continue
            if member.size > _CHUNK:
                report(f"checking {member.name[-20:]}, {member.size / 1e6:.0f} MB")
            hashes[member.name] = _hash(stream, member, small)
    return hashes, small, links


def _hash(stream: IO[bytes], member: tarfile.TarInfo, small: dict[str, bytes]) -> tuple[str, int]:
    found, kept = hashlib.sha256(), b""
    while block := stream.read(_CHUNK):
        found.update(block)
        if member.size <= _JSON:
            kept += block
    if member.size <= _JSON:
        small[member.name] = kept
    return found.hexdigest(), member.size


def _held(
    entry: Mapping[str, Any], hashes: Mapping[str, tuple[str, int]], small: Mapping[str, bytes], links: Mapping[str, str], file: Path
) -> Held:
    """One image of the manifest, compared with its hashes."""
    config = json.loads(small[entry["Config"]])
    stated = hashes[entry["Config"]][0]
    if stated not in entry["Config"]:
        raise _damaged(file, f"the configuration {entry['Config']} has sha256 {stated[:12]}…")
    wanted = [str(one).removeprefix("sha256:") for one in config["rootfs"]["diff_ids"]]
    if len(wanted) != len(entry["Layers"]):
        raise _damaged(file, f"{len(entry['Layers'])} of {len(wanted)} layers are there")
    size = 0
    for name, layer in zip(entry["Layers"], wanted, strict=True):
        place = links.get(name, name)
        if place not in hashes:
            raise _damaged(file, f"the layer {name} is not there")
        if hashes[place][0] != layer:
            raise _damaged(file, f"the layer {name} has sha256 {hashes[place][0][:12]}…, not {layer[:12]}…")
        size += hashes[place][1]
    labels = (config.get("config") or {}).get("Labels") or {}
    platform = f"{config.get('os')}/{config.get('architecture')}"
    return Held(names=tuple(entry.get("RepoTags") or ()), platform=platform, layers=tuple(wanted), size=size, labels=labels)


def _damaged(file: Path, what: str) -> ImageError:
    return ImageError(f"{file} is damaged: {what}. Nothing was loaded.", f"copy it again and compare: sha256sum {file}")


def load(file: Path, report: Callable[[str], None]) -> list[Held]:
    """Gives the images of an archive to the daemon, and looks at what it has then. Nothing is loaded where the file is bad."""
    held = examine(file, report)
    address = daemon.endpoint(os.environ)
    info = daemon.info(address)
    machine = f"{info.get('OSType', 'linux')}/{_MACHINES.get(str(info.get('Architecture')), info.get('Architecture'))}"
    if (place := Path(str(info.get("DockerRootDir", "")))).is_dir():
        room(place, sum(one.size for one in held), f"loading {file}")
    for one in held:
        if one.platform != machine:
            report(f"{', '.join(one.names)} is for {one.platform}, and this daemon runs {machine}")
    command = ["docker", "load", "--quiet", "--input", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        full = "no space left" in done.stderr
        cure = "docker system df\ndocker builder prune" if full else " ".join(command)
        raise ImageError(f"docker cannot load {file}: {done.stderr.strip()}", cure)
    for one in held:
        for name in one.names:
            layers = (local(name).get("RootFS") or {}).get("Layers") or []
            if [str(layer).removeprefix("sha256:") for layer in layers] != list(one.layers):
                raise ImageError(f"docker loaded {name}, and it has other layers than {file}", f"docker image inspect {name}")
    return held
