"""Pushing an image: docker moves the layers with the user's credentials; the time-outs, retries and the look at what arrived are ours."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import requests
from docker.errors import APIError, DockerException

from fl.engines import daemon
from fl.errors import FlError, ImageError
from fl.images import registry

SILENCE: Final = 120.0
"""Seconds without a byte after which a push is given up: docker waits for a silent registry for ever."""
_LINE: Final = 5.0
_WAITS: Final = (2.0, 8.0, 30.0)
"""Seconds before the tries after the first."""
_DENIED: Final = re.compile(r"unauthori[sz]ed|denied|no basic auth|authentication required|forbidden|insufficient_scope", re.I)
_FULL: Final = re.compile(r"no space left|disk quota|\"Err\": ?28\b|\"Err\": ?122\b", re.I)
_PASSING: Final = re.compile(
    r"reset by peer|broken pipe|EOF|time.?out|refused|temporar|unexpected HTTP status: 5|50[0234]|toomanyrequests|blob upload|closed", re.I
)


class Transient(ImageError):
    """A failure that may be gone at the next try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What the registry holds now under a name: told by docker, and read back from the registry."""

    reference: str
    digest: str
    platform: str
    size: int
    """Bytes of its layers as they are stored and pulled."""
    seconds: float


class Progress:
    """What a push has told so far. Only bytes and finished layers count as news; docker's own retries do not."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.there: set[str] = set()
        self.retrying = False
        self.digest: str | None = None

    def add(self, item: Mapping[str, Any]) -> bool:
        """Takes one JSON line of the stream; True where it was news."""
        layer, detail, status = str(item.get("id", "")), item.get("progressDetail") or {}, str(item.get("status", ""))
        aux = item.get("aux")
        if isinstance(aux, Mapping) and "Digest" in aux:
            self.digest = str(aux["Digest"])
            return True
        if status.startswith("Retrying"):
            self.retrying = True
            return False
        if status in ("Pushed", "Layer already exists") or status.startswith("Mounted from"):
            self.done[layer] = self.total.get(layer, 0)
            self.there.add(layer)
            return True
        if status == "Pushing" and "current" in detail:
            before = self.done.get(layer)
            self.done[layer], self.total[layer] = int(detail["current"]), int(detail.get("total", detail["current"]))
            return self.done[layer] != before
        return status == "Preparing" and layer not in self.done and self.done.setdefault(layer, 0) == 0

    def line(self) -> str:
        """`312 of 2411 MB, 3 of 6 layers`."""
        done, total = sum(self.done.values()), sum(self.total.values())
        layers = f"{len(self.there)} of {len(self.done)} layers"
        return f"{min(done, total) / 1e6:.0f} of {total / 1e6:.0f} MB, {layers}" if total else layers


def push(
    reference: str,
    report: Callable[[str], None],
    *,
    silence: float = SILENCE,
    retries: int = 2,
    pause: Callable[[float], None] = time.sleep,
) -> Pushed:
    """Pushes a local image under its name, tries again what may pass, and reads the manifest back. ImageError with cause and cure."""
    begin = time.monotonic()
    for attempt in range(retries + 1):
        try:
            digest = _once(reference, report, silence)
            break
        except Transient as error:
            if attempt == retries:
                raise ImageError(f"{error.message} ({attempt + 1} tries)" if attempt else error.message, error.remedy) from error
            wait = _WAITS[min(attempt, len(_WAITS) - 1)]
            report(f"{error.message.splitlines()[0]} Trying again in {wait:g} s")
            pause(wait)
    name = registry.parse(reference)
    holder = registry.Registry(name.host)
    manifest = holder.manifest(name)
    if manifest is None or manifest.digest != digest:
        found = manifest.digest if manifest else "nothing"
        said = f"docker pushed {digest}, and {name.host} holds {found} under {reference}"
        raise ImageError(said, "somebody else pushes there too: push again")
    config = holder.config(name, manifest)
    return Pushed(
        reference=reference,
        digest=digest,
        platform=f"{config.get('os')}/{config.get('architecture')}",
        size=sum(int(layer.get("size", 0)) for layer in manifest.layers),
        seconds=round(time.monotonic() - begin, 1),
    )


def damaged(reference: str, report: Callable[[str], None]) -> list[str]:
    """Reads every layer of an image back from its registry: what is missing, short or has other bytes than its digest says.

    docker does not send what the registry says it has, and what it has may have rotted.
    """
    name = registry.parse(reference)
    holder = registry.Registry(name.host)
    manifest = holder.manifest(name)
    if manifest is None:
        raise ImageError(f"{name.host} has no image {reference}", "fl images push STACK")
    found = []
    for number, layer in enumerate(manifest.layers, 1):
        report(f"reading back layer {number} of {len(manifest.layers)}, {int(layer.get('size', 0)) / 1e6:.0f} MB")
        if (problem := holder.blob_problem(name, layer)) is not None:
            found.append(problem)
    return found


def _once(reference: str, report: Callable[[str], None], silence: float) -> str:
    """One push to its end; the digest that docker tells."""
    news: queue.Queue[Mapping[str, Any] | Exception | None] = queue.Queue()
    address = daemon.endpoint(os.environ)
    threading.Thread(target=_read, args=(address, reference, news), name="fl-push", daemon=True).start()
    progress, shown, heard, asked = Progress(), 0.0, time.monotonic(), False
    while True:
        try:
            item = news.get(timeout=0.2)
        except queue.Empty:
            item = {}
        if item is None:
            break
        if isinstance(item, FlError):
            raise item
        if isinstance(item, Exception):
            raise explain(str(item.explanation or item) if isinstance(item, APIError) else str(item), reference)
        if "error" in item:
            raise explain(str(item["error"]), reference)
        if progress.add(item):
            heard = time.monotonic()
        if progress.retrying and not asked:
            asked = True
            _ask_why(reference)
        if time.monotonic() - heard > silence:
            what = "docker was retrying" if progress.retrying else "the registry is silent"
            raise Transient(f"No byte of {reference} moved for {silence:g} s ({progress.line()}): {what}.", f"docker push {reference}")
        if time.monotonic() - shown >= _LINE and item:
            shown = time.monotonic()
            report(f"pushing {reference}: {progress.line()}")
    if progress.digest is None:
        raise ImageError(f"docker ended the push of {reference} without a digest", f"docker push {reference}")
    return progress.digest


def _read(address: str, reference: str, news: queue.Queue[Mapping[str, Any] | Exception | None]) -> None:
    """The stream in a thread of its own, so that a socket that never speaks again holds up nobody."""
    from docker.utils import parse_repository_tag

    try:
        client = daemon.client(address, 600)
        repository, tag = parse_repository_tag(reference)
        for item in client.push(repository, tag=tag, stream=True, decode=True):
            news.put(item)
        news.put(None)
    except (requests.RequestException, DockerException, FlError, OSError, ValueError) as error:
        news.put(error)


def _ask_why(reference: str) -> None:
    """While docker retries and says nothing: what the registry itself says of a write. Raises where waiting is of no use."""
    name = registry.parse(reference)
    try:
        said = registry.Registry(name.host, timeout=10).write_problem(name)
    except ImageError:
        return
    if said is not None and (_FULL.search(said) or _DENIED.search(said)):
        raise explain(said, reference)


def explain(said: str, reference: str) -> ImageError:
    """The error behind a failed push."""
    host = registry.parse(reference).host
    text = " ".join(said.split())
    if _FULL.search(text):
        said = f"The disk of the registry {host} is full; {reference} was not pushed: {text}"
        return ImageError(said, f"free space on {host}, then push again")
    if _DENIED.search(text):
        return ImageError(f"The registry {host} refuses {reference}: {text}", f"docker login {host}")
    if re.search(r"does not exist locally|no such image", text, re.I):
        return ImageError(f"There is no image {reference} on this machine.", "fl images build STACK")
    if re.search(r"digest|manifest invalid", text, re.I):
        return ImageError(f"The registry {host} did not take {reference} as it was sent: {text}", f"a proxy before {host} changes bytes?")
    if _PASSING.search(text):
        said = f"The registry {host} broke off the push of {reference}: {text}."
        scheme = "http" if registry.is_local(host) else "https"
        return Transient(said, f"curl -I {scheme}://{host}/v2/\ndocker push {reference}")
    return ImageError(f"{reference} cannot be pushed: {text}", f"docker push {reference}")
