"""A registry, asked directly: manifests, digests and layers, with docker's credentials. What it says is checked, not believed."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from fl.errors import ImageError

INDEX: Final = "application/vnd.oci.image.index.v1+json"
LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_SCHEMA2: Final = "application/vnd.docker.distribution.manifest.v2+json"
_ACCEPT: Final = ", ".join((INDEX, LIST, _MANIFEST, _SCHEMA2))
_LARGEST: Final = 4 << 20
"""Bytes of a manifest or a configuration: registries take no larger ones."""
_CHUNK: Final = 1 << 20
_TIMEOUT: Final = 30.0
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NAME: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HUB: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Name:
    """A reference in its parts: `host/repository:tag` or `host/repository@digest`."""

    host: str
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{'@' if DIGEST.fullmatch(self.tag) else ':'}{self.tag}"

    def at(self, tag: str) -> Name:
        """The same repository under another tag or digest."""
        return Name(self.host, self.repository, tag)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a registry holds under a name. `digest` is that of the bytes, whatever the registry called it."""

    digest: str
    media_type: str
    body: bytes
    document: Mapping[str, Any]

    @property
    def children(self) -> list[Mapping[str, Any]]:
        """Entries of an index; empty for one image."""
        return _mappings(self.document.get("manifests"))

    @property
    def layers(self) -> list[Mapping[str, Any]]:
        """Descriptors of an image's layers; empty for an index."""
        return _mappings(self.document.get("layers"))


def _mappings(value: object) -> list[Mapping[str, Any]]:
    """What of a list is an object; nothing of what is no list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def parse(reference: str) -> Name:
    """A reference as docker reads it: without a host it is Docker Hub's, without a tag `latest`. ImageError where it is none."""
    rest, _, digest = reference.partition("@")
    first, slash, tail = rest.partition("/")
    host, path = (first, tail) if slash and ("." in first or ":" in first or first == "localhost") else (_HUB, rest)
    repository, _, tag = path.partition(":")
    if host == _HUB and "/" not in repository:
        repository = f"library/{repository}"
    wanted = digest or tag or "latest"
    if not _NAME.fullmatch(repository) or not (DIGEST.fullmatch(digest) if digest else _TAG.fullmatch(wanted)):
        raise ImageError(f"'{reference}' is no name of an image", "HOST/REPOSITORY:TAG, as in registry.example.com/team/fl-train:STACK")
    return Name(host, repository, wanted)


def is_local(host: str) -> bool:
    """True for this machine's own addresses, which docker speaks to without TLS."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 else host.strip("[]").split("]")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def credentials(host: str) -> tuple[str, str] | None:
    """User and password that `docker login` keeps for a host, its helpers asked; None where there are none."""
    from docker import auth
    from docker.errors import DockerException

    try:
        found = auth.load_config().resolve_authconfig(None if host == _HUB else host)
    except (DockerException, OSError, ValueError) as error:
        raise ImageError(f"docker's credentials for {host} cannot be read: {error}", f"docker login {host}") from error
    if not found:
        return None
    name, secret = found.get("username") or found.get("Username"), found.get("password") or found.get("Password")
    return (str(name), str(secret)) if name and secret else None


class Registry:
    """One registry. Every answer has a time limit; `plain`: spoken to without TLS."""

    def __init__(self, host: str, plain: bool | None = None, timeout: float = _TIMEOUT) -> None:
        self.host = host
        self._plain = is_local(host) if plain is None else plain
        self._timeout = timeout
        self._session = requests.Session()
        self._token: dict[str, str] = {}

    def manifest(self, name: Name) -> Manifest | None:
        """What is there under a name, or None. ImageError where the registry's digest is not that of the bytes it sent."""
        answer = self._ask("GET", name, f"manifests/{name.tag}", headers={"Accept": _ACCEPT})
        if answer.status_code == 404:
            return None
        body = self._small(answer, name)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        told = {answer.headers.get("Docker-Content-Digest", digest), name.tag if DIGEST.fullmatch(name.tag) else digest}
        if told != {digest}:
            wrong = ", ".join(sorted(told - {digest}))
            raise ImageError(
                f"{self.host} lies about {name}: it calls it {wrong}, and what it sent has {digest}",
                "its storage or a proxy before it is broken: push the image again, to another name",
            )
        document = self._document(body, "manifest", name)
        kind = answer.headers.get("Content-Type", "").split(";")[0] or str(document.get("mediaType", ""))
        return Manifest(digest, kind, body, document)

    def config(self, name: Name, manifest: Manifest) -> Mapping[str, Any]:
        """The configuration of one image: platform, labels, history."""
        told = manifest.document.get("config")
        digest = str(told.get("digest", "")) if isinstance(told, Mapping) else ""
        answer = self._ask("GET", name, f"blobs/{digest}")
        body = b"" if answer.status_code == 404 else self._small(answer, name)
        if "sha256:" + hashlib.sha256(body).hexdigest() != digest:
            raise ImageError(f"{self.host} has a broken configuration of {name} ({digest})", "push the image again")
        return self._document(body, "configuration", name)

    def _document(self, body: bytes, kind: str, name: Name) -> Mapping[str, Any]:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{self.host} has no {kind} under {name}: {error}", "push the image again") from error
        if not isinstance(document, Mapping):
            raise ImageError(f"{self.host} has no {kind} under {name}, but other JSON", "push the image again")
        return document

    def blob_problem(self, name: Name, layer: Mapping[str, Any]) -> str | None:
        """Reads a layer back: None where its bytes have the digest and the size that the manifest states."""
        digest = str(layer.get("digest", ""))
        answer = self._ask("GET", name, f"blobs/{digest}", stream=True)
        if answer.status_code == 404:
            return f"layer {digest} is not there"
        self._good(answer, name)
        found, size = hashlib.sha256(), 0
        for chunk in self._chunks(answer, name):
            found.update(chunk)
            size += len(chunk)
        if found.hexdigest() == digest.removeprefix("sha256:"):
            return None
        return f"layer {digest} is damaged: {size} of {layer.get('size')} bytes came, with sha256 {found.hexdigest()[:12]}…"

    def put(self, name: Name, media_type: str, body: bytes) -> str:
        """Stores a manifest under a name; gives its digest, after it was read back."""
        answer = self._ask("PUT", name, f"manifests/{name.tag}", headers={"Content-Type": media_type}, data=body)
        self._good(answer, name)
        back = self.manifest(name)
        if back is None or back.body != body:
            raise ImageError(f"{self.host} took {name}, and gives back something else", "try again; its storage is broken if this stays")
        return back.digest

    def write_problem(self, name: Name) -> str | None:
        """Begins an upload and gives it up again: None where the registry would take one, else its own words."""
        answer = self._ask("POST", name, "blobs/uploads/", data=b"")
        if answer.status_code >= 300:
            return _said(answer)
        place = answer.headers.get("Location", "")
        if place.startswith("/"):
            place = f"{'http' if self._plain else 'https'}://{self.host}{place}"
        with contextlib.suppress(requests.RequestException):
            self._session.delete(place, headers=self._token, timeout=self._timeout)
        return None

    def _chunks(self, answer: requests.Response, name: Name) -> Iterator[bytes]:
        try:
            yield from answer.iter_content(_CHUNK)
        except requests.RequestException as error:
            raise self._unreachable(name, error) from error

    def _small(self, answer: requests.Response, name: Name) -> bytes:
        self._good(answer, name)
        body = b""
        for chunk in self._chunks(answer, name):
            body += chunk
            if len(body) > _LARGEST:
                raise ImageError(f"{self.host} sends more than {_LARGEST >> 20} MiB as the manifest of {name}", "is it a registry?")
        return body

    def _good(self, answer: requests.Response, name: Name) -> None:
        if answer.status_code < 300:
            return
        if answer.status_code in (401, 403):
            raise ImageError(f"{self.host} refuses {name}: {_said(answer)}", f"docker login {self.host}")
        raise ImageError(f"{self.host} answers {answer.status_code} for {name}: {_said(answer)}", "ask those who run the registry")

    def _ask(self, method: str, name: Name, path: str, **options: Any) -> requests.Response:
        """One request, a second one with a token or password where the first is answered 401."""
        server = "registry-1.docker.io" if self.host == _HUB else self.host
        url = f"{'http' if self._plain else 'https'}://{server}/v2/{name.repository}/{path}"
        headers = {**options.pop("headers", {}), **self._token}
        options.setdefault("stream", method == "GET")
        try:
            answer = self._session.request(method, url, headers=headers, timeout=self._timeout, **options)
            if answer.status_code == 401 and self._login(answer.headers.get("WWW-Authenticate", "")):
                answer.close()
                answer = self._session.request(method, url, headers={**headers, **self._token}, timeout=self._timeout, **options)
        except requests.RequestException as error:
            raise self._unreachable(name, error) from error
        return answer

    def _login(self, challenge: str) -> bool:
        """Takes what a 401 asks for: the password itself, or a token for it. False where there is nothing more to show."""
        kind, _, rest = challenge.partition(" ")
        known = credentials(self.host)
        if kind.lower() == "basic" and known:
            self._token = {"Authorization": requests.auth._basic_auth_str(*known)}
            return True
        if kind.lower() != "bearer":
            return False
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = asked.pop("realm", "")
        if urlsplit(realm).scheme != "https" and not self._plain:
            return False
        answer = self._session.get(realm, params=asked, auth=known, timeout=self._timeout)
        if answer.status_code != 200:
            return False
        document = answer.json()
        if not isinstance(document, Mapping):
            return False
        self._token = {"Authorization": f"Bearer {document.get('token') or document.get('access_token')}"}
        return True

    def _unreachable(self, name: Name, error: requests.RequestException) -> ImageError:
        silent = isinstance(error, requests.Timeout) or "timed out" in str(error).lower()
        what = f"did not answer in {self._timeout:g} s" if silent else f"cannot be reached: {_last(error)}"
        scheme = "http" if self._plain else "https"
        return ImageError(f"{self.host} {what} ({name})", f"curl -I {scheme}://{self.host}/v2/   a proxy: HTTPS_PROXY")


def _said(answer: requests.Response) -> str:
    """The registry's own words: its errors in JSON, else the status."""
    try:
        errors = answer.json().get("errors") or []
        words = [f"{one.get('message', '')} {json.dumps(one['detail']) if one.get('detail') else ''}".strip() for one in errors]
    except (ValueError, AttributeError, requests.RequestException):
        words = []
    return "; ".join(words)[:400] or f"{answer.status_code} {answer.reason}"


def _last(error: BaseException) -> str:
    """The cause at the end of requests' chains of repr()."""
    text = " ".join(str(error).split())
    last = text.rsplit(": ", 1)[-1].rstrip("'\"")
    while last.endswith(")") and last.count(")") > last.count("("):
        last = last[:-1].rstrip("'\"")
    return last[:200] or type(error).__name__
