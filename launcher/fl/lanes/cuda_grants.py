"""NVIDIA devices for an engine. Bare nodes lack the driver's libraries, so a CDI spec or the toolkit's hook is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fl.grants import EngineFacts, Grants, Mount
from fl.hardware import Accelerator, Hardware, Problem

_KIND: Final = "nvidia.com/gpu"
_DXG: Final = "/dev/dxg"
_WSL_LIBRARIES: Final = "/usr/lib/wsl"
_CAPABILITIES: Final = {"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


def grants(chosen: Sequence[Accelerator], hardware: Hardware, engine: EngineFacts) -> Grants:
    """A fresh CDI spec first, then docker's `--gpus` through the hook, else an error naming the toolkit."""
    if engine.name == "host":
        return Grants(environment=visibility(chosen, hardware), isolated=False)
    names = [_names(accelerator, hardware) for accelerator in chosen]
    offered = engine.cdi.get(_KIND, frozenset())
    cdi = [next((name for name in candidates if engine.cdi_assumed or name in offered), None) for candidates in names]
    if chosen and None not in cdi:
        return Grants(cdi=tuple(f"{_KIND}={name}" for name in cdi), environment=_CAPABILITIES)
    if engine.name == "apptainer":
        return Grants(
            devices=(_DXG,) if _wsl(hardware) else (),
            mounts=(Mount(source=_WSL_LIBRARIES, target=_WSL_LIBRARIES),) if _wsl(hardware) else (),
            flags=("--nv",),
            environment=visibility(chosen, hardware),
            isolated=False,
            notes=("apptainer --nv maps every GPU; CUDA_VISIBLE_DEVICES binds the run to the chosen ones",),
        )
    if _wsl(hardware):
        return _wsl_grants(chosen, hardware, engine, "all" in offered)
    selectors = ",".join(_selector(accelerator, hardware) for accelerator in chosen)
    if engine.name == "docker" and engine.nvidia_gpus:
        return Grants(gpus=f'"device={selectors}"', environment=_CAPABILITIES)
    return Grants(problems=(_no_toolkit(engine, bool(offered)),))


def _wsl_grants(chosen: Sequence[Accelerator], hardware: Hardware, engine: EngineFacts, cdi_all: bool) -> Grants:
    """Windows' driver shows all GPUs through one node: there is only `all`."""
    every = len(chosen) == len(hardware.of_lane("cuda"))
    environment = dict(_CAPABILITIES) if every else {**_CAPABILITIES, **visibility(chosen, hardware)}
    notes = () if every else ("under WSL all GPUs are mapped; CUDA_VISIBLE_DEVICES binds the run to the chosen ones",)
    if cdi_all:
        return Grants(cdi=(f"{_KIND}=all",), environment=environment, isolated=every, notes=notes)
    if engine.name == "docker" and engine.nvidia_gpus:
        return Grants(gpus="all", environment=environment, isolated=every, notes=notes)
    return Grants(problems=(_no_toolkit(engine, False),))


def visibility(chosen: Sequence[Accelerator], hardware: Hardware) -> Mapping[str, str]:
    """UUIDs where they are known, else indices in PCI order (for a MIG device its GPU's: CUDA then takes the first one)."""
    uuids = [a.uuid for a in chosen]
    known = [uuid for uuid in uuids if uuid]
    indices = [str(a.partition.parent) if a.partition else _selector(a, hardware) for a in chosen]
    values = known if len(known) == len(uuids) == len(set(known)) else list(dict.fromkeys(indices))
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(values)}


def _wsl(hardware: Hardware) -> bool:
    return _DXG in hardware.nodes


def _names(accelerator: Accelerator, hardware: Hardware) -> list[str]:
    """Names that a spec may have for a device, by the generator's strategies: index, UUID, type-index."""
    place = _place(accelerator, hardware)
    kind = "mig" if accelerator.partition else "gpu"
    return [place, *([accelerator.uuid] if accelerator.uuid else []), f"{kind}{place}"]


def _selector(accelerator: Accelerator, hardware: Hardware) -> str:
    """For `--gpus` and CUDA_VISIBLE_DEVICES: the index; with MIG on the machine the UUID, since CUDA has no index for a MIG device."""
    if any(a.partition for a in hardware.of_lane("cuda")) and accelerator.uuid:
        return accelerator.uuid
    return _place(accelerator, hardware)


def _place(accelerator: Accelerator, hardware: Hardware) -> str:
    """nvidia-smi's index, or `GPU:MIG device`."""
    lane = hardware.of_lane("cuda")
    if accelerator.partition is None:
        parents = {a.partition.parent for a in lane if a.partition}
        whole = [a for a in lane if a.partition is None]
        free = [n for n in range(len(whole) + len(parents)) if n not in parents]
        return str(free[whole.index(accelerator)]) if accelerator in whole and parents else str(accelerator.index)
    siblings = [a.index for a in lane if a.partition and a.partition.parent == accelerator.partition.parent]
    return f"{accelerator.partition.parent}:{siblings.index(accelerator.index)}"


def _no_toolkit(engine: EngineFacts, partial: bool) -> Problem:
    if partial:
        return Problem(
            code="nodes-missing",
            severity="error",
            lane="cuda",
            message="the CDI spec does not name every chosen GPU: it is older than the driver or the MIG layout",
            remedy="sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        )
    how = (
        "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
        if engine.name == "docker"
        else "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    )
    return Problem(
        code="no-toolkit",
        severity="error",
        lane="cuda",
        message=f"{engine.name} cannot pass NVIDIA GPUs: it has neither a CDI spec ({_KIND}) nor the hook of nvidia-container-toolkit",
        remedy=f"Install nvidia-container-toolkit, then: {how}",
    )
