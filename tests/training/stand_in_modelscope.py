"""ModelScope on this machine: the few endpoints of its API that its own client asks to list and fetch, over a folder.

    FOLDER/models/OWNER/NAME/…      FOLDER/datasets/OWNER/NAME/…

Written from what modelscope-hub 0.5.1 asks and reads; the real hub was never asked.
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
from urllib.parse import parse_qs, urlsplit

_REPO = re.compile(r"/api/v1/(models|datasets)/([^/]+/[^/]+)/(repo|repo/files|repo/tree)")


class ModelScope(ThreadingHTTPServer):
    """Serves a folder. `broken` is a part of a path whose download breaks off in the middle, `wrong` of one whose checksum is another's."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.broken = ""
        self.wrong = ""
        self.closed: set[str] = set()
        self.extra: list[str] = []
        """Paths that stand in the list of every repository beside its files."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ModelScope
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.server.asked.append(self.path)
        found = _REPO.fullmatch(parts.path)
        root = self.server.folder / found[1] / found[2] if found else self.server.folder
        if found is None:
            self._json(404, {"Code": 404, "Success": False, "Message": "no such endpoint"})
        elif found[2] in self.server.closed:
            self._json(403, {"Code": 403, "Success": False, "Message": "access denied"})
        elif not root.is_dir() or query.get("Revision") not in ("master", "v1.0"):
            self._json(404, {"Code": 10010205001, "Success": False, "Message": "record not found", "RequestId": "1"})
        elif found[3] == "repo":
            self._file(root / query["FilePath"], query["FilePath"])
        else:
            self._list(root)

    do_HEAD = do_GET

    def _list(self, root: Path) -> None:
        files = []
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_dir():
                files.append({"Path": name, "Name": path.name, "Type": "tree", "Size": 0})
                continue
            content = path.read_bytes()
            if self.server.wrong and self.server.wrong in name:
                content = b"something else"
            sha256 = hashlib.sha256(content).hexdigest()
            files.append({"Path": name, "Name": path.name, "Type": "blob", "Size": path.stat().st_size, "Sha256": sha256})
        files += [{"Path": path, "Name": path, "Type": "blob", "Size": 1, "Sha256": "0" * 64} for path in self.server.extra]
        self._json(200, {"Code": 200, "Success": True, "Message": "", "Data": {"Files": files, "TotalCount": len(files)}})

    def _file(self, file: Path, name: str) -> None:
        if not file.is_file():
            self._json(404, {"Code": 404, "Success": False, "Message": "no such file"})
            return
        content = file.read_bytes()
        begin = 0
        if "Range" in self.headers:
            self.server.ranges.append(f"{name} {self.headers['Range']}")
            begin = int(re.sub(r"\D.*", "", self.headers["Range"].removeprefix("bytes=")))
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command != "HEAD":
            broken = self.server.broken and self.server.broken in name
            self.wfile.write(content[begin : begin + (len(content) - begin) // 2] if broken else content[begin:])
            if broken:
                self.close_connection = True

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def modelscope(folder: Path) -> Iterator[ModelScope]:
    """The hub, while it is served."""
    server = ModelScope(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
