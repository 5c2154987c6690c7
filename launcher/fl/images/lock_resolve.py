"""Resolving locks: uv against the package index that pip uses on this machine, then with the vendor's index that the row names.

Metadata only, nothing is installed and nothing is built. Where the vendor's index cannot be reached, everything but torch is locked.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import matrix_rules, paths
from fl.errors import MatrixError
from fl.images import lock, lock_header

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_MACHINE: Final = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
_GLIBC: Final = ("2.17", "2.28", *(f"2.{minor}" for minor in range(31, 41)))
"""The C libraries that the resolver has a platform for."""
_LEAST: Final = "2.28"
_UNREACHED: Final = re.compile(r"failed to fetch|error sending request|client error \(connect\)|dns error|timed out", re.I)
_PREVIEW: Final = ("--preview-features", "index-exclude-newer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the resolver is asked."""

    stack: Stack
    pins: Mapping[str, str]
    platform: str
    glibc: str | None = None
    """Of the base's system; wheels for newer ones do not count."""
    newer: str | None = None
    """Packages that were uploaded from that day on do not count."""
    constraints: tuple[str, ...] = ()
    """What the matrix's rules ask of packages that the row does not pin."""
    previous: str | None = None
    """A lock whose versions are kept where they still fit."""


def resolve(matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, previous: str | None = None) -> str:
    """The whole text of a lock, header and all. Partial where the index that the row names cannot be reached from here.

    Raises MatrixError with the resolver's reason where no lock can be made.
    """
    stack = stack.of(flavor)
    system = matrix.system(stack)
    pins = matrix.locked(stack, flavor)
    question = Question(
        stack=stack, pins=pins, platform=platform, glibc=system.glibc if system else None, newer=stack.until(flavor), previous=previous,
        constraints=tuple(matrix_rules.constraints(matrix, stack, flavor, pins, platform)),
    )  # fmt: skip
    body, unlocked = _resolved(matrix, question)
    return with_header(matrix, stack, flavor, platform, body, unlocked)


def with_header(
    matrix: Matrix, stack: Stack, flavor: Flavor, platform: str, body: str, unlocked: Sequence[lock_header.Unlocked] = ()
) -> str:
    """A resolver's output under the header that says whose it is."""
    from importlib import metadata

    header = lock_header.Header(
        stack=stack.id, flavor=flavor, platform=platform, row=lock_header.row_sha256(matrix, stack, flavor),
        resolver=f"uv {metadata.version('uv')}", date=stack.until(flavor) or "now", unlocked=tuple(unlocked),
        sums=lock_header.sums(lock.entries(body)),
    )  # fmt: skip
    return lock_header.render(header) + body


def _resolved(matrix: Matrix, question: Question) -> tuple[str, list[lock_header.Unlocked]]:
    """Packages, and those that could not be locked: from the ordinary index, with the row's own, or all but torch."""
    stack = question.stack
    reasons = []
    for place in (None, stack.index) if stack.index else (None,):
        try:
            text = ask(question, matrix.indexes[place].url if place else None)
        except MatrixError as error:
            reasons.append(error.message)
            continue
        wrong = lock.problems(text, question.pins, stack)
        if not wrong:
            return text, []
        reasons.append("; ".join(wrong))
    if stack.index and _UNREACHED.search(reasons[-1]):
        torch = question.pins["torch"]
        reason = f"it and what it requires come from the index {stack.index}, which could not be reached"
        return _without_torch(question), [lock_header.Unlocked(name="torch", version=torch, reason=reason)]
    told = "; then, with the row's own index: ".join(reasons)
    raise MatrixError(f"no lock for {stack.id} on {question.platform}: {told}", "fl images list")


def _without_torch(question: Question) -> str:
    """Everything else, resolved with the ordinary index's build of that release: it asks the same of the rest. Its own runtime goes too."""
    entries = lock.entries(ask(question, None, stand_in=question.pins["torch"].partition("+")[0]))
    text = "".join(lines for name, lines in entries.items() if name not in lock.VENDOR and not lock.CUDA.fullmatch(name))
    wrong = lock.problems(text, {name: version for name, version in question.pins.items() if name != "torch"}, question.stack)
    if wrong:
        raise MatrixError(f"no lock for {question.stack.id} on {question.platform}: {'; '.join(wrong)}", "fl images list")
    return text


def _platform(question: Question) -> str:
    """The resolver's name of the platform: the newest that the base's C library can carry."""
    have = tuple(int(part) for part in (question.glibc or _LEAST).split("."))
    fitting = [known for known in _GLIBC if tuple(int(part) for part in known.split(".")) <= have]
    return f"{_MACHINE[question.platform]}-manylinux_{(fitting or [_LEAST])[-1].replace('.', '_')}"


def _config(question: Question, index: str | None) -> str:
    """uv's own configuration: metadata that it cannot read, and the vendor's index, which tells no upload dates."""
    common = paths.IMAGES / "common"
    text = (common / "dependency-metadata.toml").read_text(encoding="utf-8")
    if question.stack.torch_from == "base":
        text += (common / "vendor-torch.toml").read_text(encoding="utf-8")
    return text + (f'\n[[index]]\nname = "vendor"\nurl = "{index}"\nexclude-newer = false\n' if index else "")


def _command(question: Question, stand_in: str | None) -> list[str]:
    from uv import find_uv_bin

    from fl import pip_config

    command = [find_uv_bin(), "pip", "compile", "--quiet", "--config-file", "uv.toml", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--python-version", question.stack.python, "--python-platform", _platform(question), *_PREVIEW]
    command += [*pip_config.uv_flags(os.environ), "--only-binary", ":all:"]
    command += [word for name in lock.SOURCE_ONLY for word in ("--no-binary", name) if name in question.pins]
    if question.newer:
        command += ["--exclude-newer", f"{question.newer}T00:00:00Z"]
    if question.constraints:
        command += ["--constraints", "constraints.txt"]
    if stand_in:
        command += ["--override", "override.txt"]
    if question.stack.torch_from == "base":
        command += [word for package in sorted(lock.VENDOR) for word in ("--no-emit-package", package)]
    return [*command, "in.txt", "-o", "lock.txt"]


def ask(question: Question, index: str | None, stand_in: str | None = None) -> str:
    """Runs the resolver in a folder of its own, so that no project file around has a say. MatrixError with its reason.

    `stand_in`: the release of torch that stands for the vendor's build, whatever a package asks for.
    """
    from fl import pip_config, wheel

    told = {"UV_PYTHON_DOWNLOADS": "never", **pip_config.uv_environment(os.environ, local_indexes=False)}
    if index:
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    pins = {**question.pins, **({"torch": stand_in} if stand_in else {})}
    with tempfile.TemporaryDirectory(prefix="fl-lock-") as name:
        folder = Path(name)
        (folder / "in.txt").write_text(lock.inputs(pins, wheel.requirements()), encoding="utf-8")
        (folder / "uv.toml").write_text(_config(question, index), encoding="utf-8")
        (folder / "constraints.txt").write_text("".join(f"{line}\n" for line in question.constraints), encoding="utf-8")
        (folder / "override.txt").write_text(f"torch=={stand_in}\n", encoding="utf-8")
        if question.previous is not None:
            (folder / "lock.txt").write_text(question.previous, encoding="utf-8")
        command = _command(question, stand_in)
        done = subprocess.run(command, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MatrixError(_reason(done.stderr))
        return (folder / "lock.txt").read_text(encoding="utf-8")


def _reason(stderr: str) -> str:
    """The resolver's last words on one line."""
    words = " ".join(stderr.split())
    return words[-600:] if words else "the resolver said nothing"
