"""A host that writes down what detection asked of it, so that the same answer can be had again from the folder (host_replay.py).

Identifiers are replaced consistently: the same UUID gets the same stand-in everywhere, so that sources still agree.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from fl.errors import UsageError
from fl.hardware import Node
from fl.host import Host, Ran, Text

_UUID: Final = re.compile(r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b")
_UNIQUE: Final = re.compile(r"(?m)^((?:unique_id|hive_id) )([1-9]\d{0,19})$")
_SERIALS: Final = (
    re.compile(r"(<(?:serial|chassis_serial_number|gpu_fabric_guid|board_part_number|gpu_pdi)>)([^<]+)(?=<)"),
    re.compile(r"(?m)^(\s*(?:Serial Number|Chassis Serial Number|GPU Fabric GUID|GPU PDI)\s*:\s*)(\S.*)$"),
    re.compile(r"(?i)(\"(?:serial number|asic_serial|product_serial|unique id)\"\s*:\s*\")([^\"]+)(?=\")"),
)
_HEX_SERIAL: Final = re.compile(r"0x[0-9a-fA-F]{8,16}")
_HOME: Final = re.compile(r"/home/[^/\s\"<|]+")
_NOTHING: Final = re.compile(r"(?i)n/?a|\[n/a\]|0+|none|unknown|null")


class RecordingHost:
    """Wraps a live host; `write` makes the folder. Nothing of the environment is recorded."""

    def __init__(self, host: Host, folder: Path, keep_ids: bool = False) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", "Name a new folder: fl hw --record DIR")
        self.live, self.os, self.arch = host.live, host.os, host.arch
        self._host, self._folder = host, folder
        self._scrub: Callable[[str], str] = str if keep_ids else Scrubber((socket.gethostname(),))
        self._texts: dict[str, Text] = {}
        self._listed: dict[str, tuple[str, ...]] = {}
        self._existing: dict[str, bool] = {}
        self._links: dict[str, str] = {}
        self._nodes: dict[str, Node] = {}
        self._commands: list[tuple[tuple[str, ...], Ran]] = []

    def read(self, path: str) -> Text:
        self._texts[path] = text = self._host.read(path)
        return text

    def names(self, path: str) -> tuple[str, ...]:
        self._listed[path] = names = self._host.names(path)
        return names

    def exists(self, path: str) -> bool:
        self._existing[path] = there = self._host.exists(path)
        return there

    def link(self, path: str) -> str | None:
        target = self._host.link(path)
        if target is not None:
            self._links[path] = target
        return target

    def node(self, path: str) -> Node | None:
        node = self._host.node(path)
        if node is not None:
            self._nodes[path] = node
        return node

    def node_names(self, folder: str) -> tuple[str, ...]:
        return self._host.node_names(folder)

    def run(self, argv: Sequence[str]) -> Ran:
        ran = self._host.run(argv)
        self._commands.append((tuple(argv), ran))
        return ran

    def write(self) -> None:
        """Makes the folder. Of the device nodes, those that a lane looked at."""
        import yaml

        def dump(name: str, value: Any) -> None:
            (self._folder / name).write_text(yaml.safe_dump(value, sort_keys=True, allow_unicode=True), encoding="utf-8")

        root = self._folder / "root"
        try:
            root.mkdir(parents=True, exist_ok=True)
            unreadable = self._write_files(root)
            about: dict[str, Any] = {
                "id": "recorded",
                "title": "Recorded by fl hw --record",
                "provenance": [],
                "notes": "",
                "os": self.os,
                "arch": self.arch,
            }
            dump("record.yaml", about)
            dump("devices.yaml", {path: _node_entry(node) for path, node in sorted(self._nodes.items())})
            if unreadable:
                dump("unreadable.yaml", unreadable)
            if self._links:
                dump("links.yaml", dict(sorted(self._links.items())))
            lines = [json.dumps(_command_entry(argv, ran, self._scrub)) + "\n" for argv, ran in self._commands if ran.state == "done"]
            (self._folder / "commands.jsonl").write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{self._folder} cannot be written: {error.strerror}", "Name a folder that is writable: fl hw --record DIR"
            ) from error

    def _write_files(self, root: Path) -> dict[str, str]:
        unreadable: dict[str, str] = {}
        for path, text in sorted(self._texts.items()):
            if text.text is None and text.error in ("ENOENT", "ENOTDIR"):
                continue
            _make(root, path, self._scrub(text.text or ""))
            if text.text is None:
                unreadable[path.lstrip("/")] = text.error or "EIO"
        for path, there in self._existing.items():
            if there and path not in self._nodes and path not in self._links and not path.startswith("/dev/"):
                _make(root, path, None if os.path.isdir(path) else "")  # noqa: PTH112
        for folder, names in self._listed.items():
            for name in names:
                path = f"{folder}/{name}"
                if path not in self._links and not folder.startswith("/dev"):
                    _make(root, path, None if os.path.isdir(path) else "")  # noqa: PTH112
        return unreadable


class Scrubber:
    """Replaces identifiers by stand-ins of the same form."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = [name for name in hosts if len(name) > 2 and name != "localhost"]
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        text = _UUID.sub(lambda m: self._stand_in(m[0].lower(), lambda n: f"{n:08x}-0000-0000-0000-{n:012x}"), text)
        text = _UNIQUE.sub(lambda m: m[1] + self._stand_in(m[2], str), text)
        for pattern in _SERIALS:
            text = pattern.sub(lambda m: m[1] + self._serial(m[2]), text)
        text = _HOME.sub("/home/user", text)
        for name in self._hosts:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "recorded-host", text)
        return text

    def _serial(self, value: str) -> str:
        if _NOTHING.fullmatch(value.strip()):
            return value
        if _HEX_SERIAL.fullmatch(value):
            return self._stand_in(str(int(value, 16)), lambda n: f"0x{n:016x}")
        return self._stand_in(value, lambda n: f"{n:013d}")

    def _stand_in(self, value: str, form: Callable[[int], str]) -> str:
        return form(self._known.setdefault(value, len(self._known) + 1))


def _make(root: Path, path: str, text: str | None) -> None:
    """A file with text, or a folder (None), unless something is there already."""
    place = root / path.lstrip("/")
    if ".." in place.parts or place.exists():
        return
    (place if text is None else place.parent).mkdir(parents=True, exist_ok=True)
    if text is not None:
        place.write_text(text, encoding="utf-8", newline="")


def _node_entry(node: Node) -> dict[str, Any]:
    entry = {
        "type": node.type,
        "major": node.major,
        "minor": node.minor,
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "openable": node.openable,
    }
    return entry if node.error is None else {**entry, "error": node.error}


def _command_entry(argv: Sequence[str], ran: Ran, scrub: Callable[[str], str]) -> dict[str, Any]:
    return {"argv": list(argv), "returncode": ran.returncode, "stdout": scrub(ran.stdout), "stderr": scrub(ran.stderr)}
