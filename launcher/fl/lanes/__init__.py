"""The lanes: all that is known of a vendor on the host side, one module each, with the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, cast

from fl.grants import EngineFacts, Grants
from fl.hardware import Accelerator, Detection, Hardware, LaneName
from fl.host import Host
from fl.lanes import ascend, cpu, cuda, rocm, xpu
from fl.lanes.visible import Restriction


class Lane(Protocol):
    """What every lane module offers."""

    TITLE: str
    """The vendor's name, for messages."""
    DRIVER: str | None
    """Key of its driver in `Hardware.drivers`."""
    EXCLUSIVE: bool
    """True where a device that is in use cannot be shared: busy ones are left out by default."""
    PARTITIONS_TOGETHER: bool
    """False where one process sees one partition only, and partitions cannot talk to each other (MIG)."""

    def detect(self, host: Host) -> Detection:
        """Devices of this vendor, its driver and what is wrong. Never raises on malformed input."""

    def grants(self, chosen: Sequence[Accelerator], hardware: Hardware, engine: EngineFacts) -> Grants:
        """What the engine must pass so that exactly the chosen devices can be used. Pure."""

    def restriction(self, devices: Sequence[Accelerator], environment: Mapping[str, str]) -> Restriction | None:
        """What the caller's variables, Slurm or Kubernetes leave of these devices; None where they say nothing. Pure."""

    def visibility(self, chosen: Sequence[Accelerator], hardware: Hardware) -> Mapping[str, str]:
        """Environment that binds a process of the host engine to the chosen devices, by stable ids where there are any. Pure."""


LANES: Final[dict[LaneName, Lane]] = {
    "cuda": cast("Lane", cuda),
    "rocm": cast("Lane", rocm),
    "ascend": cast("Lane", ascend),
    "xpu": cast("Lane", xpu),
    "cpu": cast("Lane", cpu),
}
