"""What the steps of a build do to what they installed: which layer a package goes into, what is removed, what is compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fl import matrix as rows
from fl import paths
from fl.images import bytecode, context, groups, lock, render

MATRIX = rows.load()
TRIM = paths.IMAGES / "common" / "trim.sh"


def parts_of(stack: str, platform: str = "linux/amd64") -> dict[str, set[str]]:
    """Folder → packages, of a row's real lock and template."""
    file = lock.path(stack, "train", platform)
    assert file is not None
    steps = groups.folders(render.dockerfile(MATRIX, MATRIX.stack(stack)))
    return {name: set(lock.parse(text)) for name, text in groups.split(file.read_text(), steps).items()}


def test_the_vendor_s_runtime_and_torch_have_layers_of_their_own() -> None:
    parts = parts_of("cuda130-torch214")
    assert list(parts) == ["runtime", "torch"]
    assert parts["torch"] == {"torch", "triton"}
    assert "nvidia-cublas" in parts["runtime"]
    assert all(name.startswith(("nvidia-", "cuda-")) for name in parts["runtime"])
    assert "nvidia-ml-py" not in parts["runtime"]
    assert parts_of("cpu-torch213") == {"torch": {"torch"}}


def test_a_runtime_without_a_layer_goes_where_torch_goes() -> None:
    names = ("click", "nvidia-cublas", "nvidia-ml-py", "torch", "torch-npu", "triton", "trl")
    text = "".join(f"{name}==1 --hash=sha256:0\n" for name in names)
    parts = groups.split(text, ["torch", "full"])
    assert {name: set(lock.parse(part)) for name, part in parts.items()} == {"torch": {"nvidia-cublas", "torch", "torch-npu", "triton"}}
    assert groups.split(text, ["full", "own"]) == {}


def test_every_package_of_a_lower_layer_is_in_the_whole_lock(tmp_path: Path) -> None:
    """The step with the whole lock removes what it does not name: a lower layer must hold nothing else."""
    if context.host_platform() != "linux/amd64":
        pytest.skip("the CUDA stack of this test is looked at on linux/amd64")
    folder, _ = context.prepare(MATRIX, MATRIX.stack("cuda130-torch214"), "train", tmp_path, context.Site(base="mine:1"))
    steps = {one.name for one in folder.iterdir() if one.is_dir()}
    assert steps == {"runtime", "torch", "full", "jit", "own"}
    whole = lock.entries((folder / "full" / "lock.txt").read_text())
    for name in ("runtime", "torch"):
        part = lock.entries((folder / name / "lock.txt").read_text())
        assert part
        assert all(whole[package] == entry for package, entry in part.items())
    for name in steps:
        assert {"trim.sh", "bytecode.py"} <= {one.name for one in (folder / name).iterdir()}


def test_secrets_are_mounted_where_something_is_fetched_and_the_site_has_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a step with a secret BuildKit reads everything that lies below: for CUDA's last layer six gigabytes. Certificates are none."""
    if context.host_platform() != "linux/amd64":
        pytest.skip("the CUDA stack of this test is looked at on linux/amd64")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    row, ca, fetching = MATRIX.stack("cuda130-torch214"), tmp_path / "ca.pem", ["runtime", "torch", "full", "jit"]
    ca.touch()
    for address, expected in (("", []), ("https://me:word@i.example/simple", fetching)):
        monkeypatch.setenv("PIP_INDEX_URL", address)
        root = tmp_path / str(len(address))
        folder, folders = context.prepare(MATRIX, row, "train", root, context.Site(base="mine:1", ca=ca))
        runs = (folder / "Dockerfile").read_text().split("\nRUN ")
        bound = {name: run for run in runs for name in groups.folders(run)}
        assert list(bound) == [*fetching, "own"]
        assert [name for name, run in bound.items() if "type=secret,id=index" in run and ". /run/secrets/index" in run] == expected
        assert [name for name, run in bound.items() if "; then . /mnt/site; fi" in run] == fetching
        assert (root / "index").exists() == bool(address)
        assert sorted(one.name for one in folders["uv"].iterdir()) == ["ca", "site"]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages with what wheels bring and nothing opens, after a moment that `begin` marks."""
    begin = tmp_path / "begin"
    begin.touch()
    os.utime(begin, (1, 1))
    for name in [
        "pandas/core/frame.py", "pandas/tests/frame/test_frame.py", "numpy/testing/__init__.py", "numpy/_core/tests/test_x.py",
        "jinja2/tests.py", "datasets/tests/code.py", "torch/bin/protoc-3.13", "torch/bin/torch_shm_manager", "torch/test/deep/test_api",
        "torch/include/torch.h", "torch/lib/libtorch.so", "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/lib/libnvrtc.alt.so.13",
        "nvidia/cu13/lib/libcusolverMg.so.12", "nvidia/cu13/lib/libcusolver.so.12", "bitsandbytes/libbitsandbytes_cpu.so",
        "bitsandbytes/libbitsandbytes_cuda126.so", "bitsandbytes/libbitsandbytes_cuda128.so", "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes/libbitsandbytes_rocm72.so", "bitsandbytes/libbitsandbytes_xpu2026.so", "x-1.dist-info/uv_cache.json",
    ]:  # fmt: skip
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(name)
    for name, size in (("triton/cupti_static.a", 200_000), ("nvidia/cu13/lib/libcudadevrt.a", 200_000), ("x/small.a", 10)):
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_bytes(b"\0" * size)
    (tmp_path / "site/x-1.dist-info/RECORD").write_text("x/a.py,sha256=1,2\nx-1.dist-info/uv_cache.json,sha256=1,2\n")
    return tmp_path / "site"


def trim(site: Path, *library: str) -> set[str]:
    """Runs the script; gives what it removed."""
    before = {str(file.relative_to(site)) for file in site.rglob("*") if file.is_file()}
    done = subprocess.run(["sh", TRIM, site, site.parent / "begin", *library], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"trimmed: \d+ MB\n", done.stdout)
    return before - {str(file.relative_to(site)) for file in site.rglob("*") if file.is_file()}


ALWAYS = {
    "pandas/tests/frame/test_frame.py", "numpy/_core/tests/test_x.py", "torch/bin/protoc-3.13", "torch/test/deep/test_api",
    "nvidia/cu13/lib/libnvrtc.alt.so.13", "nvidia/cu13/lib/libcusolverMg.so.12", "triton/cupti_static.a", "x-1.dist-info/uv_cache.json",
}  # fmt: skip


@pytest.mark.parametrize(
    ("library", "kept"),
    [
        ((), set()),
        (("cuda130",), {"cuda130"}),
        (("cuda129",), {"cuda126", "cuda128"}),
        (("rocm72",), {"rocm72"}),
        (("xpu",), {"xpu2026"}),
    ],
)
def test_what_nothing_opens_is_removed(library: tuple[str, ...], kept: set[str], site: Path) -> None:
    """bitsandbytes keeps the row's library, or those of the same major version, which it then takes itself."""
    every = {"cuda126", "cuda128", "cuda130", "rocm72", "xpu2026"}
    assert trim(site, *library) == ALWAYS | {f"bitsandbytes/libbitsandbytes_{name}.so" for name in every - kept}
    assert not (site / "pandas" / "tests").exists()
    assert (site / "x-1.dist-info" / "RECORD").read_text() == "x/a.py,sha256=1,2\n"


def test_what_a_base_brought_is_left_alone(site: Path) -> None:
    os.utime(site.parent / "begin")
    for file in site.rglob("*"):
        os.utime(file, (2, 2))
    assert trim(site, "rocm72") == set()


@pytest.mark.parametrize("name", [stack.id for stack in MATRIX.stacks])
def test_the_library_that_is_kept_is_the_row_s(name: str) -> None:
    stack = MATRIX.stack(name)
    text = render.dockerfile(MATRIX, stack)
    toolkit = {"cuda": stack.runtime.get("cuda"), "rocm": stack.runtime.get("rocm"), "xpu": ""}.get(stack.lane)
    told = "" if toolkit is None else stack.lane + "".join(toolkit.split(".")[:2])
    assert set(re.findall(r"trim\.sh \S+ /tmp/begin ?(\w*);", text)) == {told}


def compiled(site: Path, kept: Path) -> str:
    command = [sys.executable, bytecode.__file__, site, site.parent / "begin", kept]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=site.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_byte_code_is_made_once_and_kept(tmp_path: Path) -> None:
    (tmp_path / "begin").touch()
    os.utime(tmp_path / "begin", (1, 1))
    site, kept = tmp_path / "site", tmp_path / "kept"
    (site / "one").mkdir(parents=True)
    (site / "one" / "code.py").write_text("VALUE = 1\n")
    (site / "one" / "template.py").write_text("{{ value }} =\n")
    (site / "old.py").write_text("VALUE = 2\n")
    os.utime(site / "old.py", (0, 0))
    assert compiled(site, kept) == "compiled: 1 of 2 sources\n"
    target = Path(importlib.util.cache_from_source(str(site / "one" / "code.py")))
    first = target.read_bytes()
    os.utime(site / "one" / "code.py", (5, 5))
    code = "import one.code, sys; print(one.code.VALUE, one.code.__cached__)"
    done = subprocess.run([sys.executable, "-v", "-c", code], cwd=site, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", str(target)]
    assert f"code object from '{target}'" in done.stderr, "another time stamp of the source does not matter"
    (known,) = (file for file in kept.rglob("*") if file.is_file())
    assert known.read_bytes() == first
    known.write_bytes(b"kept")
    compiled(site, kept)
    assert target.read_bytes() == b"kept", "the second build takes what the first one kept"
    (site / "one" / "code.py").write_text("VALUE = 3\n")
    compiled(site, kept)
    assert target.read_bytes() not in (b"kept", first), "another source is compiled anew"
    assert target.stat().st_mode & 0o777 == 0o644
