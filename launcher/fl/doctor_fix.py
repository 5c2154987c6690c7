"""`fl doctor --fix`: what is safe to mend, each command printed before it is carried out."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from shutil import which
from typing import TYPE_CHECKING, Final

from fl import ui
from fl.doctor_cache import remove

if TYPE_CHECKING:
    from fl.doctor_facts import Facts

_TIMEOUT: Final = 120.0


def mend(facts: Facts, terminal: bool, run: Callable[[list[str]], int] | None = None) -> bool:
    """Broken environments are removed; a stale CDI spec is made again, on a terminal and with consent. True when something was done."""
    done = False
    for leftover in () if facts.site is None else facts.site.leftovers:
        ui.step(leftover.command)
        try:
            remove(leftover)
            done = True
        except OSError as error:
            ui.warning(f"{leftover.path} cannot be removed: {error.strerror or error}")
    for path in () if facts.engines is None else facts.engines.stale:
        command = regenerate(path)
        if command is None:
            continue
        if which("nvidia-ctk") is None:
            ui.warning(f"{path} is stale, and nvidia-ctk, which writes it, is not installed")
        elif not terminal or not _consent(command):
            ui.say(f"not done without consent on a terminal: {shlex.join(command)}")
        else:
            ui.step(shlex.join(command))
            done |= (run or _run)(command) == 0
    if not done:
        ui.say("nothing that can be mended safely; the findings name the commands")
    return done


def regenerate(path: str) -> list[str] | None:
    """The command that writes a CDI spec again; None: it is not one of NVIDIA's tool."""
    if "nvidia" not in path:
        return None
    return [*([] if os.geteuid() == 0 else ["sudo"]), "nvidia-ctk", "cdi", "generate", f"--output={path}"]


def _consent(command: list[str]) -> bool:
    import click

    return click.confirm(f"run {shlex.join(command)}?", default=False, err=True)


def _run(command: list[str]) -> int:
    try:
        return subprocess.run(command, timeout=_TIMEOUT, check=False, stdout=2).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        ui.warning(f"{shlex.join(command)}: {error}")
        return 1
