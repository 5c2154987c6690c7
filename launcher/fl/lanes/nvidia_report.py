"""What one NVIDIA source (NVML, nvidia-smi in its four formats) said, in one shape."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class MigReport:
    """One MIG device. `number` is its place within its GPU."""

    number: int
    instance: int | None = None
    """Id of its GPU instance: the process table names it."""
    compute: int | None = None
    """Id of its compute instance: several may share one GPU instance (`1c.3g.71gb`)."""
    uuid: str | None = None
    profile: str | None = None
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """One GPU. None: this source does not say."""

    index: int
    pci: str | None = None
    name: str | None = None
    uuid: str | None = None
    device: int | None = None
    capability: str | None = None
    minor: int | None = None
    memory_mib: int | None = None
    mig: bool | None = None
    migs: tuple[MigReport, ...] = ()
    busy: bool | None = None
    """Another compute process runs on it."""
    busy_instances: frozenset[tuple[int, int | None]] = frozenset()
    """(GPU instance, compute instance) of each process, where the table names them."""
    compute_mode: str | None = None
    fabric: str | None = None
    model: str | None = None
    """Windows driver model (WDDM, TCC); None on Linux."""
    broken: str | None = None
    """What the driver says instead of values: `GPU requires reset`, `ERR!`."""

    def filled_from(self, other: GpuReport) -> GpuReport:
        """This report, with what it lacks taken from another source on the same GPU."""
        names = [f for f in self.__dataclass_fields__ if f not in ("index", "migs") and getattr(self, f) in (None, frozenset())]
        merged = replace(self, **{f: getattr(other, f) for f in names})
        return replace(merged, migs=_merge_migs(self.migs, other.migs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one source said."""

    source: str
    driver: str | None = None
    max_cuda: str | None = None
    gpus: tuple[GpuReport, ...] = ()
    malformed: str | None = None
    """Why part of it could not be read."""
    notes: tuple[str, ...] = field(default=())


def _merge_migs(mine: tuple[MigReport, ...], others: tuple[MigReport, ...]) -> tuple[MigReport, ...]:
    if not mine:
        return others
    by_number = {mig.number: mig for mig in others}
    merged = []
    for mig in mine:
        other = by_number.get(mig.number, mig)
        names = [f for f in mig.__dataclass_fields__ if f != "number" and getattr(mig, f) is None]
        merged.append(replace(mig, **{f: getattr(other, f) for f in names}))
    return tuple(merged)


def merge(reports: list[Report]) -> Report:
    """Earlier sources win, later ones fill gaps. GPUs are the same by PCI address, by UUID, or by index where one source has neither."""
    first = next((report for report in reports if report.gpus), reports[0] if reports else Report(source="nothing"))
    gpus = list(first.gpus)
    for report in reports:
        if report is first:
            continue
        for other in report.gpus:
            place = next((n for n, gpu in enumerate(gpus) if _same(gpu, other)), None)
            if place is not None:
                gpus[place] = gpus[place].filled_from(other)
    return Report(
        source=first.source,
        driver=next((r.driver for r in reports if r.driver), None),
        max_cuda=next((r.max_cuda for r in reports if r.max_cuda), None),
        gpus=tuple(gpus),
        malformed=next((r.malformed for r in reports if r.malformed), None),
    )


def _same(one: GpuReport, other: GpuReport) -> bool:
    if one.pci and other.pci:
        return one.pci == other.pci
    if one.uuid and other.uuid:
        return one.uuid == other.uuid
    return one.index == other.index
