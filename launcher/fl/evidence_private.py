"""Evidence tells nothing of the machine's owner: paths, user names, host names and addresses go out of every text of a record."""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\]]+", re.IGNORECASE)
_ADDRESS: Final = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\[[\w.:-]+\]:[0-9]+|\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b")
_QUOTED: Final = re.compile(r"(['\"`])(~?\.{0,2}/[^'\"`\n]*)\1")
_PATH: Final = re.compile(r"(?<![\w/.)])(?:~[\w.-]*|\.{1,2})?(?:/[^\s/:;,'\"`<>()\[\]{}|=]+)+/?")
_PACKAGE: Final = re.compile(r".*/(?:site|dist)-packages/(.+)")
_COMMON: Final = frozenset(("root", "user", "users", "nobody", "localhost", "admin", "ubuntu", "debian"))
"""Names that tell nobody apart."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What must not be read in a record."""

    folders: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def owner(documents: Iterable[Mapping[str, Any]] = ()) -> Owner:
    """This user and host, and every absolute path that the run's own documents name."""
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    with suppress(KeyError):  # a user without an entry has no name to tell
        users.add(pwd.getpwuid(os.getuid()).pw_name)
    hosts = {socket.gethostname(), os.environ.get("HOSTNAME", "")}
    hosts |= {name.split(".")[0] for name in hosts}
    found = {text for document in documents for text in _texts(document) if text.startswith("/") and text.count("/") > 1}
    return Owner(tuple({*found, str(Path.home())}), tuple(users - _COMMON - {""}), tuple(hosts - _COMMON - {""}))


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def without(text: str, who: Owner) -> str:
    """The text with `(path)`, `(user)`, `(host)` and `(address)` where it named one; modules of packages keep their name."""
    text = text.encode("utf-8", "replace").decode()
    for folder in sorted(who.folders, key=len, reverse=True):
        text = re.sub(re.escape(folder) + r"(?![\w-])", "/(path)", text) if len(folder) > 1 else text
    text = _ADDRESS.sub("(address)", _URL.sub("(address)", text))
    text = _QUOTED.sub(lambda found: f"{found[1]}{_short(found[2])}{found[1]}", text)
    text = _PATH.sub(lambda found: _short(found[0]), text).replace("/(path)", "(path)")
    for names, word in ((who.users, "(user)"), (who.hosts, "(host)")):
        for name in sorted(names, key=len, reverse=True):
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, text)
    return text


def _short(path: str) -> str:
    package = _PACKAGE.fullmatch(path)
    return package[1] if package else "(path)"


def model_name(name: str | None, kind: str | None, who: Owner) -> str | None:
    """A hub's name as it is; of a folder or a file only its last part."""
    if name is None or (kind in ("hub", "tiny") or name.startswith("builtin/")):
        return name if name is None else name[:200]
    return without(Path(name).expanduser().resolve().name, who)[:200] or "(path)"


def image_reference(reference: str) -> str:
    """Without the registry's host: the digest says which image it was."""
    host, _, rest = reference.partition("/")
    return rest if rest and ("." in host or ":" in host or host == "localhost") else reference
