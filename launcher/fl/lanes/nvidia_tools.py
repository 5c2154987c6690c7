"""Asks NVIDIA's driver through what is installed: NVML in a child process, else nvidia-smi. What one source lacks, another may have."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from fl.host import NVML_COMMAND, Host, Ran
from fl.lanes.nvidia_report import GpuReport, MigReport, Report, merge
from fl.lanes.nvidia_smi import QUERY, parse_apps, parse_csv, parse_list, parse_text, parse_xml
from fl.lanes.nvidia_table import parse_table
from fl.lanes.values import MOST, bdf, known, version

Failure = Literal["missing", "slow", "mismatch", "no-driver", "no-library", "failed"]
_FORMAT: Final = "--format=csv,noheader,nounits"
_LARGEST: Final = 1 << 40
_IDLE_MIB: Final = 1024
"""The driver itself holds up to about 500 MiB of an idle H100."""
_WSL_TOOL: Final = "/usr/lib/wsl/lib/nvidia-smi"
_CODES: Final[dict[int, Failure]] = {9: "no-driver", 12: "no-library", 18: "mismatch"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the driver said, and why it did not where it did not. `missing`: there is nothing to ask it with."""

    report: Report
    failure: Failure | None = None
    detail: str = ""


def ask(host: Host, likely: bool) -> Answer:
    """`likely`: the kernel shows an NVIDIA driver, so that NVML is worth a process."""
    nvml = _ask_nvml(host) if likely else Answer(Report(source="nvml"), "missing")
    if nvml.failure in (None, "slow", "mismatch"):
        return nvml
    smi = _ask_smi(host)
    return nvml if smi.failure == "missing" and nvml.failure != "no-library" else smi


def _ask_nvml(host: Host) -> Answer:
    ran, empty = host.run([NVML_COMMAND]), Report(source="NVML")
    if ran.state in ("missing", "unrecorded"):
        return Answer(empty, "missing")
    if not ran.ok:
        return Answer(empty, _failure(ran), known(ran.stderr) or "")
    try:
        report = parse_nvml(json.loads(ran.stdout))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError):
        return Answer(Report(source="NVML", malformed="its answer is not the expected JSON"), "missing")
    return Answer(report)


def parse_nvml(value: dict[str, Any]) -> Report:
    """What fl.lanes.nvml printed."""
    return Report(
        source="NVML",
        driver=version(value["driver"]),
        max_cuda=version(value["max_cuda"]),
        gpus=tuple(_nvml_gpu(gpu) for gpu in value["gpus"][:MOST]),
    )


def _nvml_gpu(gpu: dict[str, Any]) -> GpuReport:
    if gpu.get("broken"):
        return GpuReport(index=int(gpu["index"]), broken=known(str(gpu["broken"])))
    processes, migs = gpu.get("processes"), gpu.get("migs") or []
    return GpuReport(
        index=int(gpu["index"]),
        pci=bdf(gpu.get("pci")),
        name=known(gpu.get("name")),
        uuid=known(gpu.get("uuid")),
        device=_int(gpu, "device"),
        capability=known(gpu.get("capability")),
        minor=_int(gpu, "minor"),
        memory_mib=_int(gpu, "memory_mib"),
        mig=bool(gpu["mig"]) if gpu.get("mig") is not None else None,
        migs=tuple(
            MigReport(
                number=int(m["number"]),
                instance=_int(m, "instance"),
                compute=_int(m, "compute"),
                uuid=known(m.get("uuid")),
                profile=known(m.get("profile")),
                memory_mib=_int(m, "memory_mib"),
            )
            for m in migs[:MOST]
        ),
        busy=_busy(processes, _int(gpu, "used_mib")),
        busy_instances=frozenset((i, _int(p, "compute")) for p in processes or [] if (i := _int(p, "instance")) is not None),
        compute_mode=known(gpu.get("compute_mode")),
        fabric=known(gpu.get("fabric")),
    )


def _int(values: dict[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST else None


def _busy(processes: list[Any] | None, used_mib: int | None) -> bool | None:
    """In a container other containers' processes are not listed: memory that is in use without a process tells nothing."""
    if not processes and (processes is None or (used_mib or 0) > _IDLE_MIB):
        return None
    return bool(processes)


def _failure(ran: Ran) -> Failure:
    if ran.state == "slow":
        return "slow"
    if ran.state in ("missing", "unrecorded"):
        return "missing"
    text = ran.stdout + ran.stderr
    if "version mismatch" in text:
        return "mismatch"
    if ran.returncode == 127:
        return "no-library"
    return _CODES.get(ran.returncode or 0, "failed")


def _ask_smi(host: Host) -> Answer:
    """XML first (processes and MIG in one call), then CSV for the compute capability and where there is no XML, then text and list."""
    tool = "nvidia-smi"
    xml = host.run([tool, "-q", "-x"])
    if xml.state == "missing" and host.exists(_WSL_TOOL):
        tool = _WSL_TOOL
        xml = host.run([tool, "-q", "-x"])
    if xml.state in ("missing", "slow"):
        return Answer(Report(source=tool), _failure(xml))
    reports: list[Report] = []
    failure, detail = None, ""
    if xml.ok:
        reports.append(parse_xml(xml.stdout))
    elif xml.state == "done":
        failure, detail = _failure(xml), known(xml.stdout + xml.stderr, 300) or ""
        if failure in ("mismatch", "no-driver", "no-library"):
            return Answer(Report(source=tool), failure, detail)
    if not reports or not reports[0].gpus:
        reports += _without_xml(host, tool)
    if any(gpu.migs for report in reports for gpu in report.gpus) or any(gpu.mig for report in reports for gpu in report.gpus):
        reports += _text(host, tool) if not any(gpu.migs for report in reports for gpu in report.gpus) else []
        reports += _list(host, tool)
    report = merge(reports)
    if report.gpus or report.malformed:
        return Answer(report)
    if xml.state == "unrecorded" and (failed := _recorded_failure(host, tool)) is not None:
        failure, detail = _failure(failed), known(failed.stdout + failed.stderr, 300) or ""
    return Answer(report, failure or "missing", detail)


def _recorded_failure(host: Host, tool: str) -> Ran | None:
    """A record may lack the first call and hold one that failed; a live tool was asked for the first one."""
    calls = (host.run([tool, *options]) for options in ([], ["-L"], ["-q"]))
    return next((ran for ran in calls if ran.state == "done" and not ran.ok), None)


def _without_xml(host: Host, tool: str) -> list[Report]:
    reports = _query(host, tool)
    if not reports or not reports[0].gpus or reports[0].max_cuda is None:
        reports += _text(host, tool)
    if not any(report.max_cuda for report in reports):
        ran = host.run([tool])
        reports += [parse_table(ran.stdout)] if ran.ok else []
    if not any(report.gpus for report in reports):
        reports += _list(host, tool)
    return reports


def _query(host: Host, tool: str) -> list[Report]:
    """Fields that this driver does not know are named in its refusal, and left out."""
    fields: tuple[str, ...] = QUERY
    while fields:
        ran = host.run([tool, f"--query-gpu={','.join(fields)}", _FORMAT])
        if ran.ok:
            return [_with_load(host, tool, parse_csv(ran.stdout, fields))]
        refused = re.search(r'Field "([\w.]{1,60})" is not a valid field', ran.stdout + ran.stderr)
        if refused is None or refused[1] not in fields:
            return []
        fields = tuple(field for field in fields if field != refused[1])
    return []


def _with_load(host: Host, tool: str, report: Report) -> Report:
    from dataclasses import replace

    ran = host.run([tool, "--query-compute-apps=gpu_uuid,pid", _FORMAT])
    if not ran.ok:
        return report
    busy = parse_apps(ran.stdout)
    gpus = tuple(gpu if gpu.model or gpu.mig or not gpu.uuid else replace(gpu, busy=gpu.uuid in busy) for gpu in report.gpus)
    return replace(report, gpus=gpus)


def _text(host: Host, tool: str) -> list[Report]:
    ran = host.run([tool, "-q"])
    return [parse_text(ran.stdout)] if ran.ok else []


def _list(host: Host, tool: str) -> list[Report]:
    ran = host.run([tool, "-L"])
    return [parse_list(ran.stdout)] if ran.ok else []
