"""AMD's PCI device ids → product name and gfx target, where the kernel's own files do not say.

Source: the public PCI id repository, ROCm's GPU list.
"""

from __future__ import annotations

from typing import Final

CHIPS: Final[dict[int, tuple[str, str]]] = {
    0x6860: ("Vega 10", "gfx900"),
    0x66A1: ("AMD Radeon Instinct MI50/MI60", "gfx906"),
    0x66AF: ("AMD Radeon VII", "gfx906"),
    0x7388: ("AMD Instinct MI100", "gfx908"),
    0x738C: ("AMD Instinct MI100", "gfx908"),
    0x738E: ("AMD Instinct MI100", "gfx908"),
    0x7408: ("AMD Instinct MI250X", "gfx90a"),
    0x740C: ("AMD Instinct MI250X/MI250", "gfx90a"),
    0x740F: ("AMD Instinct MI210", "gfx90a"),
    0x74A0: ("AMD Instinct MI300A", "gfx942"),
    0x74A1: ("AMD Instinct MI300X", "gfx942"),
    0x74A2: ("AMD Instinct MI308X", "gfx942"),
    0x74A5: ("AMD Instinct MI325X", "gfx942"),
    0x74B5: ("AMD Instinct MI300X VF", "gfx942"),
    0x75A0: ("AMD Instinct MI350X", "gfx950"),
    0x75A3: ("AMD Instinct MI355X", "gfx950"),
    0x73BF: ("AMD Radeon RX 6800/6900", "gfx1030"),
    0x73A3: ("AMD Radeon PRO W6800", "gfx1030"),
    0x744C: ("AMD Radeon RX 7900", "gfx1100"),
    0x7448: ("AMD Radeon PRO W7900", "gfx1100"),
    0x745E: ("AMD Radeon PRO W7800", "gfx1100"),
    0x747E: ("AMD Radeon RX 7700/7800", "gfx1101"),
    0x7480: ("AMD Radeon RX 7600", "gfx1102"),
    0x7550: ("AMD Radeon RX 9070", "gfx1201"),
    0x7551: ("AMD Radeon AI PRO R9700", "gfx1201"),
    0x7590: ("AMD Radeon RX 9060", "gfx1200"),
    0x150E: ("AMD Radeon 890M/880M (Strix Point)", "gfx1150"),
    0x1586: ("AMD Radeon 8060S/8050S (Strix Halo)", "gfx1151"),
}

APUS: Final = frozenset({0x1586, 0x150E, 0x74A0})
"""Of the chips that ROCm runs on, those that share the processor's memory: Strix Halo, Strix Point, MI300A."""

DISCRETE: Final = range(0x6600, 0x9000)
"""Device ids of graphics cards; those of graphics inside processors lie below (0x13xx, 0x15xx, 0x16xx, 0x19xx) and above."""

DISPLAY_ONLY: Final = frozenset(
    {"gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103", "gfx1152", "gfx1153"}
)
"""Graphics inside a processor that no ROCm wheel is built for: display adapters, no lane."""
