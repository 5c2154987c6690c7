"""host.py, host_replay.py, host_record.py: the door to the machine."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hosts import make

from fl.detect import open_host
from fl.errors import UsageError
from fl.host import LiveHost, Ran, run_command
from fl.host_record import RecordingHost, Scrubber
from fl.host_replay import ReplayHost, pick_columns


def test_a_file_that_is_not_there_is_a_value(tmp_path: Path) -> None:
    host = LiveHost()
    assert host.read(str(tmp_path / "no")).error == "ENOENT"
    assert host.read(str(tmp_path)).error == "EINVAL"
    assert host.names(str(tmp_path / "no")) == ()
    assert host.node(str(tmp_path)) is None


def test_undecodable_bytes_are_replaced_and_long_files_cut(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfeok" + b"x" * (2 << 20))
    text = LiveHost().read(str(tmp_path / "a")).text
    assert text is not None and text.startswith("\ufffd\ufffdok") and len(text) == 1 << 20


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert LiveHost().read(str(tmp_path / "pipe")).error == "EINVAL"


def test_dev_null_is_a_node_that_opens() -> None:
    node = LiveHost().node("/dev/null")
    assert node is not None and node.type == "c" and (node.major, node.minor) == (1, 3) and node.openable is True


def test_a_command_and_a_missing_one() -> None:
    ran = LiveHost().run([sys.executable, "-c", "print(4)"])
    assert ran.ok and ran.stdout == "4\n"
    assert LiveHost().run(["no-such-tool-of-any-vendor"]).state == "missing"


def test_a_hanging_command_is_killed_with_its_children() -> None:
    mark = f"300.{os.getpid()}{time.monotonic_ns()}"
    begin = time.monotonic()
    ran = run_command(["sh", "-c", f"sleep {mark} & sleep {mark}"], 0.2)
    assert ran.state == "slow" and time.monotonic() - begin < 1
    end = time.monotonic() + 30
    while any(mark in words for words in command_lines()):
        assert time.monotonic() < end, "a child goes on"
        time.sleep(0.05)


def command_lines() -> Iterator[str]:
    """Of every process; one that has ended and was not asked for its end has none."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield file.read_bytes().decode(errors="replace")


def test_all_commands_together_have_one_patience() -> None:
    host = LiveHost(patience=0.3)
    begin = time.monotonic()
    assert [host.run(["sleep", "300"]).state for _ in range(3)] == ["slow"] * 3
    assert time.monotonic() - begin < 1


def test_replayed_paths_stay_inside_the_record(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = make(tmp_path / "r", {"/etc/ok": "fine\n", "/a/b/file": "1"})
    (folder / "root/etc/out").symlink_to("../../../secret")
    (folder / "root/etc/abs").symlink_to("/etc/passwd")
    (folder / "root/up").symlink_to("..")
    (folder / "root/etc/in").symlink_to("../a/b")
    host = ReplayHost(folder)
    assert host.read("/etc/ok").text == "fine\n"
    assert host.read("/etc/in/file").text == "1"
    for path in ("/etc/out", "/etc/abs", "/up/record.yaml", "/../../secret", "/etc/../../../secret"):
        assert host.read(path).text is None, path
    assert host.names("/up") == ()


def test_replayed_unreadable_files_links_and_nodes(tmp_path: Path) -> None:
    folder = make(
        tmp_path / "r",
        {"/sys/x": "", "/sys/d/driver": "../../drivers/amdgpu\n"},
        {"/dev/kfd": {"openable": False, "error": "EACCES", "mode": "0660"}},
    )
    (folder / "unreadable.yaml").write_text(yaml.safe_dump({"sys/x": "EPERM"}))
    (folder / "links.yaml").write_text(yaml.safe_dump({"/sys/e/driver": "../../../bus/pci/drivers/nvidia"}))
    host = ReplayHost(folder)
    assert host.read("/sys/x").error == "EPERM"
    assert host.link("/sys/d/driver") == "../../drivers/amdgpu"
    assert host.link("/sys/e/driver") == "../../../bus/pci/drivers/nvidia"
    node = host.node("/dev/kfd")
    assert node is not None and node.openable is False and node.error == "EACCES" and node.mode == 0o660
    assert host.node_names("/dev") == ("kfd",)


def test_replayed_commands(tmp_path: Path) -> None:
    host = ReplayHost(make(tmp_path / "r", commands=[(["npu-smi", "info"], 1, "no\n")]))
    assert host.run(["npu-smi", "info"]) == Ran("done", 1, "no\n", "")
    assert host.run(["npu-smi", "info", "-m"]).state == "unrecorded"
    assert host.run(["nvidia-smi"]).state == "missing"


def test_columns_of_a_recorded_query() -> None:
    recorded = ["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv"]
    ran = Ran("done", 0, "index, name, memory.total [MiB]\n0, NVIDIA H100, 81559 MiB\n1, NVIDIA H100, [N/A]\n")
    picked = pick_columns(recorded, ran, ["nvidia-smi", "--query-gpu=memory.total,index", "--format=csv,noheader,nounits"])
    assert picked is not None and picked.stdout == "81559, 0\n[N/A], 1\n"
    refused = pick_columns(recorded, ran, ["nvidia-smi", "--query-gpu=index,compute_cap", "--format=csv,noheader"])
    assert refused is not None and refused.returncode == 2 and "compute_cap" in refused.stdout
    assert pick_columns(recorded, ran, ["nvidia-smi", "--query-compute-apps=index", "--format=csv"]) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("record.yaml", "a: [1"),
        ("record.yaml", "- 1"),
        ("devices.yaml", "x"),
        ("commands.jsonl", "{}\n"),
        ("commands.jsonl", "{\n"),
        ("commands.jsonl", "[" * 90000),
    ],
)
def test_a_broken_record_is_a_usage_error(tmp_path: Path, name: str, content: str) -> None:
    folder = make(tmp_path / "r")
    (folder / name).write_text(content)
    with pytest.raises(UsageError, match=name):
        ReplayHost(folder)


def test_a_missing_record_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"record\.yaml is missing"):
        open_host(environment={"FL_REPLAY": str(tmp_path / "no")})
    assert open_host(environment={}).live


def test_recording_replays_to_the_same_answers(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys/file").write_text("GPU-AAAAAAAA-1111-2222-3333-444444444444\n")
    (tmp_path / "sys/link").symlink_to("../../bus/pci/drivers/nvidia")
    live = RecordingHost(LiveHost(), tmp_path / "record", keep_ids=True)
    base = str(tmp_path)
    asked = [
        live.read(f"{base}/sys/file"),
        live.names(f"{base}/sys"),
        live.link(f"{base}/sys/link"),
        live.node("/dev/null"),
        live.read(f"{base}/no"),
    ]
    ran = live.run([sys.executable, "-c", "print('hello')"])
    assert live.exists(f"{base}/sys") and not live.exists(f"{base}/none")
    live.write()
    replay = ReplayHost(tmp_path / "record")
    assert [replay.read(f"{base}/sys/file"), replay.link(f"{base}/sys/link"), replay.node("/dev/null"), replay.read(f"{base}/no")] == [
        asked[0],
        *asked[2:],
    ]
    assert replay.exists(f"{base}/sys") and not replay.exists(f"{base}/none")
    assert replay.run([sys.executable, "-c", "print('hello')"]) == ran
    assert replay.os == live.os and replay.arch == live.arch


def test_identifiers_are_replaced_consistently() -> None:
    scrub = Scrubber(("node-17",))
    first = scrub("GPU-d68adfab-1c6c-6f3f-f5f5-60091c72eca7 on node-17, serial")
    assert "d68adfab" not in first and "recorded-host" in first
    assert scrub("x d68adfab-1c6c-6f3f-f5f5-60091c72eca7").split()[1] == first.split()[0].removeprefix("GPU-")
    assert scrub("<serial>1324321002473</serial><serial>N/A</serial>") == "<serial>0000000000002</serial><serial>N/A</serial>"
    properties = scrub("unique_id 1801979520617338022\nhive_id 0\ndevice_id 29711\n")
    assert "1801979520617338022" not in properties and "hive_id 0\n" in properties and "device_id 29711" in properties
    assert scrub("/home/alice/run.py") == "/home/user/run.py"


def test_a_folder_with_files_is_not_recorded_into(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        RecordingHost(LiveHost(), tmp_path)


def test_recorded_commands_are_json_lines(tmp_path: Path) -> None:
    live = RecordingHost(LiveHost(), tmp_path / "r")
    live.run([sys.executable, "-c", "print('\\x1b[31m')"])
    live.run(["no-such-tool-of-any-vendor"])
    live.write()
    lines = [json.loads(line) for line in (tmp_path / "r/commands.jsonl").read_text().splitlines()]
    assert [line["stdout"] for line in lines] == ["\x1b[31m\n"]


def test_a_command_that_was_begun_runs_once_and_meanwhile(tmp_path: Path) -> None:
    tool = tmp_path / "slow"
    tool.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\nsleep 0.3\necho done $1\n", encoding="utf-8")
    tool.chmod(0o755)
    host = LiveHost()
    host.begin([str(tool), "a"])
    end = time.monotonic() + 60
    while not (tmp_path / "calls").exists():
        assert time.monotonic() < end, "it was not begun"
        time.sleep(0.02)
    time.sleep(0.35)
    begin = time.monotonic()
    assert host.run([str(tool), "a"]).stdout == "done a\n"
    assert time.monotonic() - begin < 0.2
    assert (tmp_path / "calls").read_text() == "x\n", "what was begun is not run once more"
    assert host.run([str(tool), "a"]).stdout == "done a\n" and (tmp_path / "calls").read_text() == "x\nx\n"
