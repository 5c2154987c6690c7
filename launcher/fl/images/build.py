"""Builds images with `docker buildx build`: the context in a temporary folder, progress as lines, errors with what failed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import __version__, paths, ui
from fl.errors import EngineError, ImageError, Interrupted
from fl.images import lock, render, tags
from fl.images.context import Site, host_platform, need_lock, prepare

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_NOISE: Final = re.compile(r"#\d+ (sha256:|transferring|DONE|CACHED|extracting)|#\d+ \d+\.\d+( *$|  [+-] )|^$")
"""Progress lines that tell nobody anything: bytes, and each package that was installed."""
_PLUMBING: Final = re.compile(r"--mount=\S+ +")
_WIDTH: Final = 160
_FULL: Final = re.compile(r"no space left on device|disk quota exceeded", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image that was built: its names, its id and what it took."""

    reference: str
    moving: str
    id: str
    size: int
    """Bytes."""


def argv(stack: Stack, context: Path, folders: Mapping[str, Path], labels: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """The build command. Pure: `folders` are named contexts, `labels` build arguments; secrets are the files that stand in the context's
    parent."""
    command = ["docker", "buildx", "build", "--progress=plain", "--provenance=false", "--load", "--target", "run"]
    for name, folder in folders.items():
        command += ["--build-context", f"{name}={folder}"]
    for name, value in labels.items():
        command += ["--build-arg", f"{name}={value}"]
    for secret in ("index", "ca"):
        file = context.parent / secret
        if file.is_file():
            command += ["--secret", f"id={secret},src={file}"]
    for name in names:
        command += ["--tag", name]
    return [*command, str(context)]


def _revision() -> str:
    """The commit of a checkout, or `unknown`: an installed fl does not know, whatever repository it lies in."""
    if not (paths.IMAGES.parent / "pyproject.toml").is_file():
        return "unknown"
    command = ["git", "-C", str(paths.IMAGES.parent), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def ask_daemon() -> None:
    """Raises EngineError where no docker daemon answers or it cannot build."""
    if shutil.which("docker") is None:
        raise EngineError("images are built with docker, and there is no `docker` on PATH", "install docker with buildx")
    questions = {"version": "the docker daemon does not answer", "buildx version": "docker has no buildx"}
    for question, what in questions.items():
        command = ["docker", *question.split()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{what}: no answer in 30 s", "docker info") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise EngineError(f"{what}: {last}", "docker info" if question == "version" else "install docker's buildx plugin")


def _short(line: str) -> str:
    """A step without its mounts, and not longer than a line of a log."""
    text = _PLUMBING.sub("", line.rstrip())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def failure(lines: Sequence[str]) -> str:
    """The failing step and its last lines out of plain progress: BuildKit repeats them between two rules at the end."""
    rules = [number for number, line in enumerate(lines) if line.rstrip() == "------"]
    if len(rules) >= 2:
        block = [line.rstrip() for line in lines[rules[-2] + 1 : rules[-1]]]
    else:
        block = [line.rstrip() for line in lines if not _NOISE.match(line)][-12:]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return "\n".join([_short(line) for line in block[:1]] + block[1:][-12:] + [line[-_WIDTH:] for line in errors[-1:]])


def _run(command: Sequence[str]) -> None:
    """Runs the build, a line for each that says something. Raises ImageError, or Interrupted after the build has been stopped."""
    lines: list[str] = []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if not _NOISE.match(line):
                ui.say("  " + ui.clean(_short(line)))
        code = process.wait()
    except KeyboardInterrupt as error:
        process.terminate()
        process.wait()
        raise Interrupted("the build was interrupted") from error
    if code == 0:
        return
    text = "\n".join(lines)
    if _FULL.search(text):
        raise ImageError(f"the disk of the docker daemon is full\n{failure(lines)}", "docker builder prune -f\ndocker system df")
    raise ImageError(f"the build failed (docker buildx build, exit {code})\n{failure(lines)}", _remedy(text))


def _remedy(text: str) -> str:
    """What to type for the usual causes."""
    if "failed to resolve source metadata" in text or "failed to do request" in text:
        return "docker login, or a base image that is there: fl images build STACK --base REF"
    if "Hash mismatch" in text:
        return "the package index serves another file than the one that was locked"
    if re.search(r"there (is|are) no versions? of|was not found in the|Because .* has no wheels", text):
        return "a folder with the wheels that no index has: fl images build STACK --find-links DIR"
    if "UnknownIssuer" in text or "certificate" in text:
        return "the site's certificates: pip config set global.cert FILE, or fl images build STACK --ca FILE"
    return "the lines above say what failed"


def build(matrix: Matrix, stack: Stack, flavor: Flavor = "train", *, site: Site | None = None, registry: str | None = None) -> Built:
    """Builds one image for this machine's platform. Raises MatrixError without a lock, EngineError without a daemon, ImageError."""
    site = site or Site()
    locked = need_lock(stack, flavor, host_platform(), allow_unlocked=site.allow_unlocked)
    ask_daemon()
    names = (tags.reference(stack.id, flavor, registry=registry), tags.moving(stack.id, flavor, registry=registry))
    labels = {
        "FL_VERSION": __version__,
        "FL_REVISION": _revision(),
        "FL_LOCK_SHA256": lock.sha256(locked),
        "FL_MATRIX_SHA256": matrix.sha256,
    }
    if "SOURCE_DATE_EPOCH" in os.environ:
        labels["SOURCE_DATE_EPOCH"] = os.environ["SOURCE_DATE_EPOCH"]
    with tempfile.TemporaryDirectory(prefix="fl-build-") as name:
        context, folders = prepare(matrix, stack, flavor, Path(name), site)
        ui.step(f"build {names[0]} from {site.base or render.base(stack)}")
        _run(argv(stack, context, folders, labels, names))
    return inspect(names)


def inspect(names: tuple[str, str]) -> Built:
    """Id and size of what was built."""
    done = subprocess.run(["docker", "image", "inspect", "-f", "{{.Id}} {{.Size}}", names[0]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImageError(f"the build ended, but {names[0]} is not there: {done.stderr.strip()}", "docker images")
    identity, size = done.stdout.split()
    return Built(reference=names[0], moving=names[1], id=identity, size=int(size))
