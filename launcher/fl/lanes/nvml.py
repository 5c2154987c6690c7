"""Asks NVML and prints one JSON object. Run as a script in a child process, because the driver may hang: then it is killed.

By its path and without other parts of fl, so that it starts fast; json and typing would double its start too. Through ctypes: the few
calls below are stable since driver 450, and importing the whole binding (nvidia-ml-py) costs 0.1 s of processor time, a third of what
`fl hw` may take.
"""

from __future__ import annotations

import ctypes
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OK, _NO_LIBRARY, _TOO_SMALL = 0, 127, 7
_MODES = {0: "Default", 2: "Prohibited", 3: "Exclusive_Process"}
_FABRIC = {1: "Not Started", 2: "In Progress", 3: "Completed"}
_NO_INSTANCE = 0xFFFFFFFF


class Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class PciInfo(ctypes.Structure):
    """nvmlPciInfo_t."""

    _fields_ = [
        ("legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("place", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("subsystem", ctypes.c_uint),
        ("bdf", ctypes.c_char * 32),
    ]


class Process(ctypes.Structure):
    """nvmlProcessInfo_v2_t."""

    _fields_ = [("pid", ctypes.c_uint), ("memory", ctypes.c_ulonglong), ("instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint)]


class Fabric(ctypes.Structure):
    """nvmlGpuFabricInfo_t."""

    _fields_ = [("cluster", ctypes.c_ubyte * 16), ("status", ctypes.c_uint), ("clique", ctypes.c_uint), ("state", ctypes.c_ubyte)]


class Nvml:
    """The calls that detection needs. What NVML refuses, or an old driver does not know, is None."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> int:
        """NVML's return code; -1 for a function that this driver lacks."""
        function = getattr(self._library, name, None)
        return -1 if function is None else int(function(*arguments))

    def number(self, name: str, *arguments: Any) -> int | None:
        """A call that fills one unsigned integer, its last argument."""
        value = ctypes.c_uint()
        return value.value if self.call(name, *arguments, ctypes.byref(value)) == _OK else None

    def text(self, name: str, *arguments: Any) -> str | None:
        """A call that fills a buffer."""
        buffer = ctypes.create_string_buffer(96)
        return buffer.value.decode("utf-8", "replace") if self.call(name, *arguments, buffer, ctypes.c_uint(96)) == _OK else None

    def handle(self, name: str, *arguments: Any) -> tuple[int, ctypes.c_void_p]:
        """(return code, device)."""
        device = ctypes.c_void_p()
        return self.call(name, *arguments, ctypes.byref(device)), device

    def error(self, code: int) -> str:
        """NVML's own words."""
        function = self._library.nvmlErrorString
        function.restype = ctypes.c_char_p
        return (function(code) or b"").decode("utf-8", "replace")


def main() -> int:
    """0 with the JSON on stdout; NVML's error number (1..100), or 127 where the library is missing, with the reason on stderr."""
    try:
        nvml = Nvml(ctypes.CDLL("libnvidia-ml.so.1"))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return _NO_LIBRARY
    code = nvml.call("nvmlInit_v2")
    if code != _OK:
        sys.stderr.write(f"{nvml.error(code)}\n")
        return min(abs(code), 100)
    sys.stdout.write(document(ask(nvml)) + "\n")
    return 0


def document(value: Any) -> str:
    """JSON of what `ask` returns: objects, lists, text, whole numbers, true, false, null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{document(key)}: {document(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(document, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(c if " " <= c <= "~" and c not in '"\\' else f"\\u{ord(c):04x}" for c in value if ord(c) < 0x10000) + '"'
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(int(value))


def ask(nvml: Nvml) -> dict[str, Any]:
    """Driver, highest CUDA, and every GPU with its MIG devices."""
    cuda = ctypes.c_int()
    known = nvml.call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda)) == _OK and cuda.value > 0
    return {
        "driver": nvml.text("nvmlSystemGetDriverVersion"),
        "max_cuda": f"{cuda.value // 1000}.{cuda.value % 1000 // 10}" if known else None,
        "gpus": [_gpu(nvml, index) for index in range(nvml.number("nvmlDeviceGetCount_v2") or 0)],
    }


def _gpu(nvml: Nvml, index: int) -> dict[str, Any]:
    code, gpu = nvml.handle("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index))
    if code != _OK:
        return {"index": index, "broken": nvml.error(code)}
    pci, major, minor = PciInfo(), ctypes.c_int(), ctypes.c_int()
    has_pci = nvml.call("nvmlDeviceGetPciInfo_v3", gpu, ctypes.byref(pci)) == _OK
    capable = nvml.call("nvmlDeviceGetCudaComputeCapability", gpu, ctypes.byref(major), ctypes.byref(minor)) == _OK
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    mig = bool(current.value) if nvml.call("nvmlDeviceGetMigMode", gpu, ctypes.byref(current), ctypes.byref(pending)) == _OK else None
    fabric = Fabric()
    has_fabric = nvml.call("nvmlDeviceGetGpuFabricInfo", gpu, ctypes.byref(fabric)) == _OK
    return {
        "index": index,
        "name": nvml.text("nvmlDeviceGetName", gpu),
        "uuid": nvml.text("nvmlDeviceGetUUID", gpu),
        "pci": pci.bdf.decode("ascii", "replace") if has_pci else None,
        "device": pci.device >> 16 if has_pci else None,
        "minor": nvml.number("nvmlDeviceGetMinorNumber", gpu),
        "capability": f"{major.value}.{minor.value}" if capable else None,
        **_memory(nvml, gpu),
        "compute_mode": _MODES.get(mode) if (mode := nvml.number("nvmlDeviceGetComputeMode", gpu)) is not None else None,
        "fabric": _FABRIC.get(fabric.state) if has_fabric else None,
        "mig": bool(current.value) if mig else mig,
        "migs": _migs(nvml, gpu) if current.value else [],
        "processes": _processes(nvml, gpu),
    }


def _memory(nvml: Nvml, device: ctypes.c_void_p) -> dict[str, int | None]:
    memory = Memory()
    known = nvml.call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory)) == _OK
    return {"memory_mib": memory.total >> 20 if known else None, "used_mib": memory.used >> 20 if known else None}


def _processes(nvml: Nvml, gpu: ctypes.c_void_p) -> list[dict[str, int | None]] | None:
    for name in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"):
        count = ctypes.c_uint(0)
        code = nvml.call(name, gpu, ctypes.byref(count), None)
        if code == _OK:
            return []
        if code != _TOO_SMALL:
            continue
        count = ctypes.c_uint(min(count.value * 2 + 8, 4096))
        entries = (Process * count.value)()
        if nvml.call(name, gpu, ctypes.byref(count), entries) == _OK:
            return [{"instance": _id(e.instance), "compute": _id(e.compute_instance)} for e in entries[: count.value]]
    return None


def _id(number: int) -> int | None:
    return None if number == _NO_INSTANCE else number


def _migs(nvml: Nvml, gpu: ctypes.c_void_p) -> list[dict[str, Any]]:
    found = []
    for number in range(nvml.number("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
        code, mig = nvml.handle("nvmlDeviceGetMigDeviceHandleByIndex", gpu, ctypes.c_uint(number))
        if code != _OK:
            continue
        name = nvml.text("nvmlDeviceGetName", mig) or ""
        found.append(
            {
                "number": number,
                "uuid": nvml.text("nvmlDeviceGetUUID", mig),
                "instance": nvml.number("nvmlDeviceGetGpuInstanceId", mig),
                "compute": nvml.number("nvmlDeviceGetComputeInstanceId", mig),
                "profile": name.split("MIG ", 1)[1] if "MIG " in name else None,
                **_memory(nvml, mig),
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
