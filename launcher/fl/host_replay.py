"""A host that is a record (format: a folder with record.yaml, root/, devices.yaml, commands.jsonl). Nothing of it is ever executed."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fl.errors import UsageError
from fl.hardware import Node
from fl.host import OUTPUT_LIMIT, Ran, Text, read_file

_YAML_LIMIT: Final = 256 << 10
"""About 2500 device nodes; more costs seconds and tens of megabytes."""
_COMMANDS_LIMIT: Final = 8 << 20
_LINK_LIMIT: Final = 512


class ReplayHost:
    """A recorded machine. Paths that would lead outside its root/ do not exist."""

    live = False

    def __init__(self, folder: Path) -> None:
        if not (folder / "record.yaml").is_file():
            raise UsageError(f"{folder} is no host record: record.yaml is missing", "Make one with `fl hw --record DIR`.")
        about = _mapping(folder, "record.yaml", required=True)
        self.os: str | None = _text(about.get("os"))
        self.arch: str | None = _text(about.get("arch"))
        self._root = os.path.realpath(folder / "root")
        self._nodes = {
            path: _node(path, entry)
            for path, entry in _mapping(folder, "devices.yaml").items()
            if isinstance(path, str) and isinstance(entry, dict)
        }
        self._unreadable = {path.strip("/"): error for path, error in _texts(folder, "unreadable.yaml").items()}
        self._links = {"/" + path.strip("/"): target for path, target in _texts(folder, "links.yaml").items()}
        self._commands = _commands(folder / "commands.jsonl")
        self._folders: dict[str, str | None] = {}

    def read(self, path: str) -> Text:
        place = self._place(path)
        if (error := self._unreadable.get(path.strip("/"))) is not None:
            return Text(None, error)
        return Text(None, "ENOENT") if place is None else read_file(place)

    def names(self, path: str) -> tuple[str, ...]:
        place = self._place(path)
        try:
            return () if place is None else tuple(sorted(os.listdir(place)))  # noqa: PTH208
        except OSError:
            return ()

    def exists(self, path: str) -> bool:
        place = self._place(path)
        return path in self._nodes or path in self._links or (place is not None and os.path.exists(place))  # noqa: PTH110

    def link(self, path: str) -> str | None:
        """Also a small file that holds a link's text: records pass through tools that do not keep links."""
        if path in self._links:
            return self._links[path]
        place = self._place(posixpath.dirname(path))
        if place is None:
            return None
        here = f"{place}/{posixpath.basename(path)}"
        try:
            return os.readlink(here)  # noqa: PTH115
        except OSError:
            text = read_file(here, _LINK_LIMIT).text or ""
        return text.strip() if text.startswith(("../", "/")) and "\n" not in text.strip() else None

    def node(self, path: str) -> Node | None:
        return self._nodes.get(path)

    def node_names(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted(posixpath.basename(path) for path in self._nodes if posixpath.dirname(path) == folder.rstrip("/")))

    def run(self, argv: Sequence[str]) -> Ran:
        known = [recorded for recorded in self._commands if recorded[0][0] == argv[0]]
        if not known:
            return Ran("missing")
        for recorded, ran in known:
            if recorded == list(argv):
                return ran
        return next((picked for recorded, ran in known if (picked := pick_columns(recorded, ran, argv)) is not None), Ran("unrecorded"))

    def _place(self, path: str) -> str | None:
        """Where a path of the host lies in the record; None when a link leads out of it."""
        clean = posixpath.normpath("/" + path.lstrip("/"))
        if clean == "/":
            return self._root
        parent, name = posixpath.split(clean)
        if parent not in self._folders:
            self._folders[parent] = self._place(parent)
        folder = self._folders[parent]
        if folder is None:
            return None
        place = f"{folder}/{name}"
        return self._inside(place) if os.path.islink(place) else place  # noqa: PTH114

    def _inside(self, place: str) -> str | None:
        real = os.path.realpath(place)
        return real if real == self._root or real.startswith(self._root + "/") else None


def pick_columns(recorded: Sequence[str], ran: Ran, argv: Sequence[str]) -> Ran | None:
    """A recorded `nvidia-smi --query-X=FIELDS --format=csv` answers a query for some of its fields, with noheader and nounits too."""
    if len(recorded) != 3 or len(argv) != 3 or not ran.ok or recorded[2] != "--format=csv" or not argv[2].startswith("--format=csv"):
        return None
    option, _, fields = recorded[1].partition("=")
    wanted_option, _, wanted_fields = argv[1].partition("=")
    if option != wanted_option or not option.startswith("--query-"):
        return None
    columns, formats = fields.split(","), argv[2].partition("=")[2].split(",")
    wanted = wanted_fields.split(",")
    unknown = [field for field in wanted if field not in columns]
    if unknown:
        return Ran("done", 2, f'Field "{unknown[0]}" is not a valid field to query.\n')
    places = [columns.index(field) for field in wanted]
    lines = [line.split(", ") for line in ran.stdout.splitlines() if line.strip()]
    if "nounits" in formats:
        lines = lines[:1] + [[_without_unit(cell) for cell in line] for line in lines[1:]]
    kept = lines[1:] if "noheader" in formats else lines
    return Ran("done", 0, "".join(", ".join(line[place] if place < len(line) else "" for place in places) + "\n" for line in kept))


def _without_unit(cell: str) -> str:
    number, _, unit = cell.partition(" ")
    return number if unit and number.replace(".", "", 1).isdigit() and " " not in unit else cell


def _texts(folder: Path, name: str) -> dict[str, str]:
    """The entries whose key and value are text."""
    found = _mapping(folder, name)
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, str)}


def _loader() -> type[Any]:
    """A safe loader without merge keys: with them a short text can grow without bounds."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            """Merges nothing; a merge key is then an error."""

    return Loader


def _mapping(folder: Path, name: str, required: bool = False) -> Mapping[Any, Any]:
    import yaml

    path = folder / name
    if not path.exists() and not required:
        return {}
    text = read_file(str(path), _YAML_LIMIT + 1)
    if text.text is None or len(text.text) > _YAML_LIMIT:
        raise UsageError(f"{path} of the host record cannot be read ({text.error or 'too long'})")
    try:
        value = yaml.load(text.text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} of the host record is not YAML: {' '.join(str(error).split())[:300]}") from error
    if value is not None and not isinstance(value, dict):
        raise UsageError(f"{path} of the host record is no mapping")
    return value or {}


def _commands(path: Path) -> list[tuple[list[str], Ran]]:
    if not path.exists():
        return []
    text = read_file(str(path), _COMMANDS_LIMIT)
    commands: list[tuple[list[str], Ran]] = []
    for number, line in enumerate((text.text or "").split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            argv = [word for word in entry["argv"] if isinstance(word, str)]
            code = int(entry.get("returncode") or 0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise UsageError(f"{path}, line {number}: not a recorded command ({type(error).__name__})") from error
        if argv:
            commands.append((argv, Ran("done", code, _output(entry.get("stdout")), _output(entry.get("stderr")))))
    return commands


def _output(value: Any) -> str:
    return value[:OUTPUT_LIMIT] if isinstance(value, str) else ""


def _text(value: Any) -> str | None:
    return value[:64] if isinstance(value, str) and value else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else 0


def _node(path: str, entry: Mapping[str, Any]) -> Node:
    mode = entry.get("mode")
    octal = mode if isinstance(mode, str) and len(mode) <= 6 and set(mode) <= set("01234567o") else ""
    openable = entry.get("openable")
    return Node(
        path=path,
        type=(_text(entry.get("type")) or "c")[:1],
        major=_whole(entry.get("major")),
        minor=_whole(entry.get("minor")),
        mode=int(octal.replace("o", "") or "0", 8) if octal else _whole(mode),
        uid=_whole(entry.get("uid")),
        gid=_whole(entry.get("gid")),
        openable=openable if isinstance(openable, bool) else None,
        error=_text(entry.get("error")),
    )
