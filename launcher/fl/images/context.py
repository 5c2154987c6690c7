"""What a build gets to see: Dockerfile, lock, our wheel, uv, wheels that no index has, and what the site says, in a temporary folder."""

from __future__ import annotations

import os
import platform as machine
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths, pip_config, wheel
from fl import settings as settings_of_caller
from fl.errors import EngineError, ImageError, MatrixError
from fl.images import bytecode, groups, jit, lock, lock_check, render

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

MACHINES: Final = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
"""The kernel's names of machines, and OCI's."""
_WHEELS_OF: Final = {"linux/amd64": "x86_64-manylinux_2_28", "linux/arm64": "aarch64-manylinux_2_28"}
"""uv's names of platforms."""
_SCRIPTS: Final = (paths.IMAGES / "common" / "trim.sh", Path(bytecode.__file__))
"""What every step runs in the end. One folder a step, so that a step depends on nothing that another one needs."""
SECRET: Final = "index"
"""The file of the build's folder that travels as a secret, where the site has its own addresses."""
_OPEN: Final = frozenset({"UV_INDEX_STRATEGY", "UV_INSECURE_HOST", "UV_HTTP_TIMEOUT"})
"""What may lie in the builder's cache: no addresses, which may hold a password or a token."""
_OF_THIS_MACHINE: Final = frozenset({"UV_FIND_LINKS", "SSL_CERT_FILE", "SSL_CLIENT_CERT", "UV_SYSTEM_CERTS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the caller says about this site beyond pip's configuration."""

    base: str | None = None
    """Replaces what FROM names."""
    links: tuple[Path, ...] = ()
    """Folders of wheels that no index has."""
    ca: Path | None = None
    """Certificates that the package index is checked against."""
    allow_unlocked: bool = False
    """Also from a partial lock: what it lacks is installed without a hash."""


def host_platform() -> str:
    """OCI platform of this machine, e.g. `linux/amd64`."""
    return MACHINES.get(machine.machine(), f"linux/{machine.machine()}")


def check_platform(stack: Stack, told: str | None) -> str:
    """The platform to build for: the one that was told, else this machine's. ImageError where the row has no such one."""
    platform = told or host_platform()
    if platform in stack.hosts.platforms:
        return platform
    known = ", ".join(stack.hosts.platforms)
    near = get_close_matches(platform, stack.hosts.platforms, 1) or list(stack.hosts.platforms[:1])
    what = f"'{told}' is no platform of {stack.id}" if told else f"{stack.id} has no image for this machine ({platform})"
    raise ImageError(f"{what}: it has {known}", f"fl images build {stack.id} --platform {near[0]}")


def tell_site(
    settings: pip_config.PipSettings, told: Mapping[str, str], ca: Path | None, root: Path, uv: Path, known: frozenset[str] = frozenset()
) -> None:
    """Writes what the site's package sources need as shell lines with uv's variables: nothing of it stays in the image.

    Addresses, unless they are `known` to everybody, are the secret `index` in `root`. The rest goes beside uv, where it costs nothing
    (BuildKit 0.13 reads all layers below a step with a secret): certificates as `ca`, variables as `site`. Folders of this machine are
    left out, the builder cannot see them.
    """
    kept = {name: value for name, value in told.items() if name not in _OF_THIS_MACHINE}
    remote = [url for url in settings.extra_index_urls if pip_config.local_path(url) is None]
    vendor = [url for url in told.get("UV_EXTRA_INDEX_URL", "").split() if url not in settings.extra_index_urls]
    kept["UV_EXTRA_INDEX_URL"] = " ".join([*vendor, *remote])
    links = [link for link in settings.find_links if pip_config.local_path(link) is None]
    kept["UV_FIND_LINKS"] = ",".join(["/media", *links]) if links else ""
    public = {name for name, value in kept.items() if name in _OPEN or known.issuperset(value.split())}
    _write_variables(root / SECRET, {name: value for name, value in kept.items() if name not in public})
    shown = {name: kept[name] for name in public}
    if ca is not None:
        shutil.copyfile(ca, uv / "ca")
        shown["SSL_CERT_FILE"] = "/mnt/ca"
    _write_variables(uv / "site", shown)


def _write_variables(file: Path, values: Mapping[str, str]) -> None:
    """Shell lines that export what has a value; no file without any."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(values.items()) if value]
    if lines:
        file.write_text("".join(lines), encoding="utf-8")
        file.chmod(0o600)


def _link(file: Path, target: Path) -> None:
    """A hard link, or a copy where the file lies on another file system; with its time stamp."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


def take_wheels(sources: Iterable[Path], versions: Mapping[str, str], folder: Path) -> list[str]:
    """Puts the wheels that a lock names from local find-links folders into `folder`; gives their distributions' names."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    taken = []
    for source in sources:
        for file in sorted(source.glob("*.whl")) if source.is_dir() else [source]:
            try:
                name, version, _, _ = parse_wheel_filename(file.name)
            except InvalidWheelFilename:
                continue
            if versions.get(name) in (str(version), version.public) and not (folder / file.name).exists():
                _link(file, folder / file.name)
                taken.append(str(name))
    return taken


def take_foreign_uv(folder: Path, entry: str, platform: str) -> None:
    """Puts another platform's uv into `folder`: the one that the lock names, with its hashes."""
    from uv import find_uv_bin

    with tempfile.TemporaryDirectory(prefix="fl-uv-") as name:
        requirements = Path(name) / "uv.txt"
        requirements.write_text(entry, encoding="utf-8")
        command = [find_uv_bin(), "pip", "install", "--quiet", "--no-config", "--no-deps", "--require-hashes", "--target", f"{name}/out"]
        command += ["--python-platform", _WHEELS_OF[platform], "--requirements", str(requirements)]
        environment = {**os.environ, **pip_config.uv_environment(os.environ)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise EngineError(f"uv for {platform} cannot be fetched: {last}", f"build on a machine that is {platform}")
        shutil.copyfile(f"{name}/out/bin/uv", folder / "uv")
    (folder / "uv").chmod(0o755)


def take_uv(folder: Path) -> None:
    """Puts uv's binary into `folder`: the one of the installed package, against the hash that its RECORD states."""
    import hashlib
    from base64 import urlsafe_b64encode
    from importlib import metadata

    from uv import find_uv_bin

    binary = Path(find_uv_bin())
    data = binary.read_bytes()
    digest = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    recorded = [file.hash for file in metadata.files("uv") or () if file.name == "uv" and file.hash]
    if not any(one.mode == "sha256" and one.value == digest for one in recorded):
        raise EngineError(f"uv at {binary} is not the one that its package installed", "python -m pip install --force-reinstall uv")
    _link(binary, folder / "uv")


def need_lock(stack: Stack, flavor: Flavor, platform: str, *, allow_unlocked: bool = False) -> Path:
    """The lock of an image; MatrixError where there is none or a partial one: it cannot be built, and nothing stands in for it."""
    found = lock.path(stack.id, flavor, platform, partial=True)
    if found is None:
        index = stack.of(flavor).index
        where = f"the index {index}" if index else "its package index"
        raise MatrixError(
            f"{stack.id} has no lock for {platform}: it can be made where {where} can be reached", f"fl images lock {stack.id}"
        )
    lock_check.refuse_partial(found, stack.id, allow=allow_unlocked)
    return found


def prepare(
    matrix: Matrix, stack: Stack, flavor: Flavor, root: Path, site: Site, platform: str | None = None
) -> tuple[Path, dict[str, Path]]:
    """Fills `root`: the context, the named contexts and the secrets, all but what `complete` adds. Gives (context, named contexts)."""
    platform = platform or host_platform()
    locked = need_lock(stack, flavor, platform, allow_unlocked=site.allow_unlocked)
    text = locked.read_text(encoding="utf-8")
    missing = {one.name: one.version for one in lock_check.refuse_partial(locked, stack.id, allow=site.allow_unlocked)}
    context = root / "context"
    folders = {"uv": root / "uv", "wheels": root / "wheels"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    _tell(matrix, stack.of(flavor), {**lock.parse(text), **missing}, root, folders, site)
    base = site.base or settings_of_caller.load().mirrors.image(render.base(stack, flavor))
    unlocked = tuple(f"{name}=={version}" for name, version in missing.items())
    dockerfile = render.dockerfile(matrix, stack, flavor, base, unlocked, secrets=(root / SECRET).exists())
    steps = groups.folders(dockerfile)
    for name in steps:
        (context / name).mkdir(parents=True)
        for script in _SCRIPTS:
            shutil.copyfile(script, context / name / script.name)
    (context / "Dockerfile").write_text(dockerfile, encoding="utf-8")
    parts = {**groups.split(text, steps), "full": text}
    if jit.VARIANT in steps:
        parts[jit.VARIANT] = jit.text(stack, platform)
    for name, part in parts.items():
        (context / name / "lock.txt").write_text(part, encoding="utf-8")
    if missing:
        pins = "".join(f"{name}=={version}\n" for name, version in lock.parse(text).items())
        (context / "full" / "constraints.txt").write_text(pins, encoding="utf-8")
    shutil.copyfile(lock.BUILD_CONSTRAINTS, context / "full" / "build-constraints.txt")
    return context, folders


def complete(context: Path, folders: Mapping[str, Path], platform: str | None = None) -> None:
    """Adds what every build takes and that is large: our own code as a wheel, and uv. Then no file's time tells when it was written."""
    wheel.pack(context / "own")
    if platform in (None, host_platform()):
        take_uv(folders["uv"])
    else:
        take_foreign_uv(folders["uv"], lock.entries((context / "full" / "lock.txt").read_text(encoding="utf-8"))["uv"], platform)
    for file in (*context.rglob("*"), *(folders["uv"] / name for name in ("ca", "site"))):
        if file.is_file():
            stamp(file)


def stamp(file: Path) -> None:
    """Gives a file a time that its content alone decides. The builder takes again what has another size or time than before: all of it,
    our wheel too, if the time were that of writing, and nothing, whatever changed, if it were the same for all."""
    import hashlib

    moment = int.from_bytes(hashlib.sha256(file.read_bytes()).digest()[:7], "big")
    os.utime(file, ns=(moment, moment))


def _tell(matrix: Matrix, stack: Stack, versions: Mapping[str, str], root: Path, folders: Mapping[str, Path], site: Site) -> None:
    """Takes the wheels that no index has, and tells the steps where the others are."""
    settings = pip_config.read(os.environ)
    taken = take_wheels([*site.links, *settings.folders()], versions, folders["wheels"])
    told = pip_config.uv_environment(os.environ)
    if stack.index and "torch" not in taken and stack.torch_from == "index":
        told["UV_EXTRA_INDEX_URL"] = f"{matrix.indexes[stack.index].url} {told.get('UV_EXTRA_INDEX_URL', '')}".strip()
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    certificates = site.ca or (Path(settings.cert) if settings.cert else None)
    tell_site(settings, told, certificates, root, folders["uv"], frozenset(one.url for one in matrix.indexes.values()))
