"""Locks: exact, hashed, without a host name, and what their rows say."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fl import matrix as rows
from fl import paths
from fl.cli import main
from fl.errors import MatrixError
from fl.images import context, lock, lock_check, lock_header, lock_resolve, render

MATRIX = rows.load()
LOCKS = sorted(paths.IMAGES.glob("*/locks/*.txt"))
HASH = "--hash=sha256:" + "a" * 64


def stack(**changes: object) -> rows.Stack:
    return MATRIX.stack("cpu-torch213").model_copy(update=changes)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's images folder, to be damaged."""
    shutil.copytree(paths.IMAGES, tmp_path / "images")
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    return tmp_path / "images"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """`fl images lock …`: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as raised:
        main(["images", "lock", *arguments])
    captured = capsys.readouterr()
    return (raised.value.code if isinstance(raised.value.code, int) else 0), captured.out, captured.err


def entry(name: str, version: str) -> str:
    return f"{name}=={version} \\\n    {HASH} \\\n    {HASH}\n"


TWO = ("linux/amd64", "linux/arm64")


def test_every_image_has_a_lock_that_check_proves_offline_within_two_seconds() -> None:
    """The acceptance: a process of its own, no network, all rows."""
    command = "fl.cli.main(['images', 'lock', '--check', '--json'])"
    code = f"import time, fl.cli\ntry: {command}\nexcept SystemExit as e: print(time.process_time(), e.code)"
    environment = {**os.environ, "UV_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    document, seconds = done.stdout.rsplit("\n", 2)[:2]
    assert seconds.split()[1] == "0", done.stdout + done.stderr
    assert float(seconds.split()[0]) < 2.0, "0.6 s on the machine this was written on"
    found = json.loads(document)["locks"]
    wanted = {(stack.id, flavor, name) for stack in MATRIX.stacks for flavor in render.flavors(stack) for name in stack.hosts.platforms}
    assert {(one["stack"], one["flavor"], one["platform"]) for one in found} == wanted
    assert len(found) == len(LOCKS), "a lock of no row"
    partial = {(one["stack"], one["platform"]) for one in found if one["state"] == "partial"}
    assert partial == {
        ("cuda129-torch213", "linux/amd64"), ("rocm63-torch27", "linux/amd64"), ("cann90-torch210-310p", "linux/amd64"),
        ("cann90-torch210-950", "linux/amd64"), ("rocm72-torch214", "linux/amd64"),
        ("xpu-torch212", "linux/amd64"), ("cann91-torch210", "linux/amd64"),
        ("cann91-torch210-a3", "linux/amd64"), ("cann85-torch29", "linux/amd64"), ("cann82-torch26", "linux/amd64"),
        ("cann85-torch28", "linux/amd64"), ("cuda126-torch214", "linux/amd64"), ("cpu-torch26", "linux/amd64"),
        *((name, platform) for name in ("cpu-torch214", "cann91-torch212", "cann92-torch214-950") for platform in TWO),
    }, "their torch comes from a vendor's index"
    assert {one["state"] for one in found} == {"complete", "partial"}


def test_the_lock_for_a_vendor_s_serving_image_holds_what_is_added_and_nothing_of_the_engine() -> None:
    row = MATRIX.stack("rocm72-torch210")
    file = lock.path(row.id, "serve", "linux/amd64")
    assert file is not None
    text = file.read_text()
    assert "click" in lock.parse(text)
    assert not lock.parse(text).keys() & {"vllm", "torch", "triton", "transformers"}
    assert lock_check.findings(MATRIX, row, "serve", "linux/amd64", text) == []
    other = row.model_copy(update={"serve_base": rows.Base(image="vllm/vllm-openai-rocm:v0.27.1")})
    assert any("resolved for another row" in one for one in lock_check.findings(MATRIX, other, "serve", "linux/amd64", text))
    assert any("torch: comes with the base image" in one for one in lock_check.findings(
        MATRIX, row, "serve", "linux/amd64", text + entry("torch", "2.13.0")
    ))  # fmt: skip
    train = lock.path(row.id, "train", "linux/amd64")
    assert train is not None
    assert lock_check.findings(MATRIX, other, "train", "linux/amd64", train.read_text()) == [], "training does not look at it"


def test_the_cpu_stack_has_a_lock_with_one_hash_for_torch() -> None:
    file = lock.path("cpu-torch213", "train", "linux/amd64")
    assert file is not None
    torch = lock.entries(file.read_text())["torch"]
    assert torch.startswith("torch==2.13.0+cpu ")
    assert len(re.findall("--hash=", torch)) == 1


def test_build_dependencies_are_hashed() -> None:
    text = lock.BUILD_CONSTRAINTS.read_text()
    assert "setuptools" in lock.parse(text)
    assert all("--hash=sha256:" in one for one in lock.entries(text).values())


def test_names_and_versions_are_read() -> None:
    marked = f"torch==2.13.0+cpu ; sys_platform == 'linux' \\\n    {HASH}\n"
    text = "# a comment\n" + entry("Jinja2", "3.1.6") + entry("ruamel.yaml", "1.0") + marked
    assert lock.parse(text) == {"jinja2": "3.1.6", "ruamel-yaml": "1.0", "torch": "2.13.0+cpu"}


@pytest.mark.parametrize(
    ("text", "pins", "row", "found"),
    [
        (entry("torch", "2.13.0"), {"torch": "2.13.0+cpu"}, {}, "torch: the row says 2.13.0+cpu, the lock 2.13.0"),
        (entry("peft", "1"), {"peft": "1", "trl": "2"}, {}, "trl: the row says 2, the lock nothing"),
        ("peft==1\n", {}, {}, "peft: no hash"),
        (entry("peft", "1") + "-e .\n", {}, {}, "not a pinned package: -e ."),
        ("torch @ https://wheels.example/torch.whl " + HASH + "\n", {}, {}, "it names a URL"),
        (entry("torch", "2"), {"torch": "2"}, {"torch_from": "base"}, "torch: comes with the base image, and the lock would replace it"),
        (entry("triton", "3"), {}, {"torch_from": "base"}, "triton: comes with the base image, and the lock would replace it"),
        (entry("nvidia-cublas", "13"), {}, {"index": "pytorch-xpu"}, "CUDA build; the row wants that of pytorch-xpu"),
    ],
)
def test_what_is_wrong_is_told(text: str, pins: dict[str, str], row: dict[str, object], found: str) -> None:
    assert any(found in one for one in lock.problems(text, pins, stack(**{"index": None, **row})))


def test_a_local_version_of_the_row_s_index_is_its_release() -> None:
    text = entry("torch", "2.12.1+xpu") + entry("nvidia-ml-py", "13")
    assert lock.problems(text, {"torch": "2.12.1"}, stack(index="pytorch-xpu")) == []
    assert lock.problems(text, {"torch": "2.12.1"}, stack(index=None)) != []


def test_cuda_s_libraries_belong_to_a_cuda_row_wherever_its_torch_comes_from() -> None:
    row = MATRIX.stack("cuda129-torch213")
    text = entry("torch", "2.13.0+cu129") + entry("nvidia-cublas-cu12", "12.9.1.4")
    assert lock.problems(text, {"torch": "2.13.0+cu129"}, row) == []
    other = text.replace("+cu129", "")
    assert lock.problems(other, {"torch": "2.13.0+cu129"}, row) == ["torch: the row says 2.13.0+cu129, the lock 2.13.0"]


def test_a_partial_lock_makes_nothing_unless_that_is_allowed() -> None:
    assert lock.path("xpu-torch212", "train", "linux/amd64") is None
    with pytest.raises(MatrixError, match=r"partial lock.*\n  torch==2\.12\.1: .*index pytorch-xpu, which could not be") as caught:
        context.need_lock(MATRIX.stack("xpu-torch212"), "train", "linux/amd64")
    assert caught.value.exit_code == 8
    assert "fl images lock xpu-torch212" in caught.value.remedy
    assert "--allow-unlocked" in caught.value.remedy
    file = context.need_lock(MATRIX.stack("xpu-torch212"), "train", "linux/amd64", allow_unlocked=True)
    assert file == lock.path("xpu-torch212", "train", "linux/amd64", partial=True)
    assert [one.name for one in lock_check.refuse_partial(file, "xpu-torch212", allow=True)] == ["torch"]


def test_a_stack_without_a_lock_is_refused_with_the_index_named(copy: Path) -> None:
    (copy / "xpu/locks/xpu-torch212.train.linux-amd64.txt").unlink()
    with pytest.raises(MatrixError, match=r"xpu-torch212 has no lock for linux/amd64.*pytorch-xpu") as caught:
        context.need_lock(MATRIX.stack("xpu-torch212"), "train", "linux/amd64")
    assert caught.value.exit_code == 8
    assert caught.value.remedy == "fl images lock xpu-torch212"


def test_a_complete_lock_is_not_replaced_by_a_partial_one(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where its index cannot be reached. A lock of another row is replaced all the same: nothing is made from it."""
    row, platform = MATRIX.stack("cpu-torch213"), "linux/amd64"
    file = copy / "cpu/locks/cpu-torch213.train.linux-amd64.txt"
    before = file.read_text()
    missing = lock_header.Unlocked(name="torch", version=str(row.train["torch"]), reason="its index could not be reached")
    rest = "".join(lines for name, lines in lock.entries(before).items() if name != "torch")
    partial = lock_resolve.with_header(MATRIX, row, "train", platform, rest, [missing])
    monkeypatch.setattr(lock, "resolve", lambda *_: partial)
    code, _, err = run(capsys, row.id)
    assert (code, file.read_text() == before) == (0, True)
    assert "is complete and its row's: it stays" in err and "its index could not be reached" in err
    file.write_text(before.replace("# row: ", "# row: 0", 1))
    code, _, err = run(capsys, row.id)
    assert (code, file.read_text() == partial) == (0, True), err


def test_an_installed_fl_writes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "IMAGES", tmp_path / "images")
    with pytest.raises(MatrixError, match="this fl is an installed one"):
        lock.write(stack(), "train", "linux/amd64", "")
    assert not (tmp_path / "images").exists()


CUDA = "cuda/locks/cuda130-torch214.train.linux-amd64.txt"
XPU = "xpu/locks/xpu-torch212.train.linux-amd64.txt"


def without(name: str) -> Callable[[str], str]:
    return lambda text: text.replace(lock.entries(text)[name], "")


DAMAGE: dict[str, tuple[str, Callable[[str], str], str]] = {
    "version of a pin": (CUDA, lambda text: text.replace("peft==0.21.2", "peft==0.21.1"), "peft: the row says 0.21.2, the lock 0.21.1"),
    "version of another": (CUDA, lambda text: re.sub("filelock==[0-9.]+", "filelock==1.0", text), "filelock: changed by hand"),
    "one hash another": (CUDA, lambda text: text.replace("--hash=sha256:5", "--hash=sha256:6", 1), ": changed by hand"),
    "hashes of a package gone": (
        CUDA, lambda text: text.replace(lock.entries(text)["peft"], "peft==0.21.2\n"), "peft: no hash",
    ),
    "pinned package removed": (CUDA, without("trl"), "trl: removed by hand"),
    "other package removed": (CUDA, without("networkx"), "networkx: removed by hand"),
    "package added": (CUDA, lambda text: text + entry("attrs", "25.1.0"), "attrs: added by hand"),
    "row's hash": (CUDA, lambda text: re.sub("# row: ....", "# row: 0000", text), "resolved for another row: the row is "),
    "another platform": (
        CUDA, lambda text: text.replace("linux/amd64", "linux/arm64"), "its header says platform linux/arm64, the file is for linux/amd64",
    ),
    "another stack's lock": (
        CUDA, lambda text: text.replace("cuda130-torch214", "cuda128-torch210"), "its header says stack cuda128-torch210",
    ),
    "another day": (CUDA, lambda text: text.replace("# date: 2026-11-22", "# date: 2026-11-23"), "resolved with packages until 2026-11-23"),
    "no header": (CUDA, lambda text: "".join(line for line in text.splitlines(True) if line[0] != "#"), "it has no header"),
    "a URL": (CUDA, lambda text: text + "x @ https://wheels.example/x.whl\n", "it names a URL"),
    "excused by hand": (
        CUDA, lambda text: without("peft")(text).replace("# sums", "# unlocked: peft==0.21.2: not needed\n# sums", 1),
        "peft: listed as unlocked, and the ordinary index has everything of this row",
    ),
    "unlocked in another version": (XPU, lambda text: text.replace("torch==2.12.1:", "torch==2.12.0:"), "the row says 2.12.1"),
    "no longer partial": (XPU, lambda text: re.sub("# unlocked.*\n", "", text), "torch: the row says 2.12.1, the lock nothing"),
    "a rule broken": (
        XPU, lambda text: re.sub("setuptools==[0-9.]+", "setuptools==84.2.1", text),
        "setuptools must be <82, found 84.2.1: torch 2.11 and 2.12 cap",
    ),
    "fl's own need": (CUDA, without("click"), "click: fl needs click"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_lock_edited_by_hand_is_found_and_named(kind: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, damage, expected = DAMAGE[kind]
    file = copy / name
    text = file.read_text()
    file.write_text(damage(text))
    assert file.read_text() != text
    code, out, err = run(capsys, "--check", "cuda130-torch214", "xpu-torch212")
    assert (code, out) == (8, "")
    assert any(file.name in line and expected in line for line in err.splitlines()), err
    assert run(capsys, "--check", "cpu-torch213")[0] == 0, "others are not touched"


def test_a_changed_row_makes_its_locks_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "matrix.yaml"
    file.write_text(MATRIX.text.replace('base: {image: "debian:trixie-slim"', 'base: {image: "debian:trixie-20261101-slim"', 1))
    monkeypatch.setattr(paths, "MATRIX", file)
    code, _, err = run(capsys, "--check")
    assert code == 8
    assert len(re.findall(r"cuda130-torch214\.(?:train|serve)\.linux-a\w+64\.txt: it was resolved for another row", err)) == 4
    assert err.count("another row") == 4


def test_what_only_one_flavor_sees_makes_only_its_locks_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is bumped leaves training's locks, environments and evidence alone; each flavor has its own day."""
    file = tmp_path / "matrix.yaml"
    monkeypatch.setattr(paths, "MATRIX", file)
    file.write_text(MATRIX.text.replace('serve: {vllm: "0.33.0"', 'serve: {vllm: "0.33.0", ray: "2.54.0"'))
    assert run(capsys, "--check", "cuda130-torch214", "--flavor", "train")[0] == 0
    code, _, err = run(capsys, "--check", "cuda130-torch214", "--flavor", "serve")
    assert code == 8
    assert "serve.linux-amd64.txt: ray: the row says 2.54.0, the lock nothing" in err
    file.write_text(MATRIX.text.replace('serve_exclude_newer: "2026-11-09"', 'serve_exclude_newer: "2026-11-10"'))
    assert run(capsys, "--check", "cuda130-torch214", "--flavor", "train")[0] == 0
    code, _, err = run(capsys, "--check", "cuda130-torch214", "--flavor", "serve")
    assert code == 8
    assert "it was resolved with packages until 2026-11-09, the row says 2026-11-10" in err


def test_a_named_stack_must_have_its_locks(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / XPU).unlink()
    assert run(capsys, "--check")[0] == 0
    code, _, err = run(capsys, "--check", "xpu-torch212")
    assert code == 8
    assert "xpu-torch212 train linux/amd64: no lock" in err


def test_flavor_and_platform_choose(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--check", "--platform", "linux/arm64", "--flavor", "train", "--json")
    assert code == 0
    assert {(one["stack"], one["platform"]) for one in json.loads(out)["locks"]} == {
        (stack.id, "linux/arm64") for stack in MATRIX.stacks if "linux/arm64" in stack.hosts.platforms
    }
    code, _, err = run(capsys, "--check", "--platform", "linux/riscv64")
    assert code == 8
    assert "no image for linux/riscv64; known: linux/amd64, linux/arm64" in err


def test_a_header_says_what_it_was_given() -> None:
    header = lock_header.Header(
        stack="s", flavor="train", platform="linux/amd64", row="ab" * 32, resolver="uv 1.0", date="2026-11-22",
        unlocked=(lock_header.Unlocked(name="torch", version="2.12.1+xpu", reason="the index x: closed"),),
        sums=lock_header.sums({f"package-{number}": "x" for number in range(40)}),
    )  # fmt: skip
    text = lock_header.render(header)
    assert lock_header.parse(text) == header
    assert all(line.startswith("# ") and len(line) <= 140 for line in text.splitlines())
    assert lock_header.parse("# stack: s\n" + entry("peft", "1")) is None


class Index(http.server.SimpleHTTPRequestHandler):
    """A simple index without upload dates, as vendors have."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """(folder, address) of a package index on this machine."""
    folder = tmp_path / "index"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def publish(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any", sdist: bool = False) -> None:
    """A wheel with metadata only, or a source distribution without any."""
    normal = name.replace("-", "_")
    target = folder / name
    target.mkdir(exist_ok=True)
    if sdist:
        (target / f"{normal}-{version}.tar.gz").write_bytes(b"not built")
    else:
        with zipfile.ZipFile(target / f"{normal}-{version}-{tag}.whl", "w") as archive:
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
            archive.writestr(f"{normal}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
            archive.writestr(f"{normal}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            archive.writestr(f"{normal}-{version}.dist-info/RECORD", "")
    names = sorted(file.name for file in target.iterdir() if file.suffix != ".html")
    hashes = {one: hashlib.sha256((target / one).read_bytes()).hexdigest() for one in names}
    links = "".join(f'<a href="{one.replace("+", "%2B")}#sha256={hashes[one]}">{one}</a>' for one in names)
    (target / "index.html").write_text(f"<html><body>{links}</body></html>")


@pytest.fixture
def ordinary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: tuple[Path, str]) -> Path:
    """The index of this test as the ordinary one, for a row that pins torch, peft and what fl needs; nothing else is asked."""
    folder, address = index
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nindex-url = {address}\n")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setattr("fl.wheel.requirements", lambda: ["click>=8.1"])
    publish(folder, "click", "8.2.0")
    publish(folder, "peft", "0.21.2", "torch>=2.0", "numpy")
    publish(folder, "numpy", "2.5.0")
    return folder


def small(**changes: object) -> tuple[rows.Matrix, rows.Stack]:
    """A matrix whose one row pins torch and peft."""
    row = MATRIX.stack("xpu-torch212").model_copy(update={"train": {"torch": "2.12.1", "peft": "0.21.2"}, "exclude_newer": None, **changes})
    matrix = MATRIX.model_copy(update={"layers": {"current": {}}, "stacks": (row,)})
    return matrix, row


def with_vendor(matrix: rows.Matrix, address: str) -> rows.Matrix:
    vendor = matrix.indexes["pytorch-xpu"].model_copy(update={"url": address})
    return matrix.model_copy(update={"indexes": {**matrix.indexes, "pytorch-xpu": vendor}})


def test_where_the_vendor_s_index_is_reached_the_lock_is_complete(ordinary: Path, tmp_path: Path) -> None:
    """Its files have no upload dates: the row's day must not hide them."""
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    publish(vendor, "torch", "2.12.1+xpu", "triton-xpu==3.6.0")
    publish(vendor, "triton-xpu", "3.6.0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=str(vendor)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    matrix, row = small()
    matrix = with_vendor(matrix, f"http://127.0.0.1:{server.server_address[1]}/")
    text = lock.resolve(matrix, row, "train", "linux/amd64")
    server.shutdown()
    server.server_close()
    assert lock.parse(text) == {"click": "8.2.0", "numpy": "2.5.0", "peft": "0.21.2", "torch": "2.12.1+xpu", "triton-xpu": "3.6.0"}
    header = lock_header.parse(text)
    assert header is not None
    assert not header.partial
    assert "://" not in text


def test_where_it_is_not_reached_all_but_torch_is_locked(ordinary: Path) -> None:
    publish(ordinary, "torch", "2.12.1", "nvidia-cublas==13.0.0")
    publish(ordinary, "nvidia-cublas", "13.0.0")
    matrix, row = small()
    matrix = with_vendor(matrix, "http://127.0.0.1:9/")
    text = lock.resolve(matrix, row, "train", "linux/amd64")
    assert set(lock.parse(text)) == {"click", "numpy", "peft"}
    header = lock_header.parse(text)
    assert header is not None
    assert [(one.name, one.version) for one in header.unlocked] == [("torch", "2.12.1")]
    assert "pytorch-xpu, which could not be reached" in header.unlocked[0].reason
    assert lock_check.findings(matrix, row, "train", "linux/amd64", text) == []


def test_a_version_that_no_index_has_is_no_partial_lock(ordinary: Path, index: tuple[Path, str]) -> None:
    publish(ordinary, "torch", "2.12.0")
    matrix, row = small()
    with pytest.raises(MatrixError, match=r"no lock for xpu-torch212 on linux/amd64.*torch==2\.12\.1"):
        lock.resolve(with_vendor(matrix, index[1]), row, "train", "linux/amd64")


def test_what_the_resolver_takes(ordinary: Path) -> None:
    """Wheels, except named source distributions, which are not built; for the base's C library; what the rules allow."""
    publish(ordinary, "torch", "2.12.1", "setuptools", "filelock")
    publish(ordinary, "numpy", "2.6.0", sdist=True)
    publish(ordinary, "filelock", "1.0")
    publish(ordinary, "filelock", "2.0", tag="cp312-cp312-manylinux_2_40_x86_64")
    publish(ordinary, "deepspeed", "0.19.8", sdist=True)
    publish(ordinary, "setuptools", "81.0")
    publish(ordinary, "setuptools", "84.2.1")
    for name in ("einops", "hjson", "msgpack", "ninja", "packaging", "psutil", "py-cpuinfo", "pydantic", "tqdm"):
        publish(ordinary, name, "99.0")
    matrix, row = small(index=None, train={"torch": "2.12.1", "peft": "0.21.2", "deepspeed": "0.19.8"})
    assert row.base.image == "ubuntu:24.04", "glibc 2.39"
    versions = lock.parse(lock.resolve(matrix, row, "train", "linux/amd64"))
    assert versions["numpy"] == "2.5.0", "2.6.0 has no wheel"
    assert versions["deepspeed"] == "0.19.8"
    assert versions["py-cpuinfo"] == "99.0", "told by dependency-metadata.toml"
    assert versions["filelock"] == "1.0", "2.0 needs glibc 2.40"
    assert versions["setuptools"] == "81.0", "a rule of the matrix: <82 with torch 2.12"


@pytest.mark.parametrize(
    ("glibc", "platform", "name"),
    [
        ("2.36", "linux/arm64", "aarch64-manylinux_2_36"), ("2.41", "linux/amd64", "x86_64-manylinux_2_40"),
        ("2.29", "linux/amd64", "x86_64-manylinux_2_28"), (None, "linux/amd64", "x86_64-manylinux_2_28"),
    ],
)
def test_the_platform_is_that_of_the_base_s_c_library(glibc: str | None, platform: str, name: str) -> None:
    question = lock_resolve.Question(stack=stack(), pins={}, platform=platform, glibc=glibc)
    assert lock_resolve._platform(question) == name


def test_the_row_s_day_hides_later_uploads(ordinary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An index that tells no dates gives nothing at all where a day is asked for, rather than something else every time."""
    publish(ordinary, "torch", "2.12.1")
    matrix, row = small(index=None, exclude_newer="2026-11-22")
    with pytest.raises(MatrixError, match=r"exclude-newer.*2026-11-22T00:00:00Z"):
        lock.resolve(matrix, row, "train", "linux/amd64")


def test_an_allowed_partial_lock_builds_with_what_it_lacks_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "host_platform", lambda: "linux/amd64")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "torch-2.12.1+xpu-cp312-cp312-linux_x86_64.whl").touch()
    row = MATRIX.stack("xpu-torch212")
    with pytest.raises(MatrixError, match="partial lock"):
        context.prepare(MATRIX, row, "train", tmp_path / "refused", context.Site())
    assert not (tmp_path / "refused").exists()
    folder, folders = context.prepare(MATRIX, row, "train", tmp_path / "root", context.Site(allow_unlocked=True, links=(wheels,)))
    text = (folder / "Dockerfile").read_text()
    assert "/mnt/uv pip install --constraints /usr/src/constraints.txt torch==2.12.1;" in text
    assert text.index("pip sync") < text.index("--constraints /usr/src") < text.index("--no-index")
    assert "trl==1.12.0\n" in (folder / "full" / "constraints.txt").read_text()
    assert [file.name for file in folders["wheels"].iterdir()] == ["torch-2.12.1+xpu-cp312-cp312-linux_x86_64.whl"]
    assert "--constraints" not in render.dockerfile(MATRIX, row)


def test_building_from_a_lock_that_was_edited_by_hand_ends_with_8(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(context, "host_platform", lambda: "linux/amd64")
    monkeypatch.setenv("PATH", "")
    file = copy / "cpu/locks/cpu-torch213.train.linux-amd64.txt"
    file.write_text(file.read_text().replace("tqdm==", "tqdm==0."))
    with pytest.raises(SystemExit) as raised:
        main(["images", "build", "cpu-torch213"])
    assert raised.value.code == 8
    error = capsys.readouterr().err
    assert "cpu-torch213.train.linux-amd64.txt is not what the resolver wrote" in error
    assert "tqdm: changed by hand" in error
    assert "fl images lock cpu-torch213" in error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub("# row: [0-9a-f]+", "# row: " + "0" * 64, text), "it was resolved for another row: the row is "),
        (lambda text: text.replace("# stack: cpu-torch213", "# stack: cpu-torch210"), "its header says stack cpu-torch210"),
        (lambda text: text.replace("# platform: linux/amd64", "# platform: linux/arm64"), "its header says platform linux/arm64"),
        (lambda text: re.sub("# date: [0-9-]+", "# date: 2020-01-01", text), "packages until 2020-01-01, the row says"),
        (lambda text: re.sub("# date: [0-9-]+\n", "", text).replace("tqdm==", "tqdm==0."), "it has no header that says whose it is"),
    ],
)
def test_nothing_is_built_from_another_row_s_lock(
    change: Callable[[str], str], said: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    file = copy / "cpu/locks/cpu-torch213.train.linux-amd64.txt"
    text = file.read_text()
    assert change(text) != text
    file.write_text(change(text))
    with pytest.raises(SystemExit) as raised:
        main(["images", "build", "cpu-torch213", "--platform", "linux/amd64"])
    error = capsys.readouterr().err
    assert raised.value.code == 8, error
    assert "is not the lock of cpu-torch213 as its row is now" in error and said in error
    assert "fl images lock cpu-torch213" in error


def test_the_list_of_images_tells_partial_locks(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "rocm/locks/rocm72-torch214.train.linux-amd64.txt").unlink()
    with pytest.raises(SystemExit):
        main(["images", "list", "--json"])
    found = {(one["stack"], one["platform"]): one for one in json.loads(capsys.readouterr().out)["images"] if one["flavor"] == "train"}
    said = {stack: (found[stack, "linux/amd64"]["lock"], found[stack, "linux/amd64"]["lock_sha256"] is None) for stack in (
        "cpu-torch213", "xpu-torch212", "rocm72-torch214",
    )}  # fmt: skip
    assert said == {"cpu-torch213": ("complete", False), "xpu-torch212": ("partial", True), "rocm72-torch214": ("absent", True)}
    with pytest.raises(SystemExit):
        main(["images", "list"])
    assert re.search(r"xpu-torch212 +train +linux/amd64 +edge +partial ", capsys.readouterr().out)


def test_a_partial_lock_stays_one_whatever_else_its_header_loses() -> None:
    file = lock.path("xpu-torch212", "train", "linux/amd64", partial=True)
    assert file is not None
    text = file.read_text()
    assert lock.is_partial(re.sub("# (row|state|stack).*\n", "", text))
    assert lock.is_partial(re.sub("# (row|unlocked).*\n", "", text))
    assert not lock.is_partial(entry("peft", "1"))


def test_building_from_a_partial_lock_ends_with_8_before_docker_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fl.images.context.host_platform", lambda: "linux/amd64")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as raised:
        main(["images", "build", "xpu-torch212"])
    assert raised.value.code == 8
    assert "torch==2.12.1: it and what it requires come from the index pytorch-xpu" in capsys.readouterr().err
