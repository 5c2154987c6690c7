"""This machine's own resources: disks, shared memory, limits, the cache, the registry and the clock. `look` reads, the rest is pure."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fl import paths
from fl.doctor_cache import Leftover, find
from fl.doctor_engine import REPLAY
from fl.findings import Finding, Status
from fl.hardware import Evidence

if TYPE_CHECKING:
    from fl.doctor_facts import Facts

GIB: Final = 1 << 30
_LOW: Final = 5 * GIB
_EMPTY: Final = GIB // 2
_FILES: Final = 100_000
"""Inodes: an environment has some 40,000 files."""
_SHM: Final = GIB
_LOCKED: Final = 64 << 20
_SKEW: Final = 60.0
_TIMEOUT: Final = 2.0
_UNSYNCHRONISED: Final = 5
"""TIME_ERROR of adjtimex(2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A folder that fl or an engine writes to, and the file system that it is on. Sizes in bytes."""

    what: str
    path: str
    free: int
    total: int
    files: int | None = None
    """Free inodes; None where the file system does not count them."""
    writable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a registry said. `skew`: its clock minus ours, in seconds."""

    url: str
    status: int | None = None
    error: str = ""
    skew: float | None = None
    login: bool = False
    """The caller has a login for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """This machine's own resources."""

    disks: tuple[Disk, ...] = ()
    available: int | None = None
    """Bytes of memory that are free or can be freed."""
    shm: int | None = None
    locked: int = resource.RLIM_INFINITY
    """Soft limit of locked memory in bytes."""
    leftovers: tuple[Leftover, ...] = ()
    environments: int = 0
    registry: Answer | None = None
    synchronised: bool | None = None


def look(registry: str | None) -> Site:
    """Takes as long as the registry, at most two seconds."""
    folder = paths.cache_home() / "environments"
    return Site(
        disks=tuple(disk(what, path) for what, path in (("environments and caches", paths.cache_home()), ("runs", paths.state_home()))),
        available=_available(),
        shm=_free("/dev/shm"),
        locked=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        leftovers=find(folder),
        environments=sum(1 for entry in folder.glob("*/fl-environment.json")) if os.path.isdir(folder) else 0,  # noqa: PTH112
        registry=None if registry is None else _ask(registry),
        synchronised=synchronised(),
    )


def disk(what: str, path: Path) -> Disk:
    """The file system of a folder, which need not exist yet."""
    there = next(p for p in (path, *path.parents) if os.path.exists(p))  # noqa: PTH110 - below a closed folder nothing is there
    usage, counts = shutil.disk_usage(there), os.statvfs(there)
    return Disk(
        what=what,
        path=str(path),
        free=usage.free,
        total=usage.total,
        files=counts.f_favail if counts.f_files else None,
        writable=os.access(there, os.W_OK),
    )


def _free(path: str) -> int | None:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def synchronised() -> bool | None:
    """What the kernel says of its clock (adjtimex with nothing to set); None where it does not say."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _UNSYNCHRONISED)


def _ask(registry: str) -> Answer:
    """`/v2/` of a registry: 200, or 401 where it wants a login."""
    import http.client
    import json
    import urllib.error
    import urllib.request
    from email.utils import parsedate_to_datetime

    host = registry.split("/")[0]
    url = f"{'http' if host.split(':')[0] in ('localhost', '127.0.0.1') else 'https'}://{host}/v2/"
    status, error, headers = None, "", None
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            status, headers = answer.status, answer.headers
    except urllib.error.HTTPError as refused:
        status, headers = refused.code, refused.headers
    except (OSError, ValueError, http.client.HTTPException) as failed:
        error = str(getattr(failed, "reason", failed))
    skew = None
    if headers is not None and headers.get("Date"):
        try:
            skew = parsedate_to_datetime(headers["Date"]).timestamp() - time.time()
        except (ValueError, TypeError):
            skew = None
    try:
        config = json.loads((Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json").read_text(encoding="utf-8"))
        login = host in (config.get("auths") or {}) or bool(config.get("credsStore")) or host in (config.get("credHelpers") or {})
    except (OSError, ValueError, AttributeError):
        login = False
    return Answer(url=url, status=status, error=error, skew=skew, login=login)


def registry(facts: Facts) -> Iterator[Finding]:
    """The configured registry answers."""
    if facts.site is None:
        yield Finding(check="registry", status="skipped", finding=REPLAY)
        return
    answer = facts.site.registry
    if answer is None:
        yield Finding(
            check="registry", status="skipped", finding="no registry is configured: images are built here, or the host engine is used"
        )
    elif answer.status is None:
        from fl.causes import explain

        cause = explain(answer.error)
        yield Finding(
            check="registry",
            status="error",
            finding=f"{answer.url} does not answer: {answer.error}" + (f" ({cause.cause})" if cause else ""),
            evidence=(Evidence(answer.url, answer.error),),
            remedy=cause.cure if cause else f"curl -v {answer.url}\nHTTPS_PROXY, or `registry:` in {paths.config_home() / 'config.yaml'}",
        )
    elif answer.status in (401, 403) and not answer.login:
        host = answer.url.split("/")[2]
        yield Finding(
            check="registry",
            status="warning",
            finding=f"{answer.url} wants a login, and there is none here",
            evidence=(Evidence(answer.url, f"status {answer.status}"),),
            remedy=f"docker login {host}",
        )
    elif answer.status < 500:
        yield Finding(
            check="registry", status="ok", finding=f"{answer.url} answers", evidence=(Evidence(answer.url, f"status {answer.status}"),)
        )
    else:
        yield Finding(
            check="registry",
            status="error",
            finding=f"{answer.url} is not well",
            evidence=(Evidence(answer.url, f"status {answer.status}"),),
            remedy=f"curl -v {answer.url}",
        )


def disks(facts: Facts) -> Iterator[Finding]:
    """Room for environments, runs and images."""
    if facts.site is None:
        yield Finding(check="disk", status="skipped", finding=REPLAY)
        return
    stores = [] if facts.engines is None else [(name, each.storage) for name, each in facts.engines.answers.items() if each.storage]
    shown = [*facts.site.disks, *(_store(name, folder) for name, folder in stores if folder and os.path.exists(folder))]  # noqa: PTH110
    for each in shown:
        yield _disk_finding(each)


def _store(name: str, folder: str) -> Disk:
    from dataclasses import replace

    return replace(disk(f"images of {name}", Path(folder)), writable=True)  # the engine's, not the caller's


def _disk_finding(each: Disk) -> Finding:
    seen = Evidence(each.path, f"{each.free / GIB:.1f} of {each.total / GIB:.1f} GiB free")
    cure = f"df -h {each.path}\n" + (
        "docker system prune" if each.what.startswith("images") else "XDG_CACHE_HOME=/other/disk   moves fl's cache"
    )
    room = f"{each.what}: {each.free / GIB:.1f} GiB free in {each.path}"
    if not each.writable:
        return Finding(
            check="disk",
            status="error",
            finding=f"{each.what}: {each.path} cannot be written",
            evidence=(seen,),
            remedy=f"ls -ld {each.path}",
        )
    if each.files is not None and each.files < _FILES:
        text = f"{each.what}: room for only {each.files} more files (inodes) in {each.path}"
        return Finding(
            check="disk", status="error" if each.files < 1000 else "warning", finding=text, evidence=(seen,), remedy=f"df -i {each.path}"
        )
    status: Status = "error" if each.free < _EMPTY else "warning" if each.free < _LOW else "ok"
    return Finding(check="disk", status=status, finding=room, evidence=(seen,), remedy="" if status == "ok" else cure)


def memory(facts: Facts) -> Iterator[Finding]:
    """The processor's memory, shared memory, locked memory."""
    size, site = facts.hardware.cpu.memory_mib, facts.site
    if site is None:
        text = f"{size / 1024:.0f} GiB" if size else "the record does not tell the memory"
        yield Finding(
            check="memory",
            status="ok" if size else "skipped",
            finding=text,
            evidence=(Evidence("/proc/meminfo", f"{size} MiB"),) if size else (),
        )
        return
    available = f", {site.available / GIB:.1f} GiB available" if site.available else ""
    low = site.available is not None and site.available < GIB
    yield Finding(
        check="memory",
        status="warning" if low else "ok",
        finding=f"{size / 1024:.0f} GiB of memory{available}" if size else "memory not known",
        evidence=(Evidence("/proc/meminfo, cgroup", f"{size} MiB"),),
        remedy="ps aux --sort=-rss | head" if low else "",
    )
    if site.shm is not None and site.shm < _SHM:
        yield Finding(
            check="memory",
            status="warning",
            evidence=(Evidence("/dev/shm", f"{site.shm >> 20} MiB"),),
            finding=f"/dev/shm has {site.shm >> 20} MiB: too small for data loaders and collectives of the host engine",
            remedy="sudo mount -o remount,size=16G /dev/shm" if facts.system.inside is None else "start this container with --shm-size 16g",
        )
    if facts.hardware.accelerators and 0 <= site.locked < _LOCKED:
        yield Finding(
            check="memory",
            status="warning",
            evidence=(Evidence("ulimit -l", f"{site.locked >> 10} KiB"),),
            finding=f"at most {site.locked >> 10} KiB of memory may be locked: RDMA of the host engine fails",
            remedy="echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/memlock.conf   then log in again",
        )


def cache(facts: Facts) -> Iterator[Finding]:
    """Environments that cannot be used."""
    if facts.site is None:
        yield Finding(check="cache", status="skipped", finding=REPLAY)
        return
    for leftover in facts.site.leftovers:
        yield Finding(
            check="cache",
            status="warning",
            finding=f"{leftover.path.name}: {leftover.why}",
            evidence=(Evidence(str(leftover.path), leftover.why),),
            remedy="fl doctor --fix",
        )
    if not facts.site.leftovers:
        count = facts.site.environments
        yield Finding(check="cache", status="ok", finding=f"{count} environment{'' if count == 1 else 's'}, nothing broken")


def clock(facts: Facts) -> Iterator[Finding]:
    """A wrong clock makes every certificate invalid."""
    if facts.site is None:
        yield Finding(check="clock", status="skipped", finding=REPLAY)
        return
    cure = "sudo timedatectl set-ntp true"
    answer = facts.site.registry
    if answer is not None and answer.skew is not None and abs(answer.skew) > _SKEW:
        ahead = "behind" if answer.skew > 0 else "ahead of"
        text = f"this clock is {abs(answer.skew):.0f} s {ahead} the registry's: certificates and logins fail"
        yield Finding(
            check="clock", status="warning", finding=text, evidence=(Evidence(answer.url, f"Date: {answer.skew:+.0f} s"),), remedy=cure
        )
    elif facts.site.synchronised is False:
        text = "the clock is not synchronised: logs of several machines do not fit together, and certificates fail when it drifts"
        where = "" if facts.system.inside is None else "   on the host of this container"
        yield Finding(check="clock", status="warning", finding=text, evidence=(Evidence("adjtimex", "TIME_ERROR"),), remedy=cure + where)
    elif facts.site.synchronised is None:
        yield Finding(check="clock", status="skipped", finding="the kernel does not say whether the clock is synchronised")
    else:
        yield Finding(check="clock", status="ok", finding="synchronised", evidence=(Evidence("adjtimex", "TIME_OK"),))
