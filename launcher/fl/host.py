"""The only door to the machine: files, folders, device nodes, commands. What cannot be had is a value, never an exception.

Three kinds: `LiveHost` (this machine), `RecordingHost` (host_record.py: this machine, written down), `ReplayHost`
(host_replay.py: a record; nothing is executed). Paths are absolute, as on that host.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from fl.hardware import Node

TEXT_LIMIT: Final = 1 << 20
"""Bytes read of one file. Kernel files are small; whatever is longer is cut."""
OUTPUT_LIMIT: Final = 2 << 20
"""Bytes kept of a command's stdout. `nvidia-smi -q -x` prints about 25 kB for each GPU; more costs memory when it is parsed."""
PATIENCE: Final = 2.0
"""Seconds that all commands of one detection may take together."""
NVML_COMMAND: Final = "fl-nvml"
"""Our own child process that asks NVML; recorded under this name."""

_NVML_SCRIPT: Final = Path(__file__).resolve().parent / "lanes" / "nvml.py"

RanState = Literal["done", "missing", "unrecorded", "slow"]


@dataclass(frozen=True, slots=True)
class Text:
    """A file's text, or why there is none (`ENOENT`, `EACCES`, …)."""

    text: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did. `missing`: not installed; `unrecorded`: a record lacks this call; `slow`: killed, no answer in time."""

    state: RanState
    returncode: int | None = None
    stdout: str = ""
    stderr: str = ""

    @property
    def ok(self) -> bool:
        """It ended with exit code 0."""
        return self.state == "done" and self.returncode == 0


class Host(Protocol):
    """What detection may ask of a machine."""

    live: bool
    os: str | None
    """`linux`, `darwin`, `windows`; None when a record does not say."""
    arch: str | None
    """As `uname -m` says; None when a record does not say."""

    def read(self, path: str) -> Text:
        """A regular file's text: at most TEXT_LIMIT bytes, undecodable bytes replaced."""

    def names(self, path: str) -> tuple[str, ...]:
        """The entries of a folder, sorted as text; empty when it is not there or not readable."""

    def exists(self, path: str) -> bool:
        """True for a file, a folder or a node."""

    def link(self, path: str) -> str | None:
        """The target of a symbolic link as written; None when it is no link."""

    def node(self, path: str) -> Node | None:
        """A device node with the result of opening it read-write, or None."""

    def node_names(self, folder: str) -> tuple[str, ...]:
        """Names of the device nodes directly below a folder of /dev."""

    def run(self, argv: Sequence[str]) -> Ran:
        """A command, killed with its children when the patience for all commands is used up."""


class LiveHost:
    """This machine."""

    live = True

    def __init__(self, patience: float = PATIENCE) -> None:
        self.os: str | None = {"win32": "windows"}.get(sys.platform, sys.platform)
        self.arch: str | None = os.uname().machine
        self._deadline = time.monotonic() + patience
        self._begun: dict[tuple[str, ...], list[Ran]] = {}
        self._threads: dict[tuple[str, ...], threading.Thread] = {}

    def begin(self, argv: Sequence[str]) -> None:
        """Starts a command whose output `run` will be asked for later."""
        key = tuple(argv)
        into = self._begun.setdefault(key, [])
        self._threads[key] = threading.Thread(target=lambda: into.append(run_command(key, self._deadline - time.monotonic())), daemon=True)
        self._threads[key].start()

    def read(self, path: str) -> Text:
        return read_file(path)

    def names(self, path: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(os.listdir(path)))  # noqa: PTH208 - text in, text out
        except OSError:
            return ()

    def exists(self, path: str) -> bool:
        return os.path.exists(path)  # noqa: PTH110 - a path that may not be asked for is not there

    def link(self, path: str) -> str | None:
        try:
            return os.readlink(path)  # noqa: PTH115
        except OSError:
            return None

    def node(self, path: str) -> Node | None:
        try:
            status = Path(path).stat()
        except OSError:
            return None
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else None
        if kind is None:
            return None
        openable, error = _open(path)
        return Node(
            path=path,
            type=kind,
            major=os.major(status.st_rdev),
            minor=os.minor(status.st_rdev),
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            openable=openable,
            error=error,
        )

    def node_names(self, folder: str) -> tuple[str, ...]:
        return tuple(name for name in self.names(folder) if _is_node(f"{folder}/{name}"))

    def run(self, argv: Sequence[str]) -> Ran:
        if (begun := self._threads.pop(tuple(argv), None)) is not None:
            begun.join()
            return self._begun.pop(tuple(argv))[0]
        command = [sys.executable, "-I", "-S", str(_NVML_SCRIPT)] if argv[0] == NVML_COMMAND else list(argv)
        return run_command(command, self._deadline - time.monotonic())


def read_file(path: str, limit: int = TEXT_LIMIT) -> Text:
    """A regular file's text; pipes, sockets and devices are refused without blocking on them."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Text(None, errno_name(error))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return Text(None, "EINVAL")
        data = b""
        while len(data) < limit and (more := os.read(handle, limit - len(data))):
            data += more
    except OSError as error:
        return Text(None, errno_name(error))
    finally:
        os.close(handle)
    return Text(data.decode("utf-8", "replace"))


def errno_name(error: OSError) -> str:
    """`EACCES` and the like."""
    return errno.errorcode.get(error.errno or 0, "EIO")


def _is_node(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _open(path: str) -> tuple[bool, str | None]:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return False, errno_name(error)
    return True, None


def run_command(command: Sequence[str], seconds: float) -> Ran:
    """Runs a command in a process group of its own; after `seconds` the group is killed and not waited for (it may hang in the kernel)."""
    if seconds <= 0:
        return Ran("slow")
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=environment
        )
    except FileNotFoundError:
        return Ran("missing")
    except OSError as error:
        return Ran("done", 126, "", str(error))
    outputs: list[bytes] = [b"", b""]
    readers = [
        threading.Thread(target=_collect, args=(pipe, outputs, n), daemon=True) for n, pipe in enumerate((process.stdout, process.stderr))
    ]
    deadline = time.monotonic() + seconds
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
    try:
        code = process.wait(max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        code = None
    if code is None or any(reader.is_alive() for reader in readers):
        _kill(process.pid)
        return Ran("slow")
    return Ran("done", code, *(output.decode("utf-8", "replace") for output in outputs))


def _collect(pipe: object, outputs: list[bytes], number: int) -> None:
    handle = pipe.fileno()  # type: ignore[attr-defined]
    while True:
        try:
            more = os.read(handle, 65536)
        except OSError:
            return
        if not more:
            return
        if len(outputs[number]) < OUTPUT_LIMIT:
            outputs[number] += more


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def environment_replay(environment: Mapping[str, str]) -> Path | None:
    """The record that FL_REPLAY names, if any."""
    value = environment.get("FL_REPLAY", "")
    return Path(value) if value else None
