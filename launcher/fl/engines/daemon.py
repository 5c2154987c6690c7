"""The Docker daemon, asked directly: which socket the docker command would use, and short questions with a time limit.

The SDK is for containers and pulls. These questions are asked before every plan, where its import alone would take a third of the budget.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fl.errors import EngineError

if TYPE_CHECKING:
    import docker

DEFAULT: Final = "unix:///var/run/docker.sock"
_TIMEOUT: Final = 2.5


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def endpoint(environ: Mapping[str, str]) -> str:
    """The address that the docker command uses: DOCKER_HOST, else the context that was chosen, else the usual socket."""
    if environ.get("DOCKER_HOST"):
        return environ["DOCKER_HOST"]
    folder = Path(environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = environ.get("DOCKER_CONTEXT") or str(_json(folder / "config.json").get("currentContext") or "default")
    if name == "default":
        return DEFAULT
    meta = _json(folder / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json")
    try:
        return str(meta["Endpoints"]["docker"]["Host"])
    except (KeyError, TypeError) as error:
        raise EngineError(f"The docker context {name!r} has no address.", "docker context ls\ndocker context use default") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def socket_path(address: str) -> str | None:
    """The file of a UNIX socket's address; None for tcp and ssh."""
    return address[len("unix://") :] if address.startswith("unix://") else None


def ask(address: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """Status and JSON of one request. EngineError when nobody answers in time."""
    file = socket_path(address)
    if file is None:
        return _ask_far(address, method, path, body)
    connection = _UnixConnection(file, _TIMEOUT)
    try:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text.strip() else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise unreachable(address, error) from error
    finally:
        connection.close()


def _ask_far(address: str, method: str, path: str, body: object) -> tuple[int, Any]:
    """The same through the SDK, which knows TLS and ssh."""
    import requests
    from docker.errors import DockerException

    try:
        with contextlib.closing(client(address, round(_TIMEOUT))) as far:
            answer = far.request(method, f"{far.base_url}{path}", json=body, timeout=_TIMEOUT)
            return answer.status_code, answer.json() if answer.content.strip() else None
    except (DockerException, requests.RequestException, ValueError, OSError) as error:
        raise unreachable(address, error) from error


def client(address: str, timeout: int) -> docker.APIClient:
    """The SDK's client for this address. Speaks with the daemon at once to agree on a version."""
    import docker
    from docker.utils import kwargs_from_env

    if address.startswith("ssh://"):
        raise EngineError(f"Docker runs on another machine ({address}), which does not see the files of this one.", "fl run --engine host")
    return docker.APIClient(base_url=address, timeout=timeout, version="auto", tls=kwargs_from_env().get("tls") or False)


def unreachable(address: str, error: Exception) -> EngineError:
    """Why the daemon does not answer, and what to do."""
    file = socket_path(address)
    if isinstance(error, PermissionError):
        return EngineError(
            f"Docker's socket {file} may not be opened by this user.",
            "sudo usermod -aG docker $USER, then log in again; or: fl run --engine podman; fl run --engine host",
        )
    if isinstance(error, FileNotFoundError):
        return EngineError(f"No Docker daemon: there is no socket {file}.", "sudo systemctl start docker; or: fl run --engine host")
    if isinstance(error, ConnectionRefusedError):
        return EngineError(f"No Docker daemon listens on {file or address}.", "sudo systemctl start docker; or: fl run --engine host")
    if isinstance(error, TimeoutError) or "timed out" in str(error).lower():
        return EngineError(
            f"The Docker daemon at {address} did not answer in {_TIMEOUT} s: it hangs.",
            "sudo systemctl restart docker; or: fl run --engine host",
        )
    return EngineError(f"The Docker daemon at {address} cannot be asked: {error}", "docker version; or: fl run --engine host")


def info(address: str) -> dict[str, Any]:
    """The daemon's `info`."""
    status, value = ask(address, "GET", "/info")
    if status != 200 or not isinstance(value, dict):
        said = value.get("message") if isinstance(value, dict) else value
        raise EngineError(f"The Docker daemon at {address} is not well ({status}): {said}", "docker info")
    return value


def image(address: str, reference: str) -> dict[str, Any] | None:
    """`inspect` of a local image, or None."""
    status, value = ask(address, "GET", f"/images/{quote(reference, safe='/:@')}/json")
    return value if status == 200 and isinstance(value, dict) else None


def sees(address: str, path: Path) -> bool:
    """True when the daemon finds this file where the caller does.

    Asked with a request for a container of an image that cannot exist: the daemon looks at mounts before images, so it complains
    about the mount or about the image, and nothing is ever made.
    """
    mount = {"Type": "bind", "Source": str(path), "Target": "/x", "ReadOnly": True}
    body = {"Image": "fl-no-such-image:0", "HostConfig": {"Mounts": [mount]}}
    status, value = ask(address, "POST", "/containers/create", body)
    message = str(value.get("message") if isinstance(value, dict) else value)
    return not (status == 400 and ("source path does not exist" in message or "invalid mount config" in message))


def process(address: str) -> int | None:
    """The daemon's pid when it runs here and can be told: the other end of its socket (systemd listens for it otherwise: pid 1)."""
    file = socket_path(address)
    if file is None:
        return None
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(file)
            pid = int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    except OSError:
        return None
    for candidate in (pid, _pidfile()):
        if candidate and _command(candidate) == "dockerd":
            return candidate
    return None


def _pidfile() -> int | None:
    try:
        return int(Path("/var/run/docker.pid").read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def search_path(pid: int | None) -> str:
    """The PATH in which the daemon looks for hooks; a guess where it cannot be read."""
    if pid is not None:
        try:
            for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if item.startswith(b"PATH="):
                    return os.fsdecode(item[5:])
        except OSError:
            pass
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
