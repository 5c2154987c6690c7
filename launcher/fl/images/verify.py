"""Is a built image what its row and lock say? Asked inside it, as a uid that has no passwd entry, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fl import __version__, pip_config
from fl.errors import ImageError
from fl.images import inventory, leaks, lock
from fl.images.context import need_lock
from fl.images.inside import SCHEMA
from fl.images.publish import local, need_docker, platform_of

if TYPE_CHECKING:
    from fl.matrix import Flavor, Matrix, Stack

UID: Final = 12345
_SCRIPTS: Final = ("/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/nnal/atb/set_env.sh")
_FORBIDDEN: Final = ("NVIDIA_VISIBLE_DEVICES", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "PIP_INDEX_URL")
"""Devices are the launcher's choice, and a site's package index is no part of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at. `passed` is None where it could not be, and `found` says why."""

    name: str
    passed: bool | None
    found: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was looked at in one image."""

    reference: str
    stack: str
    flavor: str
    platform: str
    id: str
    digest: str | None
    lock_sha256: str
    time: str
    checks: tuple[Check, ...]
    sizes: tuple[Mapping[str, Any], ...]
    proof: Mapping[str, Any] = field(default_factory=dict)
    """What the tiny run left: its config and record, for evidence. No part of the report."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, as lines."""
        return [line for check in self.checks if check.passed is False for line in check.found]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        told = {key: value for key, value in asdict(self).items() if key != "proof"}
        return {"schema": 1, **told, "problems": self.problems}


def _docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def _inside(*words: str) -> subprocess.CompletedProcess[str]:
    """`docker run --rm` without a network. The container goes too when this is interrupted: docker's command alone would leave it."""
    name = f"fl-verify-{os.getpid()}-{time.monotonic_ns()}"
    try:
        return _docker("run", "--rm", "--name", name, "--network", "none", *words)
    except BaseException:
        _docker("rm", "--force", "--volumes", name)
        raise


def check(name: str, found: Sequence[str], seconds: float | None = None) -> Check:
    """Passed where nothing was found."""
    return Check(name=name, passed=not found, found=tuple(found), seconds=seconds)


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


def config_checks(inspected: Mapping[str, Any], stack: Stack, wanted: Mapping[str, str]) -> list[Check]:
    """What the image's configuration says: platform, labels, user, entrypoint, environment."""
    config = inspected.get("Config") or {}
    platform, user = platform_of(inspected), config.get("User")
    places = [] if platform in stack.hosts.platforms else [f"it is for {platform}, the row for {', '.join(stack.hosts.platforms)}"]
    names = {entry.partition("=")[0] for entry in config.get("Env") or ()}
    entrypoint = config.get("Entrypoint")
    return [
        check("platform", places),
        check("labels", label_problems(config.get("Labels") or {}, wanted)),
        check("user", [] if user == "1000:1000" else [f"the image's user is {user or 'root'}, not 1000:1000"]),
        check("entrypoint", [f"the image has an entrypoint: {entrypoint}"] if entrypoint else []),
        check("environment", [f"{name} is set in the image" for name in _FORBIDDEN if name in names]),
    ]


def fact_checks(facts: Mapping[str, Any], stack: Stack, lock_sha256: str) -> list[Check]:
    """What the image's own facts say against it."""
    took = facts["seconds"]
    same = facts["lock_sha256"] == lock_sha256
    other = [] if same else [f"/opt/fl/lock.txt is another lock: {facts['lock_sha256'][:12]}, not {lock_sha256[:12]}"]
    extra = [] if stack.torch_from == "base" else [f"{one} is installed, and the lock does not have it" for one in facts["beyond"]]
    python = [] if facts["python"] == stack.python else [f"Python is {facts['python']}, not {stack.python}"]
    uid = [] if facts["uid"] == UID else [f"runs as uid {facts['uid']}, not as the caller's {UID}"]
    home = [] if facts["writable_home"] else ["an arbitrary uid cannot write to its home"]
    return [
        check("lock", other),
        check("python", python),
        check("versions", [*facts["differences"], *extra], took["versions"]),
        check("requirements", facts["packages"], took["requirements"]),
        check("imports", facts["imports"], took["imports"]),
        check("uid", uid),
        check("home", home),
        Check(name="training", passed=None, found=("a serving image does not train",))
        if facts["run"] is None
        else check("training", facts["run"]["found"], took["training"]),
    ]


def environment_problems(reference: str) -> list[str]:
    """What the base's set_env scripts would still change: variables, or parts of path lists, that the image's ENV does not have.

    An image without such scripts has nothing to compare.
    """
    script = "set +u; for f in " + " ".join(_SCRIPTS) + '; do [ -f "$f" ] && . "$f" >/dev/null 2>&1; done; env -0'
    before, after = (_inside(reference, "bash", "-c", text) for text in ("env -0", script))
    if before.returncode or after.returncode:
        raise ImageError(f"{reference} does not start: {(before.stderr or after.stderr).strip()}", f"docker run --rm {reference} true")
    old, new = (dict(pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair) for done in (before, after))
    found = []
    for name in sorted(new.keys() - {"_", "SHLVL", "PWD", "OLDPWD", "HOSTNAME"}):
        missing = [part for part in new[name].split(":") if part and part not in old.get(name, "").split(":")]
        if missing:
            found.append(f"set_env.sh also puts {':'.join(missing)} into {name}")
    return found


def secret_problems(reference: str, inspected: Mapping[str, Any]) -> list[str]:
    """Secrets in what everybody can read of an image: history, environment, labels, command."""
    done = _docker("history", "--no-trunc", "--format", "{{json .CreatedBy}}", reference)
    config = inspected.get("Config") or {}
    places = {f"step {number} of its history": line for number, line in enumerate(reversed(done.stdout.splitlines()), 1)}
    places |= {"its environment": "\n".join(config.get("Env") or ()), "its labels": json.dumps(config.get("Labels") or {})}
    places["its command"] = json.dumps([config.get("Cmd"), config.get("Entrypoint")])
    settings = pip_config.read(os.environ)
    urls = [url for url in (settings.index_url, *settings.extra_index_urls, *settings.find_links, settings.proxy) if url and "://" in url]
    return leaks.leaks(places, leaks.own(os.environ, urls))


def ask_inside(reference: str, stack: Stack, *words: str, user: str) -> dict[str, Any]:
    """What the image tells of itself. ImageError where it cannot."""
    options = ["--user", user, "--env", "TORCH_DEVICE_BACKEND_AUTOLOAD=0", "--shm-size", "1g"]
    asked = _inside(*options, reference, "python", "-m", "fl.images.inside", *words)
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise ImageError(f"{reference} cannot tell what it holds: {last}", f"fl images build {stack.id}")
    told = json.loads(asked.stdout.splitlines()[-1])
    if words[:1] != ("--files",) and told.get("schema") != SCHEMA:
        raise ImageError(f"{reference} holds another fl than this one", f"fl images build {stack.id}")
    return dict(told)


def verify(matrix: Matrix, stack: Stack, reference: str, flavor: Flavor = "train") -> Report:
    """Looks at everything. Raises ImageError where the image is not there, does not start, or cannot be asked."""
    need_docker()
    inspected = local(reference)
    platform = platform_of(inspected)
    where = platform if platform in stack.hosts.platforms else stack.hosts.platforms[0]
    locked = lock.sha256(need_lock(stack, flavor, where, allow_unlocked=True))
    checks = config_checks(inspected, stack, labels_wanted(stack, flavor, locked, matrix.sha256))
    serve = () if flavor == "train" else ("--serve",)
    facts = ask_inside(reference, stack, *serve, *matrix.packages(stack, flavor), user=f"{UID}:{UID}")
    checks += fact_checks(facts, stack.of(flavor), locked)
    left = ask_inside(reference, stack, "--files", user="0:0")["left_behind"]
    checks.append(check("files", [f"left behind: {path}" for path in left]))
    checks.append(check("secrets", secret_problems(reference, inspected)))
    checks.append(check("vendor-environment", environment_problems(reference)))
    unseen = ("no accelerator was given to the image: devices and drivers are looked at by `fl doctor` and by runs",)
    checks.append(Check(name="device", passed=None, found=unseen))
    layers = [{"kind": "layer", "what": step, "bytes": size} for step, size in inventory.layers(reference)]
    digests = [str(one).partition("@")[2] for one in inspected.get("RepoDigests") or ()]
    return Report(
        reference=reference,
        stack=stack.id,
        flavor=flavor,
        platform=platform,
        id=str(inspected.get("Id")),
        digest=digests[0] if digests else None,
        lock_sha256=locked,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        checks=tuple(checks),
        sizes=({"kind": "image", "what": reference, "bytes": int(inspected.get("Size", 0))}, *layers, *facts["sizes"]),
        proof=facts["run"] or {},
    )
