"""Small wheels, and a local index that serves them: a resolver can be asked without the network."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> Path:
    """A pure wheel that holds its metadata and nothing else."""
    base = f"{name.replace('-', '_')}-{version}"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    file = folder / f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"{base}.dist-info/METADATA"), "\n".join(lines) + "\n")
        archive.writestr(zipfile.ZipInfo(f"{base}.dist-info/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(zipfile.ZipInfo(f"{base}.dist-info/RECORD"), "")
    return file


def sdist(folder: Path, name: str, version: str) -> Path:
    """A source archive that nobody can build."""
    file = folder / f"{name}-{version}.tar.gz"
    told = f"Metadata-Version: 1.0\nName: {name}\nVersion: {version}\n"
    with tarfile.open(file, "w:gz") as archive:
        for inside, text in (("PKG-INFO", told), ("setup.py", "raise SystemExit\n")):
            info = tarfile.TarInfo(f"{name}-{version}/{inside}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return file


def wheels(folder: Path, versions: Mapping[str, Sequence[str]]) -> None:
    """Every version of every name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in versions.items():
        for version in found:
            wheel(folder, name, version)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a simple index (PEP 691: hashes, metadata, times) of a folder's files, while it is served. A file's time of change is
    when it was uploaded."""

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rstrip("/").rpartition("/")[2]
            file = folder / name.removesuffix(".metadata")
            files = [f for f in sorted(folder.iterdir()) if _project(f) == name]
            if self.path.startswith("/files/") and file.is_file():
                body = _metadata(file) if name.endswith(".metadata") else file.read_bytes()
            elif files:
                body = json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": [*map(_entry, files)]}).encode()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            kind = "octet-stream" if self.path.startswith("/files/") else "vnd.pypi.simple.v1+json"
            self.send_header("Content-Type", f"application/{kind}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        server.shutdown()
        server.server_close()


def _project(file: Path) -> str:
    stem = file.name.split("-")[0] if file.suffix == ".whl" else file.name.rpartition("-")[0]
    return re.sub(r"[-_.]+", "-", stem).lower()


def _entry(file: Path) -> dict[str, Any]:
    told = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.stat().st_mtime))
    hashes = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return {
        "filename": file.name, "url": f"/files/{file.name}", "hashes": hashes, "core-metadata": file.suffix == ".whl",
        "upload-time": told, "size": file.stat().st_size,
    }  # fmt: skip


def _metadata(file: Path) -> bytes:
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA")))
