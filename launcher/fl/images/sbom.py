"""A bill of materials (CycloneDX) of a lock or an image: the same bytes for the same content. The library is an extra: `fl[sbom]`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import NAMESPACE_URL, uuid5

from fl import __version__
from fl.errors import UsageError
from fl.images import lock

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

    from fl.images.inventory import Inventory

_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def document(held: Inventory, environ: Mapping[str, str] = os.environ) -> str:
    """The bill as JSON text, ending with a newline. UsageError where the library is not installed."""
    try:
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        said = f"a bill of materials is written with cyclonedx-python-lib, which is not here ({error.name})"
        raise UsageError(said, "python -m pip install 'fl[sbom]'") from error
    bom = _bom(held, environ)
    # the library gives every bill another number; ours is one of its content
    told = json.loads(JsonV1Dot6(bom).output_as_string())
    rest = {key: value for key, value in told.items() if key != "serialNumber"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**told, "serialNumber": uuid5(NAMESPACE_URL, f"fl-sbom:{digest}").urn}, indent=1, sort_keys=True) + "\n"


def _bom(held: Inventory, environ: Mapping[str, str]) -> Bom:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

    bom = Bom()
    bom.metadata.component = subject = _subject(held)
    bom.metadata.tools.components.add(Component(name="fl", version=__version__, type=ComponentType.APPLICATION, bom_ref="tool:fl"))
    bom.metadata.timestamp = _when(held, environ)
    packages = _packages(held)
    system = [_system(name, version, held) for name, version in sorted((held.system or {}).items())]
    for one in (*packages.values(), *system):
        bom.components.add(one)
    for name, component in packages.items():
        bom.register_dependency(component, [packages[other] for other in requirements(held, name) if other in packages and other != name])
    bom.register_dependency(subject, [*packages.values(), *system])
    return bom


def _when(held: Inventory, environ: Mapping[str, str]) -> datetime:
    """SOURCE_DATE_EPOCH, else when the image says it was made, else the day of the lock, else now."""
    if environ.get("SOURCE_DATE_EPOCH", "").isdigit():
        return datetime.fromtimestamp(int(environ["SOURCE_DATE_EPOCH"]), timezone.utc)
    told = held.labels.get("org.opencontainers.image.created", "")
    day = re.search(r"^# date: (\d{4}-\d\d-\d\d)", held.lock_text or "", re.M)
    text = told.replace("Z", "+00:00") if told else f"{day[1]}T00:00:00+00:00" if day else ""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(timezone.utc)


def _subject(held: Inventory) -> Component:
    """What the bill is of."""
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    name, _, tag = held.name.partition("@")[0].rpartition(":")
    place, _, short = (name or tag).rpartition("/")
    qualifiers = {"arch": (held.platform or "/").split("/")[1], **({"repository_url": f"{place}/{short}"} if place else {})}
    purl = PackageURL("oci", None, short, held.digest, qualifiers) if held.digest else None
    told = {**held.labels, "fl.platform": held.platform or "", "fl.image.id": held.id or "", "fl.packages.from": held.source}
    return Component(
        name=short if held.kind == "image" else held.name,
        version=tag if held.kind == "image" and name else None,
        type=ComponentType.CONTAINER if held.kind == "image" else ComponentType.APPLICATION,
        bom_ref="subject",
        purl=purl,
        properties=[Property(name=key, value=value) for key, value in sorted(told.items()) if value],
    )


def _packages(held: Inventory) -> dict[str, Component]:
    """Python packages by normalized name. A hash is stated where the lock leaves no choice; else those of all files that it lets in."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    entries = lock.entries(held.lock_text or "")
    details = {lock.normalize(str(one["name"])): one for one in held.details}
    found = {}
    for name, version in sorted(held.packages.items()):
        hashes = _HASH.findall(entries.get(name, ""))
        found[name] = Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"pypi:{name}",
            purl=PackageURL("pypi", None, name, version),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashes[0])] if len(hashes) == 1 else None,
            properties=[Property(name="fl:lock:sha256", value=one) for one in hashes] if len(hashes) > 1 else None,
            licenses=_licences(details.get(name, {})),
        )
    return found


def _licences(told: Mapping[str, Any]) -> list[Any]:
    """The licence that a package states: an SPDX expression or id where it is one, else its words."""
    from cyclonedx.contrib.license.factories import LicenseFactory

    words = str(told.get("license") or "") or ", ".join(told.get("classifiers") or ())
    return [LicenseFactory().make_from_string(words)] if words and words.upper() != "UNKNOWN" else []


def _system(name: str, version: str, held: Inventory) -> Component:
    """A Debian package."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    distribution = held.release.get("ID", "debian")
    release = held.release.get("VERSION_ID")
    qualifiers = {"distro": f"{distribution}-{release}"} if release else None
    purl = PackageURL("deb", distribution, name, version, qualifiers)
    return Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"deb:{name}", purl=purl)


def requirements(held: Inventory, name: str) -> list[str]:
    """Normalized names of what an installed package requires on the image's platform; empty where only a lock is known."""
    from packaging.requirements import InvalidRequirement, Requirement

    details = {lock.normalize(str(one["name"])): one for one in held.details}
    machine = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}.get(held.platform or "", "x86_64")
    place = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine, "extra": ""}
    if held.python:
        place |= {"python_full_version": held.python, "python_version": ".".join(held.python.split(".")[:2])}
    found = []
    for line in details.get(name, {}).get("requires") or ():
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker is None or wanted.marker.evaluate(place):
            found.append(lock.normalize(wanted.name))
    return sorted(set(found))
