"""The bill of materials of a lock and of an image: valid, complete, and the same for the same content."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl.commands.images import images
from fl.errors import ImageError, UsageError
from fl.images import inventory, lock, sbom

pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib (fl[sbom]) is not installed")
LOCK = (
    f"click==8.4.2 \\\n    --hash=sha256:{'1' * 64}\n"
    f"rich==15.0.0 \\\n    --hash=sha256:{'2' * 64} \\\n    --hash=sha256:{'3' * 64}\n"
)
IMAGE = inventory.Inventory(
    name="r.example/team/fl-train:x-0.1.0",
    kind="image",
    source="installed",
    packages={"click": "8.4.2", "rich": "15.0.0", "torch": "2.13.0+cpu", "fl": "0.1.0"},
    details=(
        {"name": "click", "version": "8.4.2", "license": "BSD-3-Clause", "requires": ['colorama; platform_system == "Windows"']},
        {"name": "rich", "version": "15.0.0", "license": None, "classifiers": ["MIT License"], "requires": []},
        {"name": "torch", "version": "2.13.0+cpu", "license": "UNKNOWN", "requires": []},
        {"name": "fl", "version": "0.1.0", "license": "Apache-2.0", "requires": ["click>=8.1", "rich", "pytest; extra == 'dev'", "a ;;"]},
    ),
    system={"gcc": "4:12.2.0-3"},
    digest="sha256:" + "d" * 64,
    id="sha256:" + "e" * 64,
    platform="linux/amd64",
    labels={"fl.stack": "x", "org.opencontainers.image.created": "2026-11-24T10:00:00Z"},
    lock_text=LOCK,
    python="3.11.2",
    release={"ID": "debian", "VERSION_ID": "12"},
)


def parts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["bom-ref"]: one for one in document["components"]}


def valid(text: str) -> None:
    pytest.importorskip("jsonschema", reason="the library's validation needs jsonschema")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_an_image_s_bill_is_valid_and_says_what_is_in_it() -> None:
    text = sbom.document(IMAGE, {})
    valid(text)
    document = json.loads(text)
    found = parts(document)
    assert {ref: one["purl"] for ref, one in found.items()} == {
        "pypi:click": "pkg:pypi/click@8.4.2",
        "pypi:rich": "pkg:pypi/rich@15.0.0",
        "pypi:torch": "pkg:pypi/torch@2.13.0%2Bcpu",
        "pypi:fl": "pkg:pypi/fl@0.1.0",
        "deb:gcc": "pkg:deb/debian/gcc@4:12.2.0-3?distro=debian-12",
    }
    assert found["pypi:click"]["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}]
    assert "hashes" not in found["pypi:rich"], "which of two files was installed is not known"
    assert [one["value"] for one in found["pypi:rich"]["properties"]] == ["2" * 64, "3" * 64]
    assert found["pypi:click"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert found["pypi:rich"]["licenses"] == [{"license": {"name": "MIT License"}}]
    assert "licenses" not in found["pypi:torch"]
    depends = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    assert depends["pypi:fl"] == ["pypi:click", "pypi:rich"]
    assert set(depends["subject"]) == set(found)
    subject = document["metadata"]["component"]
    assert (subject["type"], subject["name"], subject["version"]) == ("container", "fl-train", "x-0.1.0")
    assert subject["purl"].startswith("pkg:oci/fl-train@sha256:ddd") and "repository_url=r.example" in subject["purl"]
    assert document["metadata"]["timestamp"] == "2026-11-24T10:00:00+00:00"


def test_the_same_content_is_the_same_bytes() -> None:
    first = sbom.document(IMAGE, {})
    assert sbom.document(IMAGE, {}) == first
    other = sbom.document(IMAGE, {"SOURCE_DATE_EPOCH": "0"})
    assert json.loads(other)["metadata"]["timestamp"] == "1970-01-01T00:00:00+00:00"
    assert json.loads(other)["serialNumber"] != json.loads(first)["serialNumber"]


@pytest.mark.parametrize(("stack", "platform"), [("cpu-torch213", "linux/amd64"), ("cuda130-torch214", "linux/arm64")])
def test_a_lock_s_bill_has_each_package_once_in_its_version(stack: str, platform: str) -> None:
    found = lock.path(stack, "train", platform)
    assert found is not None
    done = CliRunner().invoke(images, ["sbom", stack, "--platform", platform], catch_exceptions=False)
    components = parts(json.loads(done.stdout)).values()
    assert {one["name"]: one["version"] for one in components} == lock.parse(found.read_text())


def test_a_lock_s_bill_is_valid_and_has_the_lock_s_day(tmp_path: Path) -> None:
    file = tmp_path / "bill.json"
    words = ["sbom", "cpu-torch213", "--platform", "linux/amd64", "--output"]
    done = CliRunner().invoke(images, [*words, str(file)], catch_exceptions=False)
    assert done.exit_code == 0
    valid(file.read_text())
    assert json.loads(file.read_text())["metadata"]["component"]["type"] == "application"
    with pytest.raises(ImageError, match="cannot be written"):
        CliRunner().invoke(images, [*words, str(tmp_path / "no" / "x")], catch_exceptions=False)
    assert [one.name for one in tmp_path.iterdir()] == ["bill.json"]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedx.output.json", None)
    with pytest.raises(UsageError, match="cyclonedx-python-lib, which is not here") as caught:
        sbom.document(IMAGE, {})
    assert "fl[sbom]" in caught.value.remedy


def test_what_a_base_says_of_itself_is_read() -> None:
    assert inventory.os_release('# x\nID=debian\nVERSION_ID="12"\n\nbad\n') == {"ID": "debian", "VERSION_ID": "12"}
