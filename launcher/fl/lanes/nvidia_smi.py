"""nvidia-smi's four formats: `-q -x` (XML), `-q` (indented text), `--query-gpu` (CSV), `-L` (list). Pure parsers of untrusted text.

Formats drift: fields vanish (cuda_version in 390-era XML), are renamed (610: "KMD version"), or say where to look instead.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fl.lanes.nvidia_report import GpuReport, MigReport, Report
from fl.lanes.values import MOST, bdf, hexadecimal, known, mebibytes, rows, version, whole

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

QUERY: Final = (
    "index",
    "name",
    "uuid",
    "pci.bus_id",
    "pci.device_id",
    "driver_version",
    "memory.total",
    "compute_cap",
    "compute_mode",
    "mig.mode.current",
    "driver_model.current",
    "fabric.state",
)
_XML_ELEMENTS: Final = 200_000
_BROKEN: Final = re.compile(r"requires reset|is lost|ERR!|Unknown Error", re.I)
_LISTED: Final = re.compile(r"GPU (\d{1,4}): (.*)$")
_UUID: Final = re.compile(r"GPU-[0-9a-fA-F-]{4,64}")
_LISTED_MIG: Final = re.compile(r"\s+MIG (\S{1,32})\s+Device\s+(\d{1,3}): \(UUID: (MIG-[0-9a-zA-Z/-]{4,96})\)")
_PROFILE: Final = re.compile(r"(?:\d+c\.)?\d+g\.\d+gb(?:[+-][a-z.]+)*")


def parse_xml(text: str) -> Report:
    """`nvidia-smi -q -x`. Entities are refused: real output has a DOCTYPE, but declares none."""
    from xml.etree import ElementTree

    source = "nvidia-smi -q -x"
    if text.count("<") > _XML_ELEMENTS:
        return Report(source=source, malformed="its XML is too long")
    if "<!ENTITY" in text:
        return Report(source=source, malformed="its XML declares entities")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        return Report(source=source, malformed=f"its XML is broken ({known(str(error), 100)})")
    driver = version(root.findtext("kmd_version")) or version(root.findtext("driver_version"))
    cuda = version(root.findtext("cuda_umd_version")) or version(root.findtext("cuda_version"))
    return Report(
        source=source, driver=driver, max_cuda=cuda, gpus=tuple(_xml_gpu(n, gpu) for n, gpu in enumerate(root.findall("gpu")[:MOST]))
    )


def _xml_gpu(index: int, gpu: Element) -> GpuReport:
    mode = known(gpu.findtext("mig_mode/current_mig"))
    compute, instances, counted = _xml_processes(gpu)
    model = known(gpu.findtext("driver_model/current_dm"))
    device = hexadecimal(gpu.findtext("pci/pci_device_id"))
    memory = gpu.findtext("fb_memory_usage/total")
    return GpuReport(
        index=index,
        pci=bdf(gpu.get("id")) or bdf(gpu.findtext("pci/pci_bus_id")),
        name=known(gpu.findtext("product_name")),
        uuid=known(gpu.findtext("uuid")),
        device=None if device is None else device >> 16,
        minor=whole(gpu.findtext("minor_number"), 4),
        memory_mib=mebibytes(memory),
        mig=None if mode is None else mode == "Enabled",
        migs=tuple(_xml_mig(n, mig) for n, mig in enumerate(gpu.findall("mig_devices/mig_device")[:MOST])),
        busy=compute if counted and model is None else None,
        busy_instances=instances,
        compute_mode=known(gpu.findtext("compute_mode")),
        fabric=known(gpu.findtext("fabric/state")),
        model=model,
        broken=_broken(memory),
    )


def _xml_mig(place: int, mig: Element) -> MigReport:
    number = whole(mig.findtext("index"), 3)
    return MigReport(
        number=place if number is None else number,
        instance=whole(mig.findtext("gpu_instance_id"), 4),
        compute=whole(mig.findtext("compute_instance_id"), 4),
        memory_mib=mebibytes(mig.findtext("fb_memory_usage/total")),
        uuid=known(mig.findtext("uuid")),
    )


def _xml_processes(gpu: Element) -> tuple[bool, frozenset[tuple[int, int | None]], bool]:
    """(a compute process is there, instances with one, there is a process table at all). Type G is graphics: no load."""
    table = gpu.find("processes")
    if table is None or known(table.text):
        return False, frozenset(), False
    compute = [process for process in table.findall("process_info") if "C" in (process.findtext("type") or "C")]
    instances = {(whole(p.findtext("gpu_instance_id"), 4), whole(p.findtext("compute_instance_id"), 4)) for p in compute}
    return bool(compute), frozenset((gpu, part) for gpu, part in instances if gpu is not None), True


def _broken(text: str | None) -> str | None:
    return known(f"memory: {text}") if text and _BROKEN.search(text) else None


def parse_csv(text: str, fields: tuple[str, ...]) -> Report:
    """`nvidia-smi --query-gpu=FIELDS --format=csv,noheader,nounits`."""
    gpus: list[GpuReport] = []
    driver, bad = None, 0
    for line in rows(text):
        if len(gpus) >= MOST:
            break
        cells = [cell.strip() for cell in line.split(", ")]
        row = dict(zip(fields, cells, strict=False))
        index = whole(row.get("index", str(len(gpus))), 4)
        if len(cells) != len(fields) or index is None:
            bad += bool(line.strip())
            continue
        driver = driver or version(row.get("driver_version"))
        device, mode = hexadecimal(row.get("pci.device_id")), known(row.get("mig.mode.current"))
        gpus.append(
            GpuReport(
                index=index,
                pci=bdf(row.get("pci.bus_id")),
                name=known(row.get("name")),
                uuid=known(row.get("uuid")),
                device=None if device is None else device >> 16,
                capability=known(row.get("compute_cap")),
                memory_mib=mebibytes(row.get("memory.total")),
                mig=None if mode is None else mode == "Enabled",
                compute_mode=known(row.get("compute_mode")),
                fabric=known(row.get("fabric.state")),
                model=known(row.get("driver_model.current")),
                broken=_broken(row.get("memory.total")),
            )
        )
    return Report(
        source="nvidia-smi --query-gpu",
        driver=driver,
        gpus=tuple(gpus),
        malformed=f"{bad} of its lines are not in the expected form" if bad else None,
    )


def parse_apps(text: str) -> frozenset[str]:
    """UUIDs of GPUs that `--query-compute-apps=gpu_uuid,pid` lists a process for."""
    table = [line.split(", ") for line in rows(text)]
    return frozenset(row[0].strip() for row in table if len(row) == 2 and row[0].startswith(("GPU-", "MIG-")))


def parse_list(text: str) -> Report:
    """`nvidia-smi -L`. Behind a site's wrapper it may print several machines: indices restart, and only the first list counts."""
    gpus: list[GpuReport] = []
    restarted = False
    for line in rows(text):
        if len(gpus) >= MOST:
            break
        if match := _LISTED.match(line):
            index, (name, _, end) = int(match[1]), match[2].rstrip().partition(" (UUID: ")
            restarted = restarted or any(gpu.index == index for gpu in gpus)
            if not restarted:
                uuid = end.removesuffix(")")
                gpus.append(GpuReport(index=index, name=known(name), uuid=uuid if _UUID.fullmatch(uuid) else None))
        elif (match := _LISTED_MIG.match(line)) and gpus and not restarted:
            profile = match[1] if _PROFILE.fullmatch(match[1]) else None
            mig = MigReport(number=int(match[2]), uuid=match[3], profile=profile)
            last = gpus[-1]
            gpus[-1] = GpuReport(index=last.index, name=last.name, uuid=last.uuid, mig=True, migs=(*last.migs, mig))
    if restarted:
        # Which of the lists is this machine's cannot be told: the models are alike, the UUIDs are not.
        gpus = [GpuReport(index=gpu.index, name=gpu.name) for gpu in gpus]
    return Report(source="nvidia-smi -L", gpus=tuple(gpus), notes=("it lists several machines",) if restarted else ())


def parse_text(text: str) -> Report:
    """`nvidia-smi -q`: indented `Key : Value` lines."""
    head: dict[str, str] = {}
    gpus: list[dict[str, list[str]]] = []
    path: list[tuple[int, str]] = []
    for line in rows(text):
        if re.match(r"GPU [0-9a-fA-F]{4,8}:", line):
            if len(gpus) >= MOST:
                break
            gpus.append({"id": [line[4:].strip()]})
            path = []
            continue
        key, colon, value = line.partition(" : ")
        key, indent = key.strip(), len(line) - len(line.lstrip())
        if not key:
            continue
        if not gpus:
            head.setdefault(key, value)
            continue
        path = [(depth, name) for depth, name in path if depth < indent]
        full = "/".join([name for _, name in path] + [key])
        gpus[-1].setdefault(full, []).append(value.strip())
        if not colon:
            path.append((indent, key))
    driver = version(head.get("KMD Version")) or version(head.get("Driver Version"))
    cuda = version(head.get("CUDA UMD Version")) or version(head.get("CUDA Version"))
    return Report(source="nvidia-smi -q", driver=driver, max_cuda=cuda, gpus=tuple(_text_gpu(n, gpu) for n, gpu in enumerate(gpus)))


def _text_gpu(index: int, gpu: dict[str, list[str]]) -> GpuReport:
    def one(key: str) -> str | None:
        return gpu.get(key, [None])[0]

    mode, model = known(one("MIG Mode/Current")), known(one("Driver Model/Current"))
    device = hexadecimal(one("PCI/Device Id"))
    numbers, instances = gpu.get("MIG Device/Index", []), gpu.get("MIG Device/GPU Instance ID", [])
    parts = gpu.get("MIG Device/Compute Instance ID", [])
    sizes = gpu.get("MIG Device/Shared FB Memory Usage/Total", gpu.get("MIG Device/FB Memory Usage/Total", []))
    complete = len(numbers) == len(instances) == len(parts) == len(sizes)
    migs = (
        [
            MigReport(number=whole(n, 3) or 0, instance=whole(i, 4), compute=whole(c, 4), memory_mib=mebibytes(m))
            for n, i, c, m in zip(numbers, instances, parts, sizes, strict=True)
        ]
        if complete
        else []
    )
    busy, busy_instances = _text_processes(gpu)
    return GpuReport(
        index=index,
        pci=bdf(one("id")),
        name=known(one("Product Name")),
        uuid=known(one("GPU UUID")),
        device=None if device is None else device >> 16,
        minor=whole(one("Minor Number"), 4),
        memory_mib=mebibytes(one("FB Memory Usage/Total")),
        mig=None if mode is None else mode == "Enabled",
        migs=tuple(migs),
        busy=busy if model is None else None,
        busy_instances=busy_instances,
        compute_mode=known(one("Compute Mode")),
        fabric=known(one("Fabric/State")),
        model=model,
        broken=_broken(one("FB Memory Usage/Total")),
    )


def _text_processes(gpu: dict[str, list[str]]) -> tuple[bool | None, frozenset[tuple[int, int | None]]]:
    if "Processes" not in gpu:
        return None, frozenset()
    kinds = [value for key, values in gpu.items() if key.startswith("Processes/") and key.endswith("/Type") for value in values]
    instances = [whole(value, 4) for value in gpu.get("Processes/GPU instance ID", [])]
    parts = [whole(value, 4) for value in gpu.get("Processes/Compute instance ID", [])]
    table = zip(kinds, instances, parts, strict=True) if len(kinds) == len(instances) == len(parts) else ()
    busy = [(number, part) for kind, number, part in table if "C" in kind and number is not None]
    return any("C" in kind for kind in kinds), frozenset(busy)
