"""The jit variant of a training image: nvcc and a C++ compiler beside it, so that operations of DeepSpeed and torch compile on first use.

nvcc comes from the package index, in the version of the toolkit that torch's own wheels name: its packages are locked beside the stack's
lock, one file a stack and platform. Stacks whose toolkit is older than CUDA 13 have none: there the index has nvcc's parts, and not nvcc.
Nor has one whose lock holds another toolkit's code generator already.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths, pip_config, whole
from fl.errors import MatrixError, UsageError
from fl.images import extras, extras_resolve, lock, lock_header

if TYPE_CHECKING:
    from fl.matrix import Flavor, Stack

VARIANT: Final = "jit"
_TOOLKIT: Final = "cuda-toolkit"
_GENERATOR: Final = "nvidia-nvvm"
"""What nvcc calls to make code: of the same toolkit as nvcc."""
_PARTS: Final = {"nvcc": "nvidia-cuda-nvcc", "crt": "nvidia-cuda-crt", "cccl": "nvidia-cuda-cccl"}
"""Of the toolkit: the compiler, its headers, and those that CUDA's own refer to."""
_TITLE: Final = "# nvcc and what it needs, beside a stack's lock. Written by `fl images lock --jit`, never by hand."


def place(stack: Stack, platform: str) -> Path:
    """Where the lock of a stack's nvcc stands, made or not."""
    return paths.IMAGES / stack.lane / "locks" / VARIANT / f"{stack.id}.{platform.replace('/', '-')}.txt"


def toolkit(stack: Stack, platform: str) -> str | None:
    """The version of the toolkit whose nvcc a stack can have. None where its lock holds no toolkit or another one's code generator, or
    is not complete."""
    file = lock.path(stack.id, "train", platform)
    versions = {} if file is None else lock.parse(file.read_text(encoding="utf-8"))
    found = versions.get(_TOOLKIT)
    return found if found is not None and _same(versions.get(_GENERATOR, found), found) else None


def _same(one: str, other: str) -> bool:
    """Whether two versions are of one toolkit: 13.0.88 and 13.0.3."""
    return one.split(".")[:2] == other.split(".")[:2]


def refusal(stack: Stack) -> UsageError:
    """Why a stack has no such variant."""
    why = "it takes a lock with CUDA's toolkit 13 or later, and no other toolkit's parts"
    remedy = f"fl images build {stack.id}\nfl images lock --jit --check   tells the stacks that have one"
    return UsageError(f"{stack.id} has no jit variant: {why}", remedy)


def need(stack: Stack, flavor: Flavor, platform: str) -> extras.ExtrasLock:
    """The lock of a stack's nvcc. UsageError for a stack that has no such variant, MatrixError for a lock that is not the resolver's."""
    if flavor != "train":
        raise UsageError(f"the jit variant is one of training images, not of {flavor}", f"fl images build {stack.id} --jit")
    if toolkit(stack, platform) is None:
        raise refusal(stack)
    found = list(findings(stack, platform))
    made = _parsed(stack, platform)
    if found or made is None:
        told = "\n".join(f"  {one}" for one in found)
        raise MatrixError(f"{place(stack, platform).name} is not what the resolver wrote\n{told}", f"fl images lock --jit {stack.id}")
    return made


def _parsed(stack: Stack, platform: str) -> extras.ExtrasLock | None:
    file = place(stack, platform)
    return extras.parse(file.read_text(encoding="utf-8")) if file.is_file() else None


def text(stack: Stack, platform: str) -> str:
    """What the step of the variant installs; nothing where there is no lock: then `need` has refused it, or it is not built."""
    file = place(stack, platform)
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def packages(stack: Stack, platform: str) -> dict[str, str]:
    """What the variant holds beside its stack's lock: name → version."""
    return lock.parse(text(stack, platform))


def findings(stack: Stack, platform: str) -> Iterator[str]:
    """What is wrong with the lock of a stack's nvcc, offline; a stack that has no such variant needs none."""
    base, made = lock.path(stack.id, "train", platform), _parsed(stack, platform)
    if toolkit(stack, platform) is None or base is None:
        if place(stack, platform).is_file():
            yield "a lock of nvcc for a stack that has no jit variant"
        return
    if made is None:
        yield "its header is broken" if place(stack, platform).is_file() else "no lock of nvcc"
        return
    text = base.read_text(encoding="utf-8")
    if (made.stack, made.platform) != (stack.id, platform):
        yield f"its header says {made.stack} on {made.platform}"
    if made.base != extras.content_sha256(text):
        yield "the stack's own lock is another one by now"
    now = lock_header.sums(made.entries)
    yield from (f"{name}: changed by hand" for name in sorted(made.sums.keys() | now.keys()) if made.sums.get(name) != now.get(name))
    yield from (f"{name}: no hash" for name, lines in made.entries.items() if "--hash=sha256:" not in lines)
    yield from (f"{name}: the stack has it already" for name in sorted(made.entries.keys() & lock.parse(text).keys()))


def resolve(stack: Stack, platform: str) -> str:
    """The text of the lock. What the stack's lock holds stays as it is. MatrixError with the resolver's reason."""
    from importlib import metadata

    file, version = lock.path(stack.id, "train", platform), toolkit(stack, platform)
    if file is None or version is None:
        raise MatrixError(f"{stack.id} on {platform} has no complete lock with {_TOOLKIT}", f"fl images lock {stack.id}")
    text = file.read_text(encoding="utf-8")
    entries = lock.entries(_ask(stack, platform, lock.parse(text), version))
    made = extras.ExtrasLock(
        stack=stack.id, platform=platform, base=extras.content_sha256(text), resolver=f"uv {metadata.version('uv')}",
        date=stack.until("train") or "now", needs={VARIANT: tuple(sorted(entries))}, absent={}, sums=lock_header.sums(entries),
        entries=entries,
    )  # fmt: skip
    return _TITLE + "\n" + extras.render(made).split("\n", 1)[1]


def _ask(stack: Stack, platform: str, base: dict[str, str], version: str) -> str:
    """nvcc's packages with their hashes, those that the stack has left out."""
    from uv import find_uv_bin

    command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-config", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["--python-version", stack.python, "--python-platform", f"{extras_resolve.MACHINE[platform]}-{extras_resolve.MANYLINUX}"]
    command += ["--only-binary", ":all:", "--constraints", "constraints.txt", *pip_config.uv_flags(os.environ)]
    command += [word for name in base for word in ("--no-emit-package", name)]
    command += ["--exclude-newer", f"{day}T00:00:00Z"] if (day := stack.until("train")) else []
    told = {"UV_PYTHON_DOWNLOADS": "never", **pip_config.uv_environment(os.environ, local_indexes=False)}
    with tempfile.TemporaryDirectory(prefix="fl-lock-") as name:
        folder = Path(name)
        parts = ",".join(part for part, package in _PARTS.items() if package not in base)
        (folder / "in.txt").write_text(f"{_TOOLKIT}[{parts}]=={version}\n", encoding="utf-8")
        pins = "".join(f"{package}=={pin}\n" for package, pin in base.items())
        pins += f"{_GENERATOR}=={'.'.join(version.split('.')[:2])}.*\n"
        (folder / "constraints.txt").write_text(pins, encoding="utf-8")
        command += ["in.txt", "-o", "lock.txt"]
        done = subprocess.run(command, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MatrixError(f"no nvcc for {stack.id} on {platform}: {' '.join(done.stderr.split())[-600:]}", "fl images list")
        return (folder / "lock.txt").read_text(encoding="utf-8")


def write(stack: Stack, platform: str, text: str) -> Path:
    """Puts a lock where `need` finds it. MatrixError in an installed fl, whose data is not the project's."""
    lock.of_project()
    target = place(stack, platform)
    whole.write({target: text}, MatrixError, f"fl images lock --jit {stack.id}")
    return target
