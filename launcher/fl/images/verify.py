"""Is a built image what its row and lock say? Asked inside it, as a uid that has no passwd entry, without a network."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fl import __version__
from fl.errors import ImageError
from fl.images import lock
from fl.images.build import ask_daemon
from fl.images.context import host_platform, need_lock

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

UID: Final = 12345
_SCRIPTS: Final = ("/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/nnal/atb/set_env.sh")
_FORBIDDEN: Final = ("NVIDIA_VISIBLE_DEVICES", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL")
"""Devices are the launcher's choice, and a site's package index is no part of an image."""


def _docker(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True, check=False)


def labels_wanted(stack: Stack, flavor: str, lock_sha256: str, matrix_sha256: str) -> dict[str, str]:
    """The labels that `fl` reads."""
    return {
        "fl.stack": stack.id,
        "fl.lane": stack.lane,
        "fl.flavor": flavor,
        "fl.version": __version__,
        "fl.lock.sha256": lock_sha256,
        "fl.matrix.sha256": matrix_sha256,
    }


def label_problems(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Labels that are missing or say something else."""
    return [f"label {name} is {found.get(name, 'absent')}, not {value}" for name, value in wanted.items() if found.get(name) != value]


def fact_problems(facts: Mapping[str, Any], stack: Stack, lock_sha256: str) -> list[str]:
    """What the image's own facts say against it."""
    found = [*facts["differences"], *facts["packages"], *facts["imports"], *facts["run"]]
    found += [f"left behind: {path}" for path in facts["left_behind"]]
    found += [f"{name} is set in the image" for name in _FORBIDDEN if name in facts["environment"]]
    if facts["python"] != stack.python:
        found.append(f"Python is {facts['python']}, not {stack.python}")
    if facts["uid"] != UID:
        found.append(f"runs as uid {facts['uid']}, not as the caller's {UID}")
    if facts["lock_sha256"] != lock_sha256:
        found.append(f"/opt/fl/lock.txt is another lock: {facts['lock_sha256'][:12]}, not {lock_sha256[:12]}")
    if not facts["writable_home"]:
        found.append("an arbitrary uid cannot write to its home")
    return found


def environment_problems(reference: str) -> list[str]:
    """What the base's set_env scripts would still change: variables, or parts of path lists, that the image's ENV does not have.

    An image without such scripts has nothing to compare.
    """
    script = "set +u; for f in " + " ".join(_SCRIPTS) + '; do [ -f "$f" ] && . "$f" >/dev/null 2>&1; done; env -0'
    before, after = (_docker("run", "--rm", "--network", "none", reference, "bash", "-c", text) for text in ("env -0", script))
    if before.returncode or after.returncode:
        raise ImageError(f"{reference} does not start: {(before.stderr or after.stderr).strip()}", f"docker run --rm {reference} true")
    old, new = (dict(pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair) for done in (before, after))
    found = []
    for name in sorted(new.keys() - {"_", "SHLVL", "PWD", "OLDPWD", "HOSTNAME"}):
        missing = [part for part in new[name].split(":") if part and part not in old.get(name, "").split(":")]
        if missing:
            found.append(f"set_env.sh also puts {':'.join(missing)} into {name}")
    return found


def verify(matrix: Matrix, stack: Stack, reference: str, flavor: Flavor = "train") -> list[str]:
    """Everything that is wrong with an image. Raises ImageError where it is not there or does not start."""
    ask_daemon()
    inspected = _docker("image", "inspect", reference)
    if inspected.returncode != 0:
        raise ImageError(f"the image {reference} is not on this machine", f"fl images build {stack.id}")
    config = json.loads(inspected.stdout)[0]["Config"]
    locked = lock.sha256(need_lock(stack, flavor, host_platform()))
    found = label_problems(config.get("Labels") or {}, labels_wanted(stack, flavor, locked, matrix.sha256))
    if config.get("User") != "1000:1000":
        found.append(f"the image's user is {config.get('User') or 'root'}, not 1000:1000")
    if config.get("Entrypoint"):
        found.append(f"the image has an entrypoint: {config['Entrypoint']}")
    names = matrix.packages(stack, flavor)
    options = ["--rm", "--network", "none", "--user", f"{UID}:{UID}", "--env", "TORCH_DEVICE_BACKEND_AUTOLOAD=0", "--shm-size", "1g"]
    asked = _docker("run", *options, reference, "python", "-m", "fl.images.inside", *names)
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise ImageError(f"{reference} cannot tell what it holds: {last}", f"fl images build {stack.id}")
    return found + fact_problems(json.loads(asked.stdout.splitlines()[-1]), stack, locked) + environment_problems(reference)
