"""Broken input of every kind never raises, never takes long, and never reaches the terminal raw. `bench/fuzz.py` tries many more."""



from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import CHANGES, RARE, SAMPLES, MemoryHost, broken, changed, check, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl.detect import detect, open_host
from fl.errors import UsageError
from fl.hardware import Node
from fl.host import OUTPUT_LIMIT, Ran
from fl.lanes.kfd import properties
from fl.lanes.npu_smi import parse, parse_mapping
from fl.lanes.nvidia_smi import QUERY, parse_apps, parse_csv, parse_list, parse_text, parse_xml
from fl.lanes.nvidia_table import parse_table
from fl.lanes.rocm_smi import parse_rocm_smi_text
from fl.lanes.rocminfo import parse_rocminfo
from fl.lanes.xpu import parse_discovery

Parser = Callable[[str], Any]
PARSERS: dict[str, Parser] = {
    "xml": parse_xml,
    "text": parse_text,
    "list": parse_list,
    "table": parse_table,
    "csv": lambda text: parse_csv(text, QUERY),
    "apps": parse_apps,
    "npu": parse,
    "mapping": parse_mapping,
    "rocm text": parse_rocm_smi_text,
    "rocminfo": parse_rocminfo,
    "xpu": parse_discovery,
    "kfd": properties,
}
WORDS = st.sampled_from(sorted({word for _, text in SAMPLES for word in text.replace("\n", " \n ").split(" ")}))
BROKEN = st.lists(st.one_of(WORDS, st.text(max_size=8), st.sampled_from(["\x1b[2J", "\x00", "9" * 5000, "\r", "<", "|"])), max_size=60).map(
    " ".join
)


@settings(max_examples=120, deadline=None)
@given(BROKEN)
def test_parsers_never_raise(text: str) -> None:
    for parser in PARSERS.values():
        parser(text)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["0000:65:00.0", "9.0", "gfx942", "0x74a1"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "gpus",
                    "gpu",
                    "gpu_data",
                    "asic",
                    "vram",
                    "size",
                    "value",
                    "bus",
                    "bdf",
                    "driver",
                    "index",
                    "migs",
                    "processes",
                    "pci",
                    "name",
                    "card0",
                    "system",
                    "instance",
                    "memory_mib",
                    "mig",
                    "number",
                    "max_cuda",
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_json_of_any_shape_is_a_finding_at_most(value: Any) -> None:
    text = json.dumps(value)
    nvidia = {"/dev/nvidia0": Node(path="/dev/nvidia0", openable=True), "/dev/nvidiactl": Node(path="/dev/nvidiactl", openable=True)}
    check(MemoryHost(nodes=nvidia, commands={("fl-nvml",): Ran("done", 0, text)}))
    wrapped = json.dumps({"driver": "580.95.05", "max_cuda": "13.0", "gpus": [value]})
    check(MemoryHost(nodes=nvidia, commands={("fl-nvml",): Ran("done", 0, wrapped)}))
    amd = {"/dev/kfd": Node(path="/dev/kfd", openable=True)}
    for argv in (("amd-smi", "static", "--json"), ("rocm-smi", "-a", "--json")):
        check(MemoryHost(nodes=amd, commands={argv: Ran("done", 0, text)}))


@pytest.mark.parametrize("number", range(4))
def test_broken_machines(tmp_path: Path, number: int) -> None:
    dice, machines = random.Random(number), seeds(tmp_path)
    for _ in range(150):
        check(broken(dice.choice(machines), dice, 0.0))


@pytest.mark.parametrize("accident", RARE)
@pytest.mark.parametrize("name", PARSERS)
def test_huge_and_nested_text_takes_no_time(name: str, accident: Callable[[str, random.Random], str]) -> None:
    for seed, (_, text) in enumerate(SAMPLES):
        long = accident(text, random.Random(seed))[:OUTPUT_LIMIT]
        begin = time.process_time()
        PARSERS[name](long)
        assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    "unit",
    [
        "GPU 0: " + " " * 400 + "x\n",
        "| 0 a" + " " * 3000,
        "GPU[0] : a" + " : " * 900 + "\n",
        "/ " * 5000,
        "Version:" + " " * 9000,
        "GPU 1: x\n",
        '<gpu id="1"/>',
    ],
)
def test_texts_made_to_be_slow(unit: str) -> None:
    text = (unit * (OUTPUT_LIMIT // len(unit)))[:OUTPUT_LIMIT]
    for parser in PARSERS.values():
        begin = time.process_time()
        parser(text)
        assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "devices.yaml",
            "a: &a [x]\nb: &b [*a,*a]\n"
            + "".join(f"c{n}: &c{n} [*{f'c{n - 1}' if n else 'b'},*{f'c{n - 1}' if n else 'b'}]\n" for n in range(40))
            + "/dev/kfd: {type: *c39}\n",
        ),
        (
            "devices.yaml",
            "a: &a {x: 1}\n"
            + "".join(f"b{n}: &b{n}\n  <<: [*{f'b{n - 1}' if n else 'a'}, *{f'b{n - 1}' if n else 'a'}]\n" for n in range(40)),
        ),
        ("devices.yaml", "/dev/kfd: {openable: 1e999, mode: [7], uid: -1, gid: 99999999999999999999, error: {}}\n"),
        ("devices.yaml", "\x1b: 1\n"),
        ("links.yaml", "? [a]\n: b\n"),
        ("unreadable.yaml", "[" * 5000),
        ("record.yaml", 'id: x\nos: "\\e[2J"\narch: [1]\n'),
        ("commands.jsonl", '{"argv": ["nvidia-smi"], "returncode": Infinity}\n'),
        ("commands.jsonl", '{"argv": {"a": 1}, "stdout": [1]}\n'),
        ("commands.jsonl", "[" * 100000),
        ("commands.jsonl", '{"argv": ["nvidia-smi", "-q", "-x"], "returncode": 0, "stdout": {"a": []}, "stderr": 7}\n'),
    ],
)
def test_a_broken_record_is_a_usage_error_or_an_answer(tmp_path: Path, name: str, text: str) -> None:
    folder = tmp_path / "r"
    (folder / "root").mkdir(parents=True)
    (folder / "record.yaml").write_text("id: x\n")
    (folder / name).write_text(text)
    begin = time.process_time()
    try:
        assert detect(open_host(folder)).to_json()["schema"] == 1
    except UsageError as error:
        assert str(folder) in error.message
    assert time.process_time() - begin < 2


def test_a_kernel_drivers_name_is_one_clean_word(tmp_path: Path) -> None:
    machine = next(m for m in seeds(tmp_path) if any(target.endswith("/nvidia") for target in m.links.values()))
    links = dict.fromkeys(machine.links, "../../drivers/vfio\t-pci\n\x1b[2J")
    check(MemoryHost(files=machine.files, nodes=machine.nodes, links=links))


def test_every_accident_changes_something() -> None:
    text = SAMPLES[2][1]
    for change in (*CHANGES, *RARE):
        assert any(change(text, random.Random(n)) != text for n in range(5)), change
    assert changed("", random.Random(0), 0.5) is not None
