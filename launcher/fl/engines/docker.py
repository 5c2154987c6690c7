"""Docker: the plan's argv starts a container, the SDK observes it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import which
from typing import Any

from fl.engines import ImageFacts, Started, cdi, daemon
from fl.engines.docker_errors import NameInUse, explain_start
from fl.engines.limits import hard_limits
from fl.errors import EngineError, ImageError
from fl.grants import EngineFacts
from fl.plan import Plan

_START = 180.0
"""Seconds that `docker run --detach` may take: a large image's first start on a slow disk, no download."""


class DockerEngine:
    """The daemon that the docker command talks to."""

    def __init__(self) -> None:
        self._address = daemon.endpoint(os.environ)

    def facts(self) -> EngineFacts:
        """Asked of the daemon; takes a tenth of a second."""
        if which("docker") is None:
            raise EngineError("There is no docker command on PATH.", "https://docs.docker.com/engine/install\nfl run --engine host")
        info = daemon.info(self._address)
        if "BuildahVersion" in info:
            raise EngineError("The socket that docker would use is podman's.", "fl run --engine podman")
        options = {str(o).split(",")[0].removeprefix("name=") for o in info.get("SecurityOptions") or ()}
        pid = daemon.process(self._address)
        same = self._same_files()
        return EngineFacts(
            name="docker",
            version=info.get("ServerVersion"),
            rootless="rootless" in options,
            userns_remap="userns" in options,
            nvidia_gpus=passes_gpus(info, daemon.search_path(pid)),
            cdi=cdi.devices(info.get("CDISpecDirs") or ()) if same else {},
            selinux="selinux" in options,
            cgroup=int(info.get("CgroupVersion") or 1),
            same_files=same,
            hard_limits=hard_limits(pid, "rootless" in options),
            storage=info.get("DockerRootDir") if same else None,
        )

    def _same_files(self) -> bool:
        """A file of a name that nobody can guess is where the caller keeps runs, and the daemon is asked for it."""
        for folder in (Path.home(), Path(tempfile.gettempdir())):
            try:
                with tempfile.NamedTemporaryFile(prefix=".fl-nonce-", dir=folder) as nonce:
                    return daemon.sees(self._address, Path(nonce.name))
            except OSError:
                continue
        return True

    def image(self, reference: str) -> ImageFacts | None:
        """What the daemon knows of a local image."""
        inspected = daemon.image(self._address, reference)
        return None if inspected is None else image_facts(reference, inspected)

    def pull(self, reference: str, report: Callable[[str], None], check: Callable[[], None] = lambda: None) -> ImageFacts:
        """Layer by layer, with megabytes; given up when no byte came for two minutes."""
        from fl.engines.docker_pull import pull

        pull(self._address, reference, report, check)
        found = self.image(reference)
        if found is None:
            raise ImageError(f"{reference} was pulled, but Docker does not find it.", f"docker image inspect {reference}")
        return found

    def start(self, plan: Plan, environment_secrets: Mapping[str, str]) -> Started:
        """`docker run --detach …`; the command prints the container's id."""
        from fl.engines.docker_run import Container

        return Container(self._address, run_detached(plan, {**os.environ, **environment_secrets}))

    def adopt(self, ident: str) -> Started | None:
        """The container of that id or name."""
        from fl.engines.docker_run import Container

        status, value = daemon.ask(self._address, "GET", f"/containers/{ident}/json")
        return Container(self._address, str(value["Id"])) if status == 200 else None


def image_facts(reference: str, inspected: Mapping[str, Any]) -> ImageFacts:
    """Out of `image inspect`. With the containerd store the id is the manifest's digest, and RepoDigests is there without a registry."""
    repository = reference.split("@")[0]
    tail = repository.rsplit("/", 1)[-1]
    repository = repository[: len(repository) - len(tail)] + tail.split(":")[0]
    digests = [str(d) for d in inspected.get("RepoDigests") or ()]
    own = [d for d in digests if d.split("@")[0] in (repository, f"docker.io/{repository}", f"docker.io/library/{repository}")]
    digest = (own or [""])[0].partition("@")[2] or None
    variant = f"/{inspected['Variant']}" if inspected.get("Variant") and inspected.get("Architecture") == "arm" else ""
    return ImageFacts(
        reference=reference,
        id=str(inspected.get("Id", "")),
        digest=digest,
        platform=f"{inspected.get('Os', 'linux')}/{inspected.get('Architecture', 'unknown')}{variant}",
        labels=dict((inspected.get("Config") or {}).get("Labels") or {}),
        environment=dict(str(line).partition("=")[::2] for line in (inspected.get("Config") or {}).get("Env") or ()),
    )


def passes_gpus(info: Mapping[str, Any], path: str) -> bool:
    """True when `--gpus` has something behind it: NVIDIA's hook on the daemon's PATH, or its runtime registered."""
    return "nvidia" in (info.get("Runtimes") or {}) or which("nvidia-container-runtime-hook", path=path) is not None


def run_detached(plan: Plan, environment: Mapping[str, str]) -> str:
    """Executes the plan's argv and returns the container's id. What a failed start left behind is removed.

    Secrets stand in the command's environment, and `--env NAME` in the argv takes them from there.
    """
    process = subprocess.Popen(
        plan.argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=_START)
    except BaseException as error:
        process.kill()
        process.communicate()
        _discard(plan.argv[0], f"fl-{plan.run}", environment)
        if isinstance(error, subprocess.TimeoutExpired):
            raise EngineError(
                f"{plan.engine} did not start the container in {_START:.0f} s.",
                f"{plan.engine} info shows whether it answers; fl run --engine host",
            ) from error
        raise
    ident = said.strip().splitlines()[-1] if said.strip() else ""
    if process.returncode != 0:
        failure = explain_start(complained or said, plan)
        if ident or not isinstance(failure, NameInUse):  # podman does not print the id of what it could not start
            _discard(plan.argv[0], ident or f"fl-{plan.run}", environment)
        raise failure
    return ident


def _discard(command: str, name: str, environment: Mapping[str, str]) -> None:
    try:
        subprocess.run(
            [command, "rm", "--force", name], env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
