"""Builds images with `docker buildx build`: the context in a temporary folder, names only after a look at what was built."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fl import __version__, paths, ui
from fl.engines import daemon
from fl.errors import EngineError, ImageError, Interrupted, Terminated, UsageError
from fl.images import build_log, inputs, inventory, jit, lock, render, tags
from fl.images.archive import room
from fl.images.context import MACHINES, SECRET, Site, check_platform, complete, need_lock, prepare
from fl.images.publish import local, platform_of

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

_MADE: Final = re.compile(r"(RUN|COPY|ADD|WORKDIR)\b")
_NO_BUILDX: Final = re.compile(r"is not a docker command|^unknown flag", re.M)
"""What docker says of `docker buildx build` where it has no buildx."""
_WAITS: Final = (5.0, 20.0)
"""Seconds before the tries after the first."""
_ROOM: Final = {True: 15_000_000_000, False: 6_000_000_000}
"""Bytes that a cold build took at its peak (wheels, unpacked layers, their copies): with CUDA's wheels, and without."""
_AGAIN: Final = 2_000_000_000
"""Bytes for a build where the image is there already and only some layers change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to build, beside what the site says."""

    platform: str | None = None
    """OCI platform; None: this machine's."""
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    """As `docker buildx build` takes them."""
    jit: bool = False
    """The variant with a compiler for CUDA."""
    attest: bool = False
    """BuildKit's provenance beside the image, where the builder can."""
    no_cache: bool = False
    """Runs every step again. The builder empties its cache mounts for that, so downloads are made again too."""
    retries: int = 2
    check_disk: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer, the step that made it, and how long that took now; None: it is the base's."""

    step: str
    size: int
    """Bytes, unpacked."""
    seconds: float | None
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image that was built: its names, its id and what it took."""

    reference: str
    moving: str
    id: str
    size: int
    """Bytes."""
    platform: str
    layers: tuple[Layer, ...]


def argv(
    stack: Stack, context: Path, folders: Mapping[str, Path], arguments: Mapping[str, str], labels: Mapping[str, str], options: Options
) -> list[str]:
    """The build command. Pure: `folders` are named contexts; the secret is a file in the context's parent.

    No name is given here: the image's digests are written beside the context, and it is named after it was looked at.
    """
    command = ["docker", "buildx", "build", "--progress=plain", "--load", "--target", "run", f"--metadata-file={context.parent / 'built'}"]
    command.append("--attest=type=provenance,mode=max" if options.attest else "--provenance=false")
    if options.platform is not None:
        command += ["--platform", options.platform]
    for name, folder in folders.items():
        command += ["--build-context", f"{name}={folder}"]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for name, value in labels.items():
        command += ["--label", f"{name}={value}"]
    if (secret := context.parent / SECRET).is_file():
        command += ["--secret", f"id={SECRET},src={secret}"]
    command += ["--no-cache"] if options.no_cache else []
    command += [word for place in options.cache_from for word in ("--cache-from", place)]
    command += [word for place in options.cache_to for word in ("--cache-to", place)]
    return [*command, str(context)]


def _git(*words: str) -> str:
    """Output of git in a checkout; empty outside one: an installed fl does not know, whatever repository it lies in."""
    if not (paths.IMAGES.parent / "pyproject.toml").is_file():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(paths.IMAGES.parent), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def revision() -> str:
    """The commit of a checkout, `-dirty` where tracked files differ from it; `unknown` without one."""
    commit = _git("rev-parse", "--verify", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def source_url(remote: str) -> str | None:
    """The address of a repository for a label: what anybody can open, without a password; None where there is none."""
    match = re.fullmatch(r"(?:https://(?:[^/@]*@)?|git@|ssh://git@)([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?", remote)
    return f"https://{match[1]}/{match[2]}" if match else None


def provenance(stack: Stack, base: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Labels that say where an image comes from: the same for two builds of one commit."""
    when = environ.get("SOURCE_DATE_EPOCH") or _git("show", "-s", "--format=%ct", "HEAD")
    told = {"org.opencontainers.image.source": source_url(_git("remote", "get-url", "origin"))}
    if when.isdigit():
        told["org.opencontainers.image.created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(when)))
    digest = base.partition("@")[2] or (stack.base.digest if base == stack.base.image else None)
    told["org.opencontainers.image.base.digest"] = digest or _digest_here(base)
    return {name: value for name, value in told.items() if value}


def _digest_here(base: str) -> str | None:
    """The digest that the daemon knows a base by; None for one that never was in a registry, or is not here."""
    found = daemon.image(daemon.endpoint(os.environ), base) or {}
    return next((str(one).partition("@")[2] for one in found.get("RepoDigests") or ()), None)


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


def need_platform(platform: str) -> None:
    """EngineError where there is no builder (`ask_daemon` knows why), ImageError where it cannot run programs of this platform.

    What the daemon's own machine runs is not asked for: the question would take longer than a build in which nothing changed.
    """
    try:
        told = daemon.info(daemon.endpoint(os.environ))
    except EngineError:
        ask_daemon()
        raise
    if shutil.which("docker") is not None and MACHINES.get(str(told.get("Architecture"))) == platform:
        return
    ask_daemon()
    done = subprocess.run(["docker", "buildx", "inspect"], capture_output=True, text=True, check=False, timeout=60)
    known = {name.strip(" *") for line in re.findall(r"^Platforms:\s*(.*)$", done.stdout, re.M) for name in line.split(",")}
    if known and platform not in known:
        raise ImageError(
            f"this builder runs {', '.join(sorted(known))}, not {platform}",
            f"build on a machine that is {platform}, or install qemu-user-static and binfmt-support here; then: docker buildx ls",
        )


def need_room(text: str, there: bool) -> None:
    """ImageError where the daemon's disk is too full for a build from this lock. A daemon elsewhere is not asked."""
    place = Path(str(daemon.info(daemon.endpoint(os.environ)).get("DockerRootDir", "")))
    if place.is_dir():
        cold = _ROOM[any(lock.CUDA.fullmatch(name) for name in lock.parse(text))]
        room(place, _AGAIN if there else cold, "the build")


def _run(command: Sequence[str], base: str) -> build_log.Log:
    """Runs the build and shows its steps. Raises ImageError, or what interrupted it after the build has been stopped."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    assert process.stdout is not None
    with build_log.View() as view:
        try:
            for line in process.stdout:
                view.add(line)
            code = process.wait()
        except KeyboardInterrupt as error:
            raise Interrupted("the build was interrupted; no name was given") from error
        except Terminated as error:
            raise Terminated("the build was terminated; no name was given") from error
        finally:
            _stop(process)
    if code != 0:
        if _NO_BUILDX.search("\n".join(view.log.lines[:5])):
            ask_daemon()
        raise build_log.explain(view.log.lines, code, base, lacks_python)
    return view.log


def lacks_python(base: str, wanted: str) -> bool:
    """True where a base image that is on this machine answers, and has no Python of that version on its PATH."""
    version = "import sys; print(*sys.version_info[:2], sep=chr(46))"
    find = f"for one in python{wanted} python3 python; do $one -c '{version}'; done 2>/dev/null; true"
    command = ["docker", "run", "--rm", "--pull", "never", "--network", "none", "--entrypoint", "", base, "sh", "-c", find]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and wanted not in done.stdout.split()


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends the client, which ends the build in the daemon."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _try(command: Sequence[str], base: str, retries: int) -> build_log.Log:
    """Runs the build, again after failures of the network: what was downloaded stays in the builder's caches."""
    for attempt in range(retries):
        try:
            return _run(command, base)
        except build_log.Passing as error:
            wait = _WAITS[min(attempt, len(_WAITS) - 1)]
            ui.warning(f"{error.message.splitlines()[-1]} Trying again in {wait:g} s")
            time.sleep(wait)
    return _run(command, base)


def build(
    matrix: Matrix,
    stack: Stack,
    flavor: Flavor = "train",
    *,
    site: Site | None = None,
    registry: str | None = None,
    options: Options | None = None,
) -> Built:
    """Builds one image and names it. Raises UsageError, MatrixError without a lock, EngineError without a daemon, ImageError.

    A build that fails, or makes something else than was asked for, leaves the names where they were.
    """
    site, options = site or Site(), options or Options()
    if flavor not in render.flavors(stack):
        raise UsageError(f"{stack.id} has no {flavor} image: it has {', '.join(render.flavors(stack))}", "fl images list")
    platform = check_platform(stack, options.platform)
    locked = need_lock(stack, flavor, platform, allow_unlocked=site.allow_unlocked)
    variant = jit.VARIANT if options.jit else None
    if variant:
        jit.need(stack, flavor, platform)
    need_platform(platform)
    names = (tags.reference(stack.id, flavor, registry=registry, variant=variant), tags.moving(stack.id, flavor, registry, variant))
    if options.check_disk:
        address, plain = daemon.endpoint(os.environ), tags.reference(stack.id, flavor, registry=registry)
        there = any(daemon.image(address, name) is not None for name in dict.fromkeys((names[0], plain)))
        need_room(locked.read_text(encoding="utf-8"), there)
    arguments = {
        "FL_VERSION": __version__,
        "FL_REVISION": revision(),
        "FL_LOCK_SHA256": lock.sha256(locked),
        "FL_MATRIX_SHA256": matrix.sha256,
    }
    if variant:
        arguments["VARIANT"] = variant
    if "SOURCE_DATE_EPOCH" in os.environ:
        arguments["SOURCE_DATE_EPOCH"] = os.environ["SOURCE_DATE_EPOCH"]
    with tempfile.TemporaryDirectory(prefix="fl-build-") as name:
        context, folders = prepare(matrix, stack, flavor, Path(name), site, platform)
        dockerfile = (context / "Dockerfile").read_text(encoding="utf-8")
        base = re.findall(r"^FROM (\S+) AS os$", dockerfile, re.M)[0]
        ui.step(f"build {names[0]} for {platform} from {base}")
        labels = provenance(stack.of(flavor), base, os.environ)
        identity = None
        if (known := inputs.base(base, platform)) is not None:
            seen = inputs.files(context, folders)
            labels[inputs.LABEL] = inputs.digest(seen, known, platform, sorted(arguments.items()), sorted(labels.items()))
            if not (options.no_cache or options.cache_to or options.attest):
                identity = inputs.standing(names[0], labels[inputs.LABEL])
        if identity is not None:
            ui.say("  nothing changed: the image is there")
            steps = inputs.steps(dockerfile, arguments, "run")
        else:
            complete(context, folders, platform)
            log = _try(argv(stack, context, folders, arguments, labels, options), base, options.retries)
            identity = built_id(json.loads((Path(name) / "built").read_text(encoding="utf-8")))
            steps = log.layers(build_log.stages(dockerfile))
    return _name(identity, names, arguments, stack, platform, steps)


def built_id(metadata: Mapping[str, Any]) -> str:
    """The id that the daemon knows what was built by: its configuration's digest, or with containerd's store its manifest's."""
    told = [str(metadata[key]) for key in ("containerimage.config.digest", "containerimage.digest") if key in metadata]
    for one in told:
        if daemon.image(daemon.endpoint(os.environ), one) is not None:
            return one
    raise ImageError(f"the build ended, but the daemon has no image {' or '.join(told) or 'of it'}", "docker image ls --all")


def _name(
    identity: str, names: tuple[str, str], arguments: Mapping[str, str], stack: Stack, platform: str, steps: Sequence[build_log.Step]
) -> Built:
    """Looks at what was built, then gives it its names."""
    inspected = local(identity)
    labels = (inspected.get("Config") or {}).get("Labels") or {}
    wanted = {"fl.stack": stack.id, "fl.version": __version__, "fl.lock.sha256": arguments["FL_LOCK_SHA256"]}
    wanted |= {"fl.variant": arguments["VARIANT"]} if "VARIANT" in arguments else {}
    wrong = [f"{name} is {labels.get(name, 'absent')}, not {value}" for name, value in wanted.items() if labels.get(name) != value]
    if platform_of(inspected) != platform:
        wrong.append(f"it is for {platform_of(inspected)}, not {platform}")
    if wrong:
        with contextlib.suppress(OSError):
            subprocess.run(["docker", "image", "rm", identity], capture_output=True, check=False)
        raise ImageError(f"the build made another image than was asked for: {'; '.join(wrong)}", "fl images render shows the Dockerfile")
    address = daemon.endpoint(os.environ)
    before = {name: there for name in names if (there := daemon.image(address, name)) is not None}
    for name in names:
        if name in before and before[name]["Id"] == inspected["Id"]:
            continue
        done = subprocess.run(["docker", "tag", identity, name], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ImageError(f"the image {identity} cannot be named {name}: {done.stderr.strip()}", f"docker tag {identity} {name}")
    for old in {str(there["Id"]) for there in before.values()} - {str(inspected["Id"])}:
        _drop(address, old)
    return Built(
        reference=names[0],
        moving=names[1],
        id=str(inspected["Id"]),
        size=int(inspected["Size"]),
        platform=platform,
        layers=tuple(layers(inventory.history(identity), steps)),
    )


def _drop(address: str, identity: str) -> None:
    """Removes an image that lost its last name to a new build. One that was pushed has a digest, which may be pinned; one that a
    container uses stays too."""
    there = daemon.image(address, identity)
    if there is not None and not there.get("RepoTags") and not there.get("RepoDigests"):
        subprocess.run(["docker", "image", "rm", identity], capture_output=True, check=False)


def layers(history: Sequence[Mapping[str, Any]], steps: Sequence[build_log.Step]) -> list[Layer]:
    """Each layer with the step that made it, oldest first; what the base has is one. `history`: oldest first.

    History and progress tell the same steps in other words, so they are matched by their order, from the last one back.
    """
    made = [entry for entry in history if _MADE.match(str(entry.get("CreatedBy"))) and "buildkit" in str(entry.get("Comment"))]
    mine = made[len(made) - len(steps) :] if steps else []
    first = next((number for number, entry in enumerate(history) if mine and entry is mine[0]), len(history))
    found = [Layer(step="the base image", size=sum(int(entry.get("Size", 0)) for entry in history[:first]), seconds=None, cached=True)]
    for entry, step in zip(mine, steps, strict=False):
        words = inventory.step(str(entry.get("CreatedBy", "")))
        found.append(Layer(step=words, size=int(entry.get("Size", 0)), seconds=step.seconds, cached=step.cached))
    return found
