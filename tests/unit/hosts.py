"""Helpers for tests of detection: records of this repository, and hosts made from dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fl.detect import detect, open_host
from fl.hardware import Hardware

RECORDS = Path(__file__).resolve().parents[1] / "data" / "hosts"


def recorded(name: str) -> Hardware:
    """Detection on one of tests/data/hosts."""
    return detect(open_host(RECORDS / name))


def make(
    folder: Path,
    files: Mapping[str, str | bytes] | None = None,
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    commands: Iterable[tuple[list[str], int, str]] = (),
    **about: str,
) -> Path:
    """A host record from values; node entries are filled with usual ones."""
    (folder / "root").mkdir(parents=True)
    (folder / "record.yaml").write_text(yaml.safe_dump({"id": "made", "title": "made by a test", **about}))
    for path, text in (files or {}).items():
        place = folder / "root" / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    usual = {"type": "c", "major": 1, "minor": 0, "mode": "0666", "uid": 0, "gid": 0, "openable": True}
    (folder / "devices.yaml").write_text(yaml.safe_dump({path: {**usual, **entry} for path, entry in (nodes or {}).items()}))
    lines = [json.dumps({"argv": argv, "returncode": code, "stdout": out, "stderr": ""}) + "\n" for argv, code, out in commands]
    (folder / "commands.jsonl").write_text("".join(lines))
    return folder


def seen(folder: Path) -> Hardware:
    """Detection on a record."""
    return detect(open_host(folder))


def pci(address: str, vendor: int, device: int, kind: int, driver: str | None = None) -> dict[str, str]:
    """The files of one PCI function."""
    base = f"/sys/bus/pci/devices/{address}"
    files = {f"{base}/vendor": f"0x{vendor:04x}\n", f"{base}/device": f"0x{device:04x}\n", f"{base}/class": f"0x{kind:06x}\n"}
    return files if driver is None else {**files, f"{base}/driver": f"../../drivers/{driver}\n"}


def kfd_partitions(devices: int, each: int) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(files, nodes) of a machine with AMD devices cut into compute partitions."""
    root = "/sys/devices/virtual/kfd/kfd/topology/nodes"
    files: dict[str, str] = {f"{root}/0/properties": "cpu_cores_count 96\nsimd_count 0\n"}
    nodes: dict[str, dict[str, Any]] = {"/dev/kfd": {"gid": 109, "mode": "0660"}}
    for n in range(devices * each):
        device, part = divmod(n, each)
        files |= pci(f"0000:{16 + device * 4:02x}:00.0", 0x1002, 0x74A1, 0x120000, "amdgpu")
        files[f"{root}/{n + 1}/properties"] = (
            f"cpu_cores_count 0\nsimd_count 152\nsimd_per_cu 4\ngfx_target_version 90402\nvendor_id 4098\ndevice_id 29857\n"
            f"location_id {(16 + device * 4) << 8 | part}\ndomain 0\ndrm_render_minor {128 + n}\nunique_id {99 + device}\nnum_xcc 1\n"
        )
        files[f"{root}/{n + 1}/gpu_id"] = f"{4000 + n}\n"
        files[f"{root}/{n + 1}/mem_banks/0/properties"] = "heap_type 1\nsize_in_bytes 25769803776\n"
        nodes[f"/dev/dri/renderD{128 + n}"] = {"gid": 109, "mode": "0660"}
    return files, nodes
