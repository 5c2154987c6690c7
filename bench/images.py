"""What building training images takes, beside the prototype that the design was made from. Needs docker with buildx.

    python bench/images.py [--base REF] [--cold] [--no-cuda] [--twice]

Every step again with the downloads kept, nothing changed, one pin changed; `--cold`: also from nothing, for which the builder's whole cache
goes, so that other builds on this machine miss it too. Then the newest CUDA row, whole and verified, with its jit variant, in which an
operation of DeepSpeed is compiled, where the disk has room for it; `--twice` builds that row from nothing again and compares the layers.
The images are built under names of their own, which are removed in the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from figures import figure, median, skip

from fl import matrix as rows
from fl import ui
from fl.errors import ImageError
from fl.images import build, context, jit, lock, tags, verify

STACK: Final = "cpu-torch213"
CUDA: Final = "cuda132-torch215"
CUDA_BASE: Final = "flpy:trixie"
"""Debian 13 with Python 3.13 and this machine's certificates."""
OPERATION: Final = "from deepspeed.ops.op_builder import CPUAdamBuilder as B, FusedAdamBuilder as F; B().load(); F().load()"
"""One that the compiler for the processor makes, one that nvcc makes."""
PEER: Final = "the prototype of 2026-11-24 (64 packages, by hand)"
CHANGED: Final = "tqdm"
"""A pin of the last group that much depends on and that has many versions."""

LOCK, NVCC = lock.path, jit.place
"""As they are: a builder puts its own in their place."""


def other_version(entry: str, python: str) -> str:
    """The lock's lines of an older version of the package, with its hashes, from the package index."""
    from uv import find_uv_bin

    from fl import pip_config

    command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-config", "--generate-hashes", "--no-header", "--no-annotate", "--no-deps"]
    command += ["--python-version", python, *pip_config.uv_flags(os.environ), "-"]
    wanted = f"{CHANGED}<{lock.parse(entry)[CHANGED]}\n"
    environment = {**os.environ, **pip_config.uv_environment(os.environ, local_indexes=False)}
    done = subprocess.run(command, input=wanted, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        sys.exit(f"no older {CHANGED} could be locked: {done.stderr.strip()[-300:]}")
    return lock.entries(done.stdout)[CHANGED]


class Builder:
    """Builds one row under a name of its own, from a lock in a folder."""

    def __init__(self, stack: str, base: str, folder: Path) -> None:
        self.matrix = rows.load()
        row = self.matrix.stack(stack)
        found = LOCK(stack, "train", "linux/amd64")
        if found is None:
            sys.exit(f"{stack} has no lock")
        self.row = row.model_copy(update={"id": f"bench-{row.lane}"})
        self.site = context.Site(base=base)
        self.ids: set[str] = set()
        self.file = folder / f"{stack}.txt"
        self.file.write_bytes(found.read_bytes())
        lock.path = lambda *_, **__: self.file
        nvcc = NVCC(row, "linux/amd64")
        if nvcc.is_file():
            named = folder / f"{stack}.jit.txt"
            named.write_text(nvcc.read_text().replace(f"# stack: {stack}\n", f"# stack: {self.row.id}\n"))
            nvcc = named
        jit.place = lambda *_: nvcc

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *_: object) -> None:
        names = [name for variant in (None, jit.VARIANT) for name in (tags.reference(self.row.id, variant=variant), *self.ids)]
        names += [tags.moving(self.row.id, variant=variant) for variant in (None, jit.VARIANT)]
        subprocess.run(["docker", "image", "rm", "-f", *names], capture_output=True, check=False)

    def seconds(self, **options: bool) -> tuple[float, build.Built]:
        """One build, silently: wall time and what was built."""
        ui.say = lambda text="", **_: None  # the steps are no figures
        begin = time.monotonic()
        built = build.build(self.matrix, self.row, site=self.site, options=build.Options(**options))
        self.ids.add(built.id)
        return time.monotonic() - begin, built

    def again(self) -> tuple[float, build.Built]:
        """Every step, with what was downloaded before: another time stamp for what the steps write."""
        os.environ["SOURCE_DATE_EPOCH"] = str(int(time.time()))
        try:
            return self.seconds()
        finally:
            del os.environ["SOURCE_DATE_EPOCH"]

    def change_one_pin(self) -> str:
        """Puts another version of one package into the lock; gives what changed."""
        text = self.file.read_text()
        old = lock.entries(text)[CHANGED]
        new = other_version(old, self.row.python)
        packages = "".join(lock.entries(text.replace(old, new)).values())
        self.file.write_text(packages + f"# {time.time_ns()}: no earlier run's layer is this one\n")
        return f"{CHANGED} {lock.parse(old)[CHANGED]} -> {lock.parse(new)[CHANGED]}"


def absent(image: str) -> bool:
    return bool(subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode)


def main(words: list[str]) -> int:
    base = words[words.index("--base") + 1] if "--base" in words else os.environ.get("FL_TEST_BASE", "flpy:bookworm")
    if shutil.which("docker") is None or absent(base):
        skip("fl images build", f"no docker daemon with the base image {base}")
        return 0
    if context.host_platform() != "linux/amd64":
        skip("fl images build", "the CPU row's lock is for linux/amd64")
        return 0
    print(f"images: {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before it began")
    with tempfile.TemporaryDirectory() as name:
        with Builder(STACK, base, Path(name)) as builder:
            measure(builder, cold="--cold" in words)
        if "--no-cuda" in words or absent(CUDA_BASE):
            skip(f"fl images build {CUDA}", f"not asked for, or no base image {CUDA_BASE}")
            return 0
        with Builder(CUDA, CUDA_BASE, Path(name)) as builder:
            return cuda(builder, cold="--cold" in words, twice="--twice" in words)


def layers_of(image: str) -> list[str]:
    """Digests of an image's layers, the lowest first."""
    command = ["docker", "image", "inspect", "-f", "{{join .RootFS.Layers \" \"}}", image]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def forget() -> None:
    """Empties the builder's cache: steps, downloads, lists of packages. The disk is waited for: the last build may keep it busy."""
    subprocess.run(["docker", "builder", "prune", "--all", "--force"], capture_output=True, check=True)
    os.sync()


def cuda(builder: Builder, *, cold: bool, twice: bool) -> int:
    """The newest CUDA row, whole: built, then verified, a tiny model trained in it on the processor."""
    if cold:
        forget()
    try:
        took, built = builder.seconds(no_cache=twice)
    except ImageError as error:
        if "free" not in error.message:
            raise
        skip(f"fl images build {CUDA}", error.message)
        return 0
    figure(f"fl images build {CUDA}{', cold' if cold else ''}", took, "s", peer=("the prototype, cold, quiet machine", 61))
    figure("size of the image", built.size / 1e9, "GB", peer=("the prototype, trimmed by hand", 6.09))
    begin = time.monotonic()
    report = verify.verify(builder.matrix, builder.row, built.reference)
    figure("fl images verify, two steps trained inside", time.monotonic() - begin, "s")
    for line in report.problems:
        print(f"    {line}")
    took, compiler = builder.seconds(jit=True)
    figure("fl images build --jit after it", took, "s", peer=("the prototype", 5))
    figure("what the jit variant adds", (compiler.size - built.size) / 1e9, "GB", peer=("the prototype", 0.33))
    begin = time.monotonic()
    command = ["docker", "run", "--rm", "--network", "none", "-e", "TORCH_CUDA_ARCH_LIST=9.0", "-e", "DS_ACCELERATOR=cuda"]
    done = subprocess.run([*command, compiler.reference, "python", "-c", OPERATION], capture_output=True, text=True, check=False)
    figure("cpu_adam and fused_adam of DeepSpeed compiled in it", time.monotonic() - begin, "s", peer=("the prototype, each about 30", 60))
    if done.returncode != 0:
        print(f"    {done.stderr.strip().splitlines()[-1]}")
    if twice:
        first = layers_of(built.reference)
        same = [one == other for one, other in zip(first, layers_of(builder.seconds(no_cache=True)[1].reference), strict=True)]
        print(f"    built twice from nothing: {sum(same)} of {len(same)} layers have the same bytes")
        return 1 if report.problems or done.returncode or not all(same) else 0
    return 1 if report.problems or done.returncode else 0


def measure(builder: Builder, cold: bool) -> None:
    if cold:
        forget()
        figure("fl images build, cold, downloads included", builder.seconds()[0], "s")
    took, built = builder.again()
    figure("fl images build, every step, downloads kept", took, "s", peer=(PEER, 36))
    for layer in built.layers:
        print(f"    {layer.size / 1e6:8.1f} MB  {layer.seconds or 0:6.1f} s  {layer.step[:80]}")
    print(f"    of {took:.1f} s {took - sum(one.seconds or 0 for one in built.layers):.1f} s are export, context and the look at the image")
    figure("size of the image without its base", (built.size - built.layers[0].size) / 1e9, "GB", peer=(PEER, 1.57))
    builder.seconds()
    again = median(lambda: builder.seconds()[0], 3)
    figure("fl images build, nothing changed", again, "s", peer=("docker buildx build alone in the prototype", 0.16))
    changed = builder.change_one_pin()
    took, built = builder.seconds()
    figure(f"fl images build, one pin changed ({changed})", took, "s", peer=("the prototype's CUDA image, 46 s busy, 20 s quiet", 46))
    print(f"    {sum(one.size for one in built.layers if one.cached) / 1e6:.1f} of {built.size / 1e6:.1f} MB stayed as they were")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
