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

LONGEST: Final = 4000
"""Characters of a text that are kept: what a program wrote may be of any length and form, and each is looked at by every rule."""
_HEX: Final = r"[0-9a-fA-F]{1,4}"
_URL: Final = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\]]+", re.IGNORECASE)
_SECRET: Final = re.compile(
    r"\bhf_\w{10,}|\b(?:sk|ghp|gho|github_pat)[-_][\w-]{10,}|(?<=Bearer )\S+|"
    r"(\b(?:\w*api_?key|\w*secret|\w*passw(?:or)?d|(?:hf|hub|access|auth|bearer)_?token)[\"']?\s*[=:]\s*)(?!None|null|True|False|\()[^\s,;&]+|"
    r"((?<!\w)token[\"']?\s*[=:]\s*)[^\s,;&()]{8,}",
    re.IGNORECASE,
)
_ADDRESS: Final = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\[[\w.:-]+\]:[0-9]+|\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b(?!\.)"  # mail, [host]:port, IPv4
    rf"|(?<![\w:])(?:(?:{_HEX}:){{7}}{_HEX}|(?:{_HEX}:){{1,6}}:(?:{_HEX}(?::{_HEX}){{0,5}})?)(?:%\w+)?(?![\w:])"  # IPv6
    r"|(?<![\w:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![\w:])"  # of a network card
    r"|(?<![\w./-])(?=[\w-]*[0-9.-])[A-Za-z][\w-]*(?:\.[\w-]+)*(?<!\.py)(?<!\.cpp)(?<!\.cu)(?<!\.json):[0-9]{4,5}(?!\w)"  # node07:29500
    r"|(?<![\w./-])[A-Za-z][\w-]*(?:\.[\w-]+)*\.(?:local|localdomain|internal|intranet|lan|corp|home|cluster)(?![\w-])"
)
_DEVICE: Final = re.compile(r"\b(?:GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?:/[0-9/]+)?")
_QUOTED: Final = re.compile(r"(['\"`])(~?\.{0,2}/[^'\"`\n]*)\1")
_PART: Final = r"[^\s/:;,'\"`<>()\[\]{}|=]+"
_PATH: Final = re.compile(rf"(?<![\w/.)])(?!(?<=<)/\w+>)(?:~[\w.-]*|\.{{1,2}})?(?:/{_PART}(?:(?: {_PART}){{1,3}}(?=/))?)+/?")
"""A part with spaces is one where another follows: nobody can tell where a path's last part ends."""
_WINDOWS: Final = re.compile(r"(?:\b[A-Za-z]:|\\)\\[^\s'\"`<>|]+")
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
    text = _URL.sub("(address)", text[:LONGEST].encode("utf-8", "replace").decode())
    text = _DEVICE.sub("(device)", _SECRET.sub(lambda found: f"{found[1] or found[2] or ''}(secret)", text))
    for folder in sorted(who.folders, key=len, reverse=True):
        text = re.sub(re.escape(folder) + r"(?![\w-])", "/(path)", text) if len(folder) > 1 else text
    text = _WINDOWS.sub("(path)", _ADDRESS.sub("(address)", text))
    text = _QUOTED.sub(lambda found: f"{found[1]}{_short(found[2])}{found[1]}", text)
    text = _PATH.sub(lambda found: _short(found[0]), text).replace("/(path)", "(path)")
    return _nameless(text, who)


def _nameless(text: str, who: Owner) -> str:
    """Also as a part of a longer name (`carla-laptop`, `carla_tuned`); names of one or two letters only by themselves."""
    for names, word in ((who.users, "(user)"), (who.hosts, "(host)")):
        for name in sorted(names, key=len, reverse=True):
            edge = r"\w-" if len(name) < 3 else r"^\W_"
            text = re.sub(rf"(?<![{edge}]){re.escape(name)}(?![{edge}])", word, text, flags=re.IGNORECASE)
    return text


def _short(path: str) -> str:
    package = _PACKAGE.fullmatch(path)
    return package[1] if package else "(path)"


def model_name(name: str | None, kind: str | None, who: Owner) -> str | None:
    """A hub's name as it is; of a folder or a file only its last part."""
    if name is None or (kind in ("hub", "tiny") or name.startswith("builtin/")):
        return name if name is None else name[:200]
    return without(Path(name).expanduser().resolve().name, who)[:200] or "(path)" if name else "(path)"


def image_reference(reference: str, who: Owner) -> str:
    """Without the registry's host and the caller's name: the digest says which image it was."""
    host, _, rest = reference.partition("/")
    return _nameless(rest if rest and ("." in host or ":" in host or host == "localhost") else reference, who)
