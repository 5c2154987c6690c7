"""What `fl doctor` looks at on a machine with NVIDIA GPUs, beyond detection: fabric manager, unified memory, ECC and Xid, persistence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fl.findings import Finding
from fl.hardware import Evidence, Hardware, Severity
from fl.host import Host
from fl.lanes.values import hexadecimal, known, version, whole

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

EARLY: Final = (("nvidia-smi", "-q", "-x"),)
"""Half a second or more where the driver keeps no state between calls."""
COMPANIONS: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm")
"""Nodes that every CUDA process opens, beside its GPUs'."""
_VENDOR: Final = 0x10DE
_SWITCH: Final = 0x0680
_TOOL: Final = "nvidia-smi -q -x"
_LOG: Final = "dmesg"
_XID: Final = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{4,16})[^)]{0,40}\): (\d{1,3})")
_MODPROBE: Final = "sudo nvidia-modprobe -u -c=0"
# NVIDIA's Xid catalogue: what the GPU or its link did. Others are mostly a program's own fault.
_XIDS: Final = {
    48: "double-bit ECC error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    63: "row remapping recorded",
    64: "row remapping failed",
    74: "NVLink error",
    79: "GPU fell off the bus",
    92: "many single-bit ECC errors",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP did not answer",
    120: "GSP error",
    140: "unrecovered ECC error",
}  # fmt: skip
_BROKEN: Final = frozenset({64, 79, 95})


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One GPU of `nvidia-smi -q -x`; None where the model or the driver does not tell."""

    index: int
    persistence: bool | None = None
    uncorrected: int | None = None
    """Uncorrectable ECC errors since the driver was loaded."""
    pending: bool = False
    """A page or a row waits for a reset to be taken out of use."""
    failed: bool = False
    """A row could not be remapped: the card is to be replaced."""
    action: str | None = None
    """What the driver itself asks for: Reset, Reboot, Drain P2P …"""
    fabric: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What was read for the checks."""

    gpus: tuple[GpuState, ...] = ()
    missing: str = ""
    """Why `gpus` is empty."""
    switches: int = 0
    manager: str | None = None
    """State of the service nvidia-fabricmanager by systemctl; None: cannot be asked."""
    manager_version: str | None = None
    persistenced: bool = False
    xids: tuple[tuple[str, int], ...] | None = None
    """(PCI address, number) of the kernel log, oldest first; None: it was not had."""
    log_refused: bool = False
    wsl: bool = False
    inside: str | None = None
    driver: str | None = None


def checks(host: Host, hardware: Hardware, inside: str | None) -> tuple[Finding, ...]:
    """Asks nvidia-smi, systemctl and the kernel log once each. `inside`: the kind of container this is seen from."""
    driver = hardware.drivers.get("nvidia", {}).get("version")
    state = look(host, hardware, inside, driver)
    return (*uvm(hardware, inside), *judge(state))


def look(host: Host, hardware: Hardware, inside: str | None, driver: str | None) -> State:
    """The facts."""
    gpus, missing = _gpus(host)
    switches = _switches(host) or sum(1 for path in host.node_names("/dev") if re.fullmatch(r"nvidia-nvswitch\d+", path))
    service = host.run(["systemctl", "is-active", "nvidia-fabricmanager"]) if switches else None
    manager = host.run(["nv-fabricmanager", "--version"]) if switches else None
    log = host.run([_LOG])
    return State(
        gpus=gpus,
        missing=missing,
        switches=switches,
        manager=known(service.stdout) if service and service.state == "done" else None,
        manager_version=_fabric_version(manager.stdout) if manager and manager.ok else None,
        persistenced=host.exists("/run/nvidia-persistenced/socket") or host.exists("/var/run/nvidia-persistenced/socket"),
        log_refused=log.state == "done" and not log.ok,
        xids=tuple((found[1], int(found[2])) for found in _XID.finditer(log.stdout)) if log.ok else None,
        wsl="/dev/dxg" in hardware.nodes,
        inside=inside,
        driver=driver,
    )


def _switches(host: Host) -> int:
    """NVSwitches on the bus."""
    root, found = "/sys/bus/pci/devices", 0
    for name in host.names(root):
        kind = hexadecimal(host.read(f"{root}/{name}/class").text)
        found += kind is not None and kind >> 8 == _SWITCH and hexadecimal(host.read(f"{root}/{name}/vendor").text) == _VENDOR
    return found


def _fabric_version(text: str) -> str | None:
    """`Fabric Manager version is : 580.95.05`."""
    return version(text.rpartition(":")[2])


def _gpus(host: Host) -> tuple[tuple[GpuState, ...], str]:
    from xml.etree import ElementTree

    ran = host.run(["nvidia-smi", "-q", "-x"])
    if not ran.ok:
        why = {
            "missing": "nvidia-smi is not installed",
            "unrecorded": f"{_TOOL} is not recorded",
            "slow": "nvidia-smi gave no answer in time",
        }
        return (), why.get(ran.state, f"nvidia-smi ends with {ran.returncode}")
    if "<!ENTITY" in ran.stdout:
        return (), "the XML of nvidia-smi declares entities"
    try:
        root = ElementTree.fromstring(ran.stdout)
    except (ElementTree.ParseError, ValueError, RecursionError):
        return (), "the XML of nvidia-smi is broken"
    return tuple(_gpu(n, gpu) for n, gpu in enumerate(root.findall("gpu"))), "nvidia-smi lists no GPU"


def _gpu(index: int, gpu: Element) -> GpuState:
    volatile = gpu.find("ecc_errors/volatile")
    counts = (
        []
        if volatile is None
        else [whole(e.text, 9) for e in volatile if "uncorrectable" in e.tag] + [whole(volatile.findtext("double_bit/total"), 9)]
    )
    told = [count for count in counts if count is not None]
    mode = known(gpu.findtext("persistence_mode"))
    pending = ("retired_pages/pending_retirement", "retired_pages/pending_blacklist", "remapped_rows/remapped_row_pending")
    return GpuState(
        index=index,
        persistence=None if mode is None else mode == "Enabled",
        uncorrected=sum(told) if told else None,
        pending=any(gpu.findtext(path) == "Yes" for path in pending),
        failed=gpu.findtext("remapped_rows/remapped_row_failure") == "Yes",
        action=known(gpu.findtext("gpu_recovery_action")),
        fabric=known(gpu.findtext("fabric/state")),
    )


def uvm(hardware: Hardware, inside: str | None) -> tuple[Finding, ...]:
    """/dev/nvidia-uvm: without it nvidia-smi works and CUDA does not. Pure; preflight asks it too."""
    control, node = (hardware.nodes.get(path) for path in COMPANIONS)
    if control is None:
        return ()
    if node is None:
        how = f"start this {inside} container with the GPU (`--gpus`, or a CDI device)" if inside else _MODPROBE
        return (
            Finding(
                check="uvm",
                status="error" if inside else "warning",
                finding="/dev/nvidia-uvm is not here: nvidia-smi works without it, CUDA does not" + ("" if inside else " until it is made"),
                evidence=(Evidence(COMPANIONS[1], "missing"),),
                remedy=how,
            ),
        )
    if node.openable is False:
        text = f"/dev/nvidia-uvm cannot be opened ({node.error or 'refused'}): CUDA fails with an unknown error"
        found = Evidence(node.path, f"mode {node.mode:04o}, uid {node.uid}, gid {node.gid}, {node.error or 'refused'}")
        return (Finding(check="uvm", status="error", finding=text, evidence=(found,), remedy="ls -l /dev/nvidia-uvm\n" + _MODPROBE),)
    return (Finding(check="uvm", status="ok", finding="/dev/nvidia-uvm opens", evidence=(Evidence(node.path, "opens"),)),)


def judge(state: State) -> Iterator[Finding]:
    """Facts → findings. Pure."""
    yield from _fabric(state)
    yield from _ecc(state)
    yield from _xid(state)
    yield _persistence(state)


def _fabric(state: State) -> Iterator[Finding]:
    ready = bool(state.gpus) and all(gpu.fabric == "Completed" for gpu in state.gpus)
    seen = Evidence("/sys/bus/pci/devices", f"{state.switches} NVSwitches")
    start = "sudo systemctl enable --now nvidia-fabricmanager"
    if not state.switches and not ready:
        yield Finding(check="fabric", status="skipped", finding="no NVSwitch here")
    elif state.manager_version and state.driver and state.manager_version != state.driver:
        text = f"the fabric manager is {state.manager_version}, the driver {state.driver}: they must be the same"
        found = Evidence("nv-fabricmanager --version", state.manager_version)
        yield Finding(
            check="fabric",
            status="error",
            finding=text,
            evidence=(seen, found),
            remedy="install the fabric manager of the driver's version, then: sudo systemctl restart nvidia-fabricmanager",
        )
    elif ready or state.manager == "active":
        found = Evidence(_TOOL, "fabric/state Completed") if ready else Evidence("systemctl is-active nvidia-fabricmanager", "active")
        yield Finding(check="fabric", status="ok", finding="the NVLink fabric is ready", evidence=(found,))
    elif state.manager is not None and state.inside is None:
        text = f"{state.switches} NVSwitches, and the fabric manager is {state.manager}: CUDA fails with error 802"
        found = Evidence("systemctl is-active nvidia-fabricmanager", state.manager)
        yield Finding(check="fabric", status="error", finding=text, evidence=(seen, found), remedy=start)
    else:
        yield Finding(check="fabric", status="skipped", finding="whether the fabric manager runs cannot be asked here", evidence=(seen,))


def _ecc(state: State) -> Iterator[Finding]:
    if not state.gpus:
        yield Finding(check="ecc", status="skipped", finding=f"memory errors are not known: {state.missing}")
        return
    bad = [gpu for gpu in state.gpus if gpu.failed or gpu.pending or gpu.uncorrected or gpu.action]
    for gpu in bad:
        yield _bad_gpu(gpu)
    if bad:
        return
    counted = [gpu for gpu in state.gpus if gpu.uncorrected is not None]
    text = (
        f"no uncorrected memory error on {len(counted)} GPU{'s' if len(counted) > 1 else ''}"
        if counted
        else "no GPU here counts memory errors"
    )
    yield Finding(
        check="ecc", status="ok", finding=text, evidence=(Evidence(_TOOL, "ecc_errors/volatile: 0" if counted else "ecc_errors: N/A"),)
    )


def _bad_gpu(gpu: GpuState) -> Finding:
    reset = f"sudo nvidia-smi -r -i {gpu.index}"
    if gpu.failed:
        text, value = "could not remap a broken row of its memory: the card is to be replaced", "remapped_rows/remapped_row_failure: Yes"
        return _ecc_finding(gpu, "error", text, value, "nvidia-smi -q -d ROW_REMAPPER\n--devices   without it trains on the others")
    if gpu.action:
        cure = "sudo reboot" if "reboot" in gpu.action.lower() else reset
        return _ecc_finding(gpu, "error", f"its driver asks for: {gpu.action}", f"gpu_recovery_action: {gpu.action}", cure)
    if gpu.pending:
        return _ecc_finding(gpu, "warning", "a broken part of its memory waits for a reset to be taken out of use", "pending: Yes", reset)
    return _ecc_finding(
        gpu,
        "warning",
        f"{gpu.uncorrected} uncorrected memory errors since its driver was loaded",
        f"ecc_errors/volatile: {gpu.uncorrected}",
        reset,
    )


def _ecc_finding(gpu: GpuState, severity: Severity, text: str, value: str, remedy: str) -> Finding:
    return Finding(check="ecc", status=severity, finding=f"GPU {gpu.index}: {text}", evidence=(Evidence(_TOOL, value),), remedy=remedy)


def _xid(state: State) -> Iterator[Finding]:
    """The kernel log since the start of the machine. One finding for each number, hardware's own only."""
    if state.xids is None:
        if state.log_refused:
            yield Finding(
                check="ecc",
                status="skipped",
                finding="the kernel log may not be read: Xid messages are not known",
                remedy="sudo dmesg | grep Xid",
            )
        return
    for number in sorted({number for _, number in state.xids} & set(_XIDS)):
        where = sorted({address for address, each in state.xids if each == number})
        count = sum(1 for _, each in state.xids if each == number)
        text = (
            f"Xid {number}, {_XIDS[number]}: {count} time{'s' if count > 1 else ''} since the machine was started ({', '.join(where[:4])})"
        )
        yield Finding(
            check="ecc",
            status="error" if number in _BROKEN else "warning",
            finding=text,
            evidence=(Evidence(_LOG, f"Xid {number}"),),
            remedy="sudo reboot   if it comes back, the card or its place is broken" if number in _BROKEN else "sudo dmesg | grep Xid",
        )


def _persistence(state: State) -> Finding:
    if state.wsl:
        return Finding(check="persistence", status="skipped", finding="Windows' driver has no persistence mode")
    told = [gpu for gpu in state.gpus if gpu.persistence is not None]
    off = [gpu for gpu in told if not gpu.persistence]
    if not told:
        if state.persistenced:
            return Finding(
                check="persistence",
                status="ok",
                finding="nvidia-persistenced runs",
                evidence=(Evidence("/run/nvidia-persistenced/socket", "there"),),
            )
        return Finding(check="persistence", status="skipped", finding=f"persistence mode is not known: {state.missing or 'not told'}")
    if not off:
        return Finding(
            check="persistence", status="ok", finding="persistence mode is on", evidence=(Evidence(_TOOL, "persistence_mode: Enabled"),)
        )
    return Finding(
        check="persistence",
        status="warning",
        evidence=(Evidence(_TOOL, "persistence_mode: Disabled"),),
        finding=f"persistence mode is off ({_numbers(off)}): the driver unloads after each process, and each start takes seconds",
        remedy="sudo systemctl enable --now nvidia-persistenced\nsudo nvidia-smi -pm 1   until the next start of the machine",
    )


def _numbers(gpus: Sequence[GpuState]) -> str:
    return f"GPU{'s' if len(gpus) > 1 else ''} {', '.join(str(gpu.index) for gpu in gpus)}"
