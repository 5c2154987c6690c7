"""amd-smi (JSON) and rocm-smi (JSON, block text): asked where the kernel's KFD files are missing or say too little.

Pure parsers but for `ask`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fl.host import Host, Ran
from fl.lanes.values import MOST, bdf, hexadecimal, known, rows, squeezed, version, whole

_BLOCK: Final = re.compile(r"GPU\[(\d{1,4})\]\s*:\s*([^:]{1,60}?)\s*:\s*(.*\S)\s*$")
_ARCH: Final = re.compile(r"gfx[0-9a-f]{3,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdReport:
    """One GPU as a tool shows it."""

    index: int
    name: str | None = None
    arch: str | None = None
    device: int | None = None
    memory_mib: int | None = None
    pci: str | None = None
    unique_id: str | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class AmdAnswer:
    """GPUs of the first tool that named any; `failed`: a tool that ended with an error; `malformed`: one whose output cannot be read."""

    source: str = ""
    gpus: tuple[AmdReport, ...] = ()
    failed: str | None = None
    malformed: str | None = None
    slow: bool = False


def ask(host: Host) -> AmdAnswer:
    """amd-smi, then rocm-smi in JSON, then in text, then rocminfo."""
    calls: tuple[tuple[tuple[str, ...], Callable[[str], tuple[AmdReport, ...]]], ...] = (
        (("amd-smi", "static", "--json"), parse_amd_smi),
        (("rocm-smi", "-a", "--json"), parse_rocm_smi_json),
        (("rocm-smi", "--showallinfo", "--json"), parse_rocm_smi_json),
    )
    failed = malformed = None
    for argv, parse in calls:
        ran = host.run(argv)
        if ran.state == "slow":
            return AmdAnswer(argv[0], failed=failed, slow=True)
        failed = failed or _failed(argv, ran)
        if not ran.ok:
            continue
        try:
            gpus = parse(ran.stdout)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            malformed = malformed or f"{' '.join(argv)} does not print the expected JSON ({type(error).__name__})"
            continue
        if gpus:
            return AmdAnswer(" ".join(argv), gpus)
    texts = []
    for option in (("--showproductname",), ("--showmeminfo", "vram")):
        ran = host.run(["rocm-smi", *option])
        failed = failed or _failed(("rocm-smi", *option), ran)
        texts += [ran.stdout] if ran.ok else []
    gpus = parse_rocm_smi_text("\n".join(texts))
    if gpus:
        return AmdAnswer("rocm-smi", gpus, failed, malformed)
    from fl.lanes.rocminfo import parse_rocminfo

    ran = host.run(["rocminfo"])
    return AmdAnswer("rocminfo", parse_rocminfo(ran.stdout) if ran.ok else (), failed or _failed(("rocminfo",), ran), malformed)


def _failed(argv: Sequence[str], ran: Ran) -> str | None:
    if ran.state != "done" or ran.ok:
        return None
    return f"{' '.join(argv)}: exit code {ran.returncode}: {known(ran.stdout + ran.stderr) or 'no text'}"


def parse_amd_smi(text: str) -> tuple[AmdReport, ...]:
    """`amd-smi static --json`: a bare list up to 6.x, `{"gpu_data": [...]}` in 7.x; keys in upper case in places."""
    value = _document(text)
    entries = value.get("gpu_data", []) if isinstance(value, dict) else value
    return tuple(_amd_smi_gpu(n, _lower(entry)) for n, entry in enumerate(entries[:MOST]) if isinstance(entry, dict))


def _amd_smi_gpu(place: int, entry: dict[str, Any]) -> AmdReport:
    asic, vram, driver = _part(entry, "asic"), _part(entry, "vram"), _part(entry, "driver")
    bus = entry.get("bus")
    size = vram.get("size", vram.get("vram_size"))
    amount, unit = (size.get("value"), str(size.get("unit", "MB"))) if isinstance(size, dict) else (size, "MB")
    memory = whole(str(amount).split()[0] if str(amount).split() else "", 9)
    arch = _ARCH.fullmatch(str(asic.get("target_graphics_version", "")).lower())
    index = entry.get("gpu")
    return AmdReport(
        index=index if isinstance(index, int) and 0 <= index < 4096 else place,
        name=known(str(asic.get("market_name", ""))),
        arch=arch[0] if arch else None,
        device=hexadecimal(str(asic.get("device_id", ""))),
        memory_mib=None if not memory else memory * 1024 if unit == "GB" else memory,
        pci=bdf(str(bus.get("bdf", ""))) if isinstance(bus, dict) else bdf(str(bus or "")),
        unique_id=known(str(asic.get("asic_serial", ""))),
        driver=version(str(driver.get("version", driver.get("driver_version", "")))),
    )


def _part(entry: dict[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key)
    return value if isinstance(value, dict) else {}


def _document(text: str) -> Any:
    """The JSON document in a tool's output: warnings may stand before and after it, and hold brackets too."""
    starts = [match.start() for match in re.finditer(r"^[ \t]*[\[{]", text, re.M)][:20] or [0]
    for start in starts:
        try:
            return json.JSONDecoder().raw_decode(text[start:].lstrip())[0]
        except json.JSONDecodeError:
            continue
    raise ValueError("no JSON document")


def _lower(value: Any) -> Any:
    return {str(key).lower(): _lower(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def parse_rocm_smi_json(text: str) -> tuple[AmdReport, ...]:
    """`{"card0": {...}, "system": {...}}`; the spelling of keys changes with releases, warnings may precede."""
    value = _lower(_document(text))
    system = value.get("system")
    driver = version(str(system.get("driver version", ""))) if isinstance(system, dict) else None
    cards = [(int(key[4:]), card) for key, card in value.items() if re.fullmatch(r"card\d{1,4}", key) and isinstance(card, dict)]
    return tuple(_card(index, card, driver) for index, card in sorted(cards, key=lambda pair: pair[0])[:MOST])


def _card(index: int, card: dict[str, Any], driver: str | None) -> AmdReport:
    def text(*keys: str) -> str | None:
        values = (known(str(card.get(key, ""))) for key in keys)
        return next((value for value in values if value), None)

    names = (text("device name"), text("card series"), text("card model"))
    size = whole(text("vram total memory (b)"))
    arch = _ARCH.fullmatch((text("gfx version") or "").lower())
    return AmdReport(
        index=index,
        name=next((name for name in names if name and not name.lower().startswith("0x")), None),
        arch=arch[0] if arch else None,
        device=hexadecimal(text("device id") or text("gpu id") or (names[2] if names[2] and names[2].startswith("0x") else None)),
        memory_mib=(size or 0) >> 20 or None,
        pci=bdf(text("pci bus")),
        unique_id=text("unique id"),
        driver=driver,
    )


def parse_rocm_smi_text(text: str) -> tuple[AmdReport, ...]:
    """Block format: `GPU[0] : Card Series: AMD Radeon RX 7600`. Warnings and ruler lines have no such head."""
    cards: dict[int, dict[str, Any]] = {}
    for line in map(squeezed, rows(text)):
        if match := _BLOCK.match(line):
            cards.setdefault(int(match[1]), {}).setdefault(match[2].lower(), match[3])
    return tuple(_card(index, card, None) for index, card in sorted(cards.items())[:MOST])
