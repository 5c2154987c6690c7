"""Broken machines: our own records in memory, one sample of every tool's output, and what can happen to them on the way."""

# ruff: noqa: E501 - tables of vendors' texts are not broken

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hosts import RECORDS, kfd_partitions, make, pci

from fl import ui
from fl.commands.hw import screen
from fl.detect import detect
from fl.devices import choose_devices, choose_lane
from fl.errors import HardwareError
from fl.hardware import Hardware, Node
from fl.host import OUTPUT_LIMIT, TEXT_LIMIT, Ran, Text
from fl.host_replay import ReplayHost

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""What must not be in any output; lines end with \\n."""

XML = (
    '<?xml version="1.0" ?><!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd"><nvidia_smi_log><driver_version>580.95.05</driver_version>'
    '<cuda_version>13.0</cuda_version><gpu id="00000000:65:00.0"><product_name>NVIDIA H100 80GB HBM3</product_name><uuid>GPU-1</uuid>'
    "<minor_number>0</minor_number><mig_mode><current_mig>Enabled</current_mig></mig_mode><mig_devices><mig_device><index>0</index>"
    "<gpu_instance_id>1</gpu_instance_id><compute_instance_id>0</compute_instance_id><fb_memory_usage><total>40448 MiB</total>"
    "</fb_memory_usage></mig_device></mig_devices><fb_memory_usage><total>81559 MiB</total></fb_memory_usage><compute_mode>Default"
    "</compute_mode><pci><pci_device_id>233010DE</pci_device_id></pci><processes><process_info><gpu_instance_id>1</gpu_instance_id>"
    "<type>C</type></process_info></processes></gpu></nvidia_smi_log>"
)
NVML = json.dumps(
    {
        "driver": "580.95.05",
        "max_cuda": "13.0",
        "gpus": [
            {
                "index": 0,
                "name": "NVIDIA H100",
                "uuid": "GPU-1",
                "pci": "00000000:65:00.0",
                "device": 9008,
                "minor": 0,
                "capability": "9.0",
                "memory_mib": 81559,
                "used_mib": 480,
                "compute_mode": "Default",
                "fabric": "Completed",
                "mig": True,
                "migs": [{"number": 0, "instance": 1, "compute": 0, "uuid": "MIG-1", "profile": "1g.10gb", "memory_mib": 9728}],
                "processes": [{"instance": 1, "compute": 0}],
            }
        ],
    }
)
TEXT = (
    "Driver Version : 580.95.05\nCUDA Version : 13.0\n\nGPU 00000000:65:00.0\n    Product Name : NVIDIA H100\n    GPU UUID : GPU-1\n    MIG Mode\n"
    "        Current : Enabled\n    MIG Device\n        Index : 0\n        GPU Instance ID : 1\n        Compute Instance ID : 0\n"
    "        FB Memory Usage\n            Total : 9728 MiB\n    Processes\n        GPU instance ID : 1\n        Compute instance ID : 0\n"
    "        Process ID : 4711\n            Type : C\n"
)
TABLE = (
    "| NVIDIA-SMI 580.95.05      Driver Version: 580.95.05      CUDA Version: 13.0     |\n"
    "|   0  NVIDIA H100 80GB HBM3          On  |   00000000:65:00.0 Off |                    0 |\n"
    "| N/A   33C    P0             70W /  700W |     520MiB /  81559MiB |      0%      Default |\n"
    "| Processes:                                                              |\n|    0   N/A  N/A            1720      C   python           173MiB |\n"
)
NPU = (
    "| npu-smi 25.5.0                   Version: 25.5.0                       |\n| NPU   Name                | Health        | Power |\n"
    "| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |\n"
    "| 0     Ascend910           | OK            | 93.6        42                0    / 0             |\n"
    "| 0     0                   | 0000:C1:00.0  | 0           0    / 0          3182/ 65536          |\n"
    "| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |\n"
    "| 0       0                 | 4711          | python                   | 60000                   |\n"
)
AMD = (
    '{"gpu_data": [{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X", "device_id": "0x74a1", "asic_serial": "0x6F1F0A2B3C4D5E6F", '
    '"target_graphics_version": "gfx942"}, "bus": {"bdf": "0000:05:00.0"}, "vram": {"size": {"value": 196592, "unit": "MB"}}, '
    '"driver": {"version": "6.19.14"}}]}'
)
ROCM = (
    '{"card0": {"Card Series": "AMD Instinct MI100", "GPU ID": "0x738c", "VRAM Total Memory (B)": "34342961152", "PCI Bus": "0000:05:00.0", '
    '"Unique ID": "0x1"}, "system": {"Driver version": "6.8.5"}}'
)
INFO = (
    "Agent 1\n*******\n  Name:                    gfx90a\n  Uuid:                    GPU-5e1f2a3b4c5d6e7f\n  Marketing Name:          AMD MI250X\n"
    "  Device Type:             GPU\n  Chip ID:                 29704(0x7408)\n  BDFID:                   1280\n      Size:   67092480(0x3ffc000) KB\n"
)
XPU = "| 0         | Device Name: Intel(R) Data Center GPU Max 1550 |\n|           | PCI BDF Address: 0000:29:00.0 |\n|           | DRM Device: /dev/dri/card1 |\n"
CSV = "0, NVIDIA H100, GPU-1, 00000000:65:00.0, 0x233010DE, 580.95.05, 81559, 9.0, Default, Disabled, [N/A], Completed\n"
LIST = "GPU 0: NVIDIA H100 (UUID: GPU-1111)\n  MIG 1g.10gb     Device  0: (UUID: MIG-1111-2222)\n"

QUERY = "--query-gpu=index,name,uuid,pci.bus_id,pci.device_id,driver_version,memory.total,compute_cap,compute_mode,mig.mode.current,driver_model.current,fabric.state"
SAMPLES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("fl-nvml",), NVML),
    (("nvidia-smi", "-q", "-x"), XML),
    (("nvidia-smi", "-q"), TEXT),
    (("nvidia-smi",), TABLE),
    (("nvidia-smi", "-L"), LIST),
    (("nvidia-smi", QUERY, "--format=csv,noheader,nounits"), CSV),
    (("nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader,nounits"), "GPU-1, 4711\n"),
    (("npu-smi", "info"), NPU),
    (("npu-smi", "info", "-m"), "NPU ID  Chip ID  Chip Logic ID  Chip Name\n5  0  0  Ascend 910B3\n5  1  -  Mcu\n"),
    (("amd-smi", "static", "--json"), AMD),
    (("rocm-smi", "-a", "--json"), ROCM),
    (("rocm-smi", "--showproductname"), "GPU[0]\t\t: Card Series: \t\tAMD Instinct MI100\n"),
    (("rocm-smi", "--showmeminfo", "vram"), "GPU[0]\t\t: VRAM Total Memory (B): 34342961152\n"),
    (("rocminfo",), INFO),
    (("xpu-smi", "discovery"), XPU),
)


@dataclass
class MemoryHost:
    """A machine made of values."""

    files: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    commands: dict[tuple[str, ...], Ran] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    live: bool = False
    os: str | None = None
    arch: str | None = None

    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        self._folders: dict[str, set[str]] = {}
        for path in (*self.files, *self.links):
            while path not in ("", "/"):
                parent, _, name = path.rpartition("/")
                self._folders.setdefault(parent or "/", set()).add(name)
                path = parent

    def read(self, path: str) -> Text:
        if path in self.refused:
            return Text(None, "EPERM")
        return Text(self.files[path][:TEXT_LIMIT]) if path in self.files else Text(None, "ENOENT")

    def names(self, path: str) -> tuple[str, ...]:
        return tuple(sorted(self._folders.get(path.rstrip("/"), ())))

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.nodes or path in self.links or path in self._folders

    def link(self, path: str) -> str | None:
        return self.links.get(path)

    def node(self, path: str) -> Node | None:
        return self.nodes.get(path)

    def node_names(self, folder: str) -> tuple[str, ...]:
        return tuple(sorted(path.rpartition("/")[2] for path in self.nodes if path.rpartition("/")[0] == folder))

    def run(self, argv: Sequence[str]) -> Ran:
        if tuple(argv) in self.commands:
            return self.commands[tuple(argv)]
        return Ran("unrecorded" if any(known[0] == argv[0] for known in self.commands) else "missing")


def in_memory(folder: Path) -> MemoryHost:
    """A record, read once."""
    host, root = ReplayHost(folder), folder / "root"
    paths = ["/" + str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    links = {path: target for path in paths if path.endswith("/driver") and (target := host.link(path))}
    files = {path: host.read(path).text or "" for path in paths if path not in links}
    nodes = {
        f"{base}/{name}": node for base in FOLDERS for name in host.node_names(base) if (node := host.node(f"{base}/{name}")) is not None
    }
    lines = (folder / "commands.jsonl").read_text().splitlines() if (folder / "commands.jsonl").exists() else []
    calls = [json.loads(line) for line in lines]
    commands = {tuple(c["argv"]): Ran("done", c["returncode"], c["stdout"], c.get("stderr", "")) for c in calls}
    return MemoryHost(files=files, nodes=nodes, commands=commands, links=links)


FOLDERS = ("/dev", "/dev/dri", "/dev/nvidia-caps", "/dev/uburma", "/dev/ummu")


def seeds(folder: Path) -> list[MemoryHost]:
    """Our records, a machine cut into partitions, and one where every tool answers."""
    found = [in_memory(path) for path in sorted(RECORDS.iterdir())]
    files, nodes = kfd_partitions(2, 4)
    found.append(in_memory(make(folder / "partitions", files, nodes)))
    for vendor, device, kind, driver, node in (
        (0x10DE, 0x2330, 0x030200, "nvidia", "nvidia0"),
        (0x1002, 0x74A1, 0x120000, "amdgpu", "kfd"),
        (0x19E5, 0xD802, 0x120000, "devdrv", "davinci0"),
        (0x8086, 0x0BD5, 0x038000, "xe", "dri/renderD128"),
        (0x1DA3, 0x1020, 0x120000, "habanalabs", "accel/accel0"),
    ):
        host = in_memory(make(folder / driver, pci("0000:65:00.0", vendor, device, kind, driver), {f"/dev/{node}": {}}))
        found.append(replace(host, commands={argv: Ran("done", 0, text) for argv, text in SAMPLES}))
        for argv, text in SAMPLES:
            found.append(replace(host, commands={argv: Ran("done", 0, text)}))
    return found


TOKENS = (
    "\x1b[2J", "\x1b]0;owned\x07", "\x00", "\x7f", "\x9b31m", "\ufffd", "\u202e", "é" * 30, "9" * 400, "-1", "0", "NaN", "1e999", "null", "[]", "{}", '"', "\\",
    "<a>", "</gpu>", "<!ENTITY x 'y'>", "<!DOCTYPE", "&x;", "]]>", "|", " | ", "+----+", "\n", "\r\n", "\t", ": ", " / ", "GPU 0: ", "MIG ", "N/A", "[N/A]", "xxx",
    "../../etc/passwd", "$(reboot)", "`id`", "%s%n", "0000:ff:1f.7", "0x" + "f" * 40, "renderD999", "card99999", "Infinity", "simd_count 18446744073709551615",
)  # fmt: skip


def _insert(text: str, dice: random.Random) -> str:
    place = dice.randrange(len(text) + 1)
    return text[:place] + dice.choice(TOKENS) + text[place:]


def _cut(text: str, dice: random.Random) -> str:
    return text[: dice.randrange(len(text) + 1)]


def _drop(text: str, dice: random.Random) -> str:
    one, two = sorted((dice.randrange(len(text) + 1), dice.randrange(len(text) + 1)))
    return text[:one] + text[two:]


def _double(text: str, dice: random.Random) -> str:
    one, two = sorted((dice.randrange(len(text) + 1), dice.randrange(len(text) + 1)))
    return text[:two] + text[one:]


def _shuffle(text: str, dice: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    dice.shuffle(lines)
    return "".join(lines)


def _binary(text: str, dice: random.Random) -> str:
    place = dice.randrange(len(text) + 1)
    return text[:place] + dice.randbytes(dice.randrange(1, 64)).decode("utf-8", "replace") + text[place:]


def _encoding(text: str, dice: random.Random) -> str:
    return text.encode(dice.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be")), "replace").decode(
        dice.choice(("utf-8", "latin-1")), "replace"
    )


def _numbers(text: str, dice: random.Random) -> str:
    with_new = dice.choice(("0", "-1", "9" * 25, "4294967296", "65536", "1", "", "0x1", "1.5"))
    return re.sub(r"\d+", lambda match: with_new if dice.random() < 0.3 else match[0], text[:20000])


def _nest(text: str, dice: random.Random) -> str:
    opened, closed = dice.choice((("[", "]"), ('{"a":', "}"), ("<a>", "</a>"), ("  ", ""), ("<gpu>", "</gpu>")))
    times = dice.choice((10, 1000, 20000))
    return opened * times + text + closed * times


def _huge(text: str, dice: random.Random) -> str:
    unit = text if len(text) > 0 and dice.random() < 0.6 else dice.choice(TOKENS)
    if dice.random() < 0.5:
        unit = unit.replace("\n", "")
    return (unit * (OUTPUT_LIMIT // max(1, len(unit)) + 1))[:OUTPUT_LIMIT]


Change = Callable[[str, random.Random], str]
CHANGES: tuple[Change, ...] = (_insert, _insert, _cut, _cut, _drop, _double, _shuffle, _binary, _encoding, _numbers)
RARE: tuple[Change, ...] = (_nest, _huge)


def changed(text: str, dice: random.Random, rare: float) -> str:
    """The text after one to three accidents."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        text = dice.choice(RARE if dice.random() < rare else CHANGES)(text, dice)[:OUTPUT_LIMIT]
    return text


def broken(seed: MemoryHost, dice: random.Random, rare: float) -> MemoryHost:
    """A machine with some of its files, nodes, links and answers broken."""
    files, nodes, commands, links = dict(seed.files), dict(seed.nodes), dict(seed.commands), dict(seed.links)
    refused: set[str] = set()
    for _ in range(dice.choice((1, 1, 2, 4))):
        kind = dice.random()
        if kind < 0.5 and commands:
            argv = dice.choice(sorted(commands))
            ran = commands[argv]
            commands[argv] = replace(ran, stdout=changed(ran.stdout, dice, rare), returncode=dice.choice((0, 0, 0, 0, 1, 9, 18, 255)))
        elif kind < 0.8 and files:
            path = dice.choice(sorted(files))
            files[path] = changed(files[path], dice, rare)
        elif kind < 0.85 and files:
            refused.add(dice.choice(sorted(files)))
        elif kind < 0.9 and files:
            del files[dice.choice(sorted(files))]
        elif kind < 0.95 and nodes:
            path = dice.choice(sorted(nodes))
            nodes[path] = replace(nodes[path], openable=dice.choice((None, False)), error=dice.choice((None, "EPERM", "\x1b[0m")))
            if dice.random() < 0.3:
                del nodes[path]
        elif links:
            path = dice.choice(sorted(links))
            links[path] = changed(links[path], dice, 0.0)
        else:
            argv, text = dice.choice(SAMPLES)
            commands[argv] = Ran("done", dice.choice((0, 1)), changed(text, dice, rare))
    return MemoryHost(files=files, nodes=nodes, commands=commands, refused=refused, links=links)


def printed(hardware: Hardware, readable: bool = True) -> str:
    """What `fl hw --json` prints, after the readable form and the choice of devices were tried too."""
    if readable:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            screen(hardware)
        assert not CONTROL.search(shown.getvalue()), "the screen holds control characters"
        with contextlib.suppress(HardwareError):
            choose_devices(hardware, choose_lane(hardware))
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        ui.document(hardware.to_json())
    return stream.getvalue()


def check(host: MemoryHost) -> Hardware:
    """Detection; AssertionError when its output is no clean JSON document. Whatever else is raised is a crash."""
    hardware = detect(host)
    text = printed(hardware)
    assert json.loads(text)["schema"] == 1
    assert not CONTROL.search(text), "the document holds control characters"
    return hardware
