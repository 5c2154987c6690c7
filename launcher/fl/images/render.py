"""Dockerfiles, one for each stack and flavor. Offline, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths
from fl.images import templates

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_ENGINES: Final = ("vllm", "vllm-ascend", "sglang")


def flavors(stack: Stack) -> tuple[Flavor, ...]:
    """The images of a row: training, and serving where the row pins an engine and its lane has a template for that."""
    serves = any(version is not None for version in stack.serve.values()) and (paths.IMAGES / template(stack, "serve")).is_file()
    return ("train", "serve") if serves else ("train",)


def template(stack: Stack, flavor: Flavor) -> str:
    """Where a lane's template stands, under images/."""
    kind = "" if flavor == "train" else ".serve" if stack.serve_base is None else ".serve-base"
    return f"{stack.lane}/Dockerfile{kind}.j2"


def base(stack: Stack, flavor: Flavor = "train") -> str:
    """What FROM names: with its digest where the row states one."""
    found = stack.of(flavor).base
    return f"{found.image}@{found.digest}" if found.digest else found.image


def nvidia_require(stack: Stack) -> str:
    """The row's driver range as the container runtime reads it: `>=525.60.13,<600` is `driver>=525.60.13,driver<600`."""
    parts = stack.hosts.driver.get("nvidia", "").split(",")
    return ",".join(f"driver{part.strip()}" for part in parts if part.strip())


def title(stack: Stack, packages: dict[str, str]) -> str:
    """One line for people."""
    runtime = " ".join(f"{name.upper()} {version}" for name, version in sorted(stack.runtime.items()))
    engines = [f"{name} {packages[name]}" for name in _ENGINES if name in packages]
    return ", ".join(part for part in (*engines, runtime, f"torch {packages['torch']}", f"Python {stack.python}") if part)


def dockerfile(
    matrix: Matrix, stack: Stack, flavor: Flavor = "train", base_image: str | None = None, unlocked: tuple[str, ...] = (),
    *, secrets: bool = True,
) -> str:
    """The text of a Dockerfile; `base_image` replaces what FROM names, `unlocked` are requirements that are installed without a hash.

    `secrets`: whether steps that fetch something look for the site's own sources and certificates.
    """
    packages = matrix.packages(stack, flavor)
    values = {
        "stack": stack.of(flavor),
        "flavor": flavor,
        "packages": packages,
        "base": base_image or base(stack, flavor),
        "title": title(stack, packages),
        "nvidia_require": nvidia_require(stack),
        "unlocked": unlocked,
        "secrets": secrets,
    }
    return templates.render(paths.IMAGES, template(stack, flavor), values)


def filename(stack: Stack, flavor: str = "train") -> Path:
    """Where `fl images render --output DIR` puts it, under DIR."""
    return Path(stack.lane) / f"{stack.id}.{flavor}.Dockerfile"
