"""Resolving locks of extras: what stands in a stack's lock is given, so that nothing of it changes; what else is needed is locked.

Metadata only. The stack's packages are said to need nothing, which is true beside their own lock, so torch's index is not asked.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import matrix_rules, whole
from fl.errors import MatrixError
from fl.images import extras, lock, lock_header

if TYPE_CHECKING:
    from fl.matrix import Extra, Matrix, Stack

MACHINE: Final = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
MANYLINUX: Final = "manylinux_2_28"
"""The oldest C library that the layer's wheels run on: a wheel for it runs in every image and on every machine that a stack runs on."""

_OPENING: Final = "error: No solution found when resolving dependencies cause: "


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What stays the same for all extras of a stack."""

    python: str
    platform: str
    until: str | None
    base: Mapping[str, str]
    """Release by name of what is there already."""
    limits: Sequence[str]


def resolve(matrix: Matrix, stack: Stack, platform: str) -> str:
    """The whole text of the file. MatrixError where the stack has no complete lock, or extras fit only one by one."""
    from importlib import metadata

    file = lock.path(stack.id, "train", platform)
    if file is None:
        raise MatrixError(f"{stack.id} has no complete lock for {platform}: extras are locked beside that", f"fl images lock {stack.id}")
    locked = file.read_text(encoding="utf-8")
    question = _question(matrix, stack, platform, locked)
    together, fitting, absent = _together(matrix.extras, question)
    versions = lock.parse(together)
    needs = {name: tuple(sorted(lock.parse(_ask(question, [extra], versions)))) for name, extra in fitting.items()}
    entries = lock.entries(together)
    used = {name for names in needs.values() for name in names}
    made = extras.ExtrasLock(
        stack=stack.id, platform=platform, base=extras.content_sha256(locked), resolver=f"uv {metadata.version('uv')}",
        date=stack.until("train") or "now", needs=needs, absent=absent, sums=lock_header.sums({n: entries[n] for n in used}),
        entries={name: lines for name, lines in entries.items() if name in used},
    )  # fmt: skip
    return extras.render(made)


def write(stack: Stack, platform: str, text: str) -> Path:
    """Puts a file where `extras.read` finds it. MatrixError in an installed fl, whose data is not the project's."""
    lock.of_project()
    target = extras.place(stack, platform)
    whole.write({target: text}, MatrixError, f"fl images lock --extras {stack.id}")
    return target


def _question(matrix: Matrix, stack: Stack, platform: str, locked: str) -> _Question:
    base = lock.parse(locked)
    pins = matrix.packages(stack)
    base |= {name: pins[name] for name in lock.VENDOR if name in pins and name not in base}
    return _Question(
        python=stack.python, platform=platform, until=stack.until("train"),
        base={name: version.partition("+")[0] for name, version in base.items()},
        limits=matrix_rules.constraints(matrix, stack, "train", pins, platform),
    )  # fmt: skip


def _together(wanted: Mapping[str, Extra], question: _Question) -> tuple[str, Mapping[str, Extra], dict[str, str]]:
    """All that fit beside the stack, with what they need: one version of each package, so that a recipe may ask for any of them together.

    The third: those that do not fit even alone, and why. MatrixError where the others fit only one by one.
    """
    try:
        return _ask(question, list(wanted.values())), wanted, {}
    except MatrixError:
        fitting, absent = {}, {}
    for name, extra in wanted.items():
        try:
            _ask(question, [extra])
        except MatrixError as error:
            absent[name] = error.message
        else:
            fitting[name] = extra
    return _ask(question, list(fitting.values())), fitting, absent


def _ask(question: _Question, wanted: Sequence[Extra], chosen: Mapping[str, str] | None = None) -> str:
    """The packages that are needed and not there, with hashes. `chosen`: versions of them that were settled before."""
    from uv import find_uv_bin

    from fl import pip_config

    given = {**question.base, **(chosen or {})}
    told = {"UV_PYTHON_DOWNLOADS": "never", **pip_config.uv_environment(os.environ, local_indexes=False)}
    texts = {
        "in.txt": [f"{name}=={version}" for extra in wanted for name, version in extra.packages.items()],
        "constraints.txt": [*(f"{name}=={version}" for name, version in given.items()), *question.limits],
        "override.txt": sorted({name for extra in wanted for name in extra.loosened}),
        "uv.toml": [_leaf(name, version) for name, version in question.base.items()],
    }
    with tempfile.TemporaryDirectory(prefix="fl-lock-") as name:
        folder = Path(name)
        for file, lines in texts.items():
            (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        command = [find_uv_bin(), *_arguments(question), *pip_config.uv_flags(os.environ)]
        done = subprocess.run(command, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = " ".join(done.stderr.split()).removeprefix(_OPENING)
            raise MatrixError(said[-600:] or "the resolver said nothing")
        return (folder / "lock.txt").read_text(encoding="utf-8")


def _leaf(name: str, version: str) -> str:
    return f'[[dependency-metadata]]\nname = "{name}"\nversion = "{version}"\nrequires-dist = []\n'


def _arguments(question: _Question) -> list[str]:
    words = ["pip", "compile", "--quiet", "--config-file", "uv.toml", "--generate-hashes", "--no-header", "--no-annotate"]
    words += ["--python-version", question.python, "--python-platform", f"{MACHINE[question.platform]}-{MANYLINUX}"]
    words += ["--only-binary", ":all:", "--constraints", "constraints.txt", "--override", "override.txt"]
    words += [word for name in question.base for word in ("--no-emit-package", name)]
    if question.until:
        words += ["--exclude-newer", f"{question.until}T00:00:00Z"]
    return [*words, "in.txt", "-o", "lock.txt"]
