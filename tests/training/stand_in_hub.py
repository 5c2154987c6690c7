"""A hub on this machine: the few endpoints of the Hugging Face hub that huggingface_hub and datasets ask, over a folder.

    FOLDER/models/OWNER/NAME/…      FOLDER/datasets/OWNER/NAME/…
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub(ThreadingHTTPServer):
    """Serves a folder; `broken` is a part of a path whose download breaks off in the middle."""

    daemon_threads = True

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.gated: set[str] = set()
        self.broken = ""

    @property
    def address(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def files(self, kind: str, name: str) -> dict[str, Path]:
        """Path in the repository → file; empty where there is no such repository."""
        root = self.folder / kind / name
        return {str(file.relative_to(root)): file for file in sorted(root.rglob("*")) if file.is_file()}

    def commit(self, kind: str, name: str) -> str:
        """A name for the content, as a commit is."""
        digest = hashlib.sha1()
        for path, file in self.files(kind, name).items():
            digest.update(path.encode() + file.read_bytes())
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        if (api := _API.fullmatch(path)) is not None:
            self._api(body, *api.groups())
        elif (file := _FILE.fullmatch(path)) is not None:
            self._file("datasets" if file[1] else "models", file[2], file[4])
        else:
            self._json(404, {"error": "no such endpoint"})

    do_HEAD = do_POST = do_GET

    def _api(self, body: bytes, kind: str, name: str, what: str | None, revision: str | None, below: str | None) -> None:
        files, commit = self.server.files(kind, name), self.server.commit(kind, name)
        if not files:
            self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in (None, "main", commit):
            self._json(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        elif what == "tree":
            found = [path for path in files if path.startswith(f"{below}/" if below else "")]
            self._json(200, [self._entry(files, path) for path in found])
        elif what == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) or json.loads(body or b"{}").get("paths", [])
            self._json(200, [self._entry(files, path) for path in asked if path in files])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json(200, {"id": name, "sha": commit, "private": False, "gated": False, "disabled": False, "siblings": siblings,
                             "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-11-01T00:00:00.000Z"})  # fmt: skip

    def _entry(self, files: dict[str, Path], path: str) -> dict[str, Any]:
        content = files[path].read_bytes()
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _file(self, kind: str, name: str, path: str) -> None:
        file = self.server.files(kind, name).get(path)
        if name in self.server.gated:
            self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted"})
            return
        if file is None:
            self._json(404, {"error": "no entry"}, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content = file.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        begin = int(re.sub(r"\D.*", "", self.headers.get("Range", "bytes=0-").removeprefix("bytes=")) or 0)
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", self.server.commit(kind, name))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command != "HEAD":
            broken = self.server.broken and self.server.broken in path
            self.wfile.write(content[begin : begin + (len(content) - begin) // 2] if broken else content[begin:])
            if broken:
                self.close_connection = True

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for header, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(header, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def hub(folder: Path, host: str = "127.0.0.1") -> Iterator[Hub]:
    """The hub, while it is served."""
    server = Hub(folder, host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
