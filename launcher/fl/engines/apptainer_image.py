"""Images for apptainer: one file each in the cache, made from Docker's store where that has the image, else from its registry."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fl import paths
from fl.engines import ImageFacts, apptainer_errors
from fl.errors import EngineError, ImageError

_ASK: Final = 10.0
_PACE: Final = 5.0
"""Seconds between two words about a conversion that goes on."""
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def place(reference: str, ident: str | None = None) -> Path:
    """The file of an image. Named by Docker's id where that is known, so that an image that was built again is converted again."""
    name = f"{(ident or 'registry').removeprefix('sha256:')[:12]}.sif"
    return paths.cache_home() / "apptainer" / quote(reference, safe="") / name


def named(reference: str) -> Path | None:
    """The file or folder that `--image` names by its path; None for a reference of Docker's kind."""
    return Path(reference).absolute() if reference.startswith(("/", "./", "../")) or reference.endswith(".sif") else None


def find(reference: str) -> ImageFacts | None:
    """What is known of an image: `local` where the file is there, else what it can be made from in Docker's store; None: neither."""
    path = named(reference)
    if path is not None:
        return inspect(reference, path) if path.exists() else None
    known = in_docker(reference)
    if known is not None:
        file = place(reference, known.id)
        return replace(known, file=str(file), local=file.exists())
    made = sorted(place(reference).parent.glob("*.sif"), key=lambda p: p.stat().st_mtime)
    return inspect(reference, made[-1]) if made else None


def in_docker(reference: str) -> ImageFacts | None:
    """The image in Docker's store; None also where no daemon answers."""
    from fl.engines.docker import DockerEngine

    try:
        return DockerEngine().image(reference)
    except EngineError:
        return None


def inspect(reference: str, file: Path) -> ImageFacts:
    """Out of the image itself: apptainer keeps the labels of the image that it was made from."""
    try:
        done = subprocess.run(
            ["apptainer", "inspect", "--json", "--labels", str(file)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_ASK, check=False,
        )  # fmt: skip
        labels = parse_labels(json.loads(done.stdout))
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{file} is not an image that apptainer can read.", f"apptainer inspect {file}\nrm {file}") from error
    architecture = labels.get("org.label-schema.build-arch", "unknown")
    digest = reference.partition("@")[2] or None
    return ImageFacts(
        reference=reference, id=str(file), digest=digest, platform=f"linux/{_ARCHITECTURES.get(architecture, architecture)}",
        labels=labels, file=str(file),
    )  # fmt: skip


def parse_labels(document: Mapping[str, Any]) -> dict[str, str]:
    """Labels of `apptainer inspect --json --labels`. Pure."""
    return {str(k): str(v) for k, v in (document["data"]["attributes"].get("labels") or {}).items()}


def source(reference: str, in_store: bool) -> tuple[str, ...]:
    """Where `apptainer build` takes an image from, with the flags that it needs for that. Pure."""
    if not in_store:
        local = reference.startswith(("127.", "localhost:", "localhost/"))  # as Docker does: no TLS on this machine itself
        return (*(("--no-https",) if local else ()), f"docker://{reference}")
    tail = reference.rsplit("/", 1)[-1]
    return (f"docker-daemon:{reference if ':' in tail or '@' in tail else f'{reference}:latest'}",)


def fetch(reference: str, report: Callable[[str], None], check: Callable[[], None]) -> ImageFacts:
    """Makes the file. A half-made one has another name, and nothing of it stays."""
    if named(reference) is not None:
        raise ImageError(f"There is no image {reference}.", "--image takes a file or folder of apptainer's, or the name of an image")
    known = in_docker(reference)
    target = place(reference, known.id if known else None)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = os.environ.get("APPTAINER_TMPDIR") or target.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".making-", dir=scratch, ignore_cleanup_errors=True) as folder:
            half = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                _build(reference, half, source(reference, known is not None), Path(folder), report, check)
                half.replace(target)
                for older in set(target.parent.glob("*.sif")) - {target}:  # a container that runs from one keeps it open
                    older.unlink(missing_ok=True)
            finally:
                half.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"{reference} cannot be written to {target}: {error.strerror or error}", f"ls -ld {target.parent}") from error
    return replace(known, file=str(target)) if known else inspect(reference, target)


def _build(
    reference: str, half: Path, origin: tuple[str, ...], folder: Path, report: Callable[[str], None], check: Callable[[], None]
) -> None:
    from fl.engines import daemon

    environment = {**os.environ, "APPTAINER_TMPDIR": str(folder)}
    with contextlib.suppress(EngineError):  # the daemon of Docker's context, which apptainer does not read
        environment["DOCKER_HOST"] = daemon.endpoint(os.environ)
    with (folder / "said").open("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            ["apptainer", "build", "--disable-cache", *origin[:-1], str(half), origin[-1]],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True,
        )  # fmt: skip
        started = shown = time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(0.1)
                check()
                if (now := time.monotonic()) - shown >= _PACE:
                    shown = now
                    report(f"making {reference} into a file for apptainer: {now - started:.0f} s")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        said.seek(0)
        if process.returncode != 0:
            raise apptainer_errors.explain_build(said.read(), reference, str(half.parent))
