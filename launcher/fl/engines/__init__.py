"""The engines: what executes a plan. The only door to containers; one module each, imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from fl.errors import EngineError, UsageError
from fl.grants import EngineFacts, EngineName
from fl.plan import Plan

UNKNOWN_EXIT: Final = -1
"""Exit code of a process that ended when nobody was there to collect it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """An image as its engine knows it."""

    reference: str
    id: str
    digest: str | None
    """`sha256:…` of the manifest in its registry; None for an image that was built here and never pushed."""
    platform: str
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] | None = None
    """What the image sets; None: its engine does not tell."""
    local: bool = True
    """False: it can be had without a registry, but has to be made first (apptainer, from Docker's store)."""
    file: str | None = None
    """Apptainer: where it is, or will be."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. `reason` is what the engine said about it, not what the trainer said."""

    exit_code: int
    oom: bool = False
    reason: str | None = None


class Started(Protocol):
    """One running container or process group."""

    ident: str
    """Container id, or `pid:starttime`: enough for another launcher to find it again and nothing else."""

    def poll(self) -> Ended | None:
        """None while it runs. EngineError when the engine has not answered for a minute."""

    def stop(self, grace: float) -> None:
        """SIGTERM now, SIGKILL after `grace` seconds. Returns at once."""

    def kill(self) -> None:
        """SIGKILL now."""

    def follow(self, log: Path) -> None:
        """Copies stdout and stderr to the end of the file until the end, from a background thread. Host: the file is written anyway."""

    def catch_up(self, log: Path) -> None:
        """Copies what came since, once: for the log of a run whose launcher died."""

    def remove(self) -> None:
        """Removes what the engine keeps of it. Kills it if it still runs."""


class Engine(Protocol):
    """What every engine offers. Errors are EngineError (6) and ImageError (7), with what to do."""

    def facts(self) -> EngineFacts:
        """What the engine says of itself; EngineError within 3 s when it does not answer."""

    def image(self, reference: str) -> ImageFacts | None:
        """A local image, or None."""

    def pull(self, reference: str, report: Callable[[str], None], check: Callable[[], None] = lambda: None) -> ImageFacts:
        """Fetches an image; `report` gets a line every few seconds; `check` is called often and ends it by raising."""

    def start(self, plan: Plan, environment_secrets: Mapping[str, str]) -> Started:
        """Executes `plan.argv` as it is. `environment_secrets`: name → value, in the child's environment only."""

    def adopt(self, ident: str) -> Started | None:
        """The run of a launcher that died, by its `ident`; None when nothing of it is left."""


ENGINES: Final[dict[EngineName, str]] = {
    "docker": "fl.engines.docker:DockerEngine",
    "podman": "fl.engines.podman:PodmanEngine",
    "apptainer": "fl.engines.apptainer:ApptainerEngine",
    "host": "fl.engines.host:HostEngine",
}


def get(name: str) -> Engine:
    """The engine of that name. UsageError with the nearest name when there is none."""
    if name not in ENGINES:
        from difflib import get_close_matches

        near = get_close_matches(name, list(ENGINES), 1) or list(ENGINES)
        raise UsageError(f"No engine {name!r}; this fl drives {', '.join(ENGINES)}.", f"--engine {near[0]}")
    module, attribute = ENGINES[name].split(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine


def ask(name: str) -> EngineFacts | EngineError:
    """The facts of an engine, or why it does not answer: `--engine auto` goes through these in order."""
    try:
        return get(name).facts()
    except EngineError as error:
        return error
