"""The CPU image, really built on the docker engine of this machine, and asked from inside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_tools import tiny

from fl import ledger
from fl import matrix as rows
from fl.errors import ImageError
from fl.images import build, context, groups, lock, tags, verify

pytestmark = pytest.mark.engine
STACK = "cpu-torch213"
MATRIX = rows.load()
BASE = os.environ.get("FL_TEST_BASE", "flpy:bookworm")
REFERENCE = tags.reference(STACK)
VENDOR = "fl-test:vendor"
OF_TORCH = "torch filelock fsspec jinja2 markupsafe networkx sympy mpmath setuptools typing-extensions numpy"
OF_FL = (
    "annotated-types certifi charset-normalizer click docker idna markdown-it-py mdurl packaging pydantic pydantic-core "
    "pygments pyyaml requests rich typing-inspection urllib3 uv"
)
SITE = "/opt/venv/lib/python3.11/site-packages"


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def fl(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fl", *words], capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )


@pytest.fixture(scope="module")
def base() -> str:
    if shutil.which("docker") is None or docker("version").returncode != 0:
        pytest.skip("no docker daemon answers")
    if docker("image", "inspect", BASE).returncode != 0:
        pytest.skip(f"the base image {BASE} is not on this machine (FL_TEST_BASE names another)")
    return BASE


@pytest.fixture(scope="module")
def built(base: str) -> dict[str, Any]:
    done = fl("images", "build", STACK, "--base", base, "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_build_has_both_names_and_shows_its_steps(built: dict[str, Any]) -> None:
    assert built["reference"] == REFERENCE
    for name in (REFERENCE, tags.moving(STACK)):
        assert docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip() == built["id"]
    assert built["size"] < 1.7e9


def test_the_build_tells_size_and_time_of_each_layer(built: dict[str, Any]) -> None:
    assert built["layers"][0]["step"] == "the base image"
    assert sum(layer["size"] for layer in built["layers"]) == built["size"]
    assert any("pip sync" in layer["step"] and layer["size"] > 1e8 for layer in built["layers"])
    assert all(layer["cached"] or layer["seconds"] is not None for layer in built["layers"])


def test_the_image_says_where_it_comes_from(built: dict[str, Any]) -> None:
    labels = json.loads(docker("image", "inspect", "-f", "{{json .Config.Labels}}", REFERENCE).stdout)
    assert labels["org.opencontainers.image.revision"] == build.revision()
    assert labels["org.opencontainers.image.base.name"] == BASE
    created = build.provenance(MATRIX.stack(STACK), BASE, os.environ).get("org.opencontainers.image.created")
    assert labels.get("org.opencontainers.image.created") == created


def test_nothing_changed_is_the_image_that_stands(base: str, built: dict[str, Any]) -> None:
    """Else a pin by its id would ask for it again: the builder keeps two records of a step, whose times differ."""
    tiny(tags.moving(STACK))  # the moving name went elsewhere
    begin = time.monotonic()
    done = fl("images", "build", STACK, "--base", base, "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    assert time.monotonic() - begin < 30
    assert "nothing changed" in done.stderr
    told = json.loads(done.stdout)
    assert told["id"] == built["id"] == docker("image", "inspect", "-f", "{{.Id}}", tags.moving(STACK)).stdout.strip()
    assert [one["step"] for one in told["layers"]] == [one["step"] for one in built["layers"]]
    assert all(one["cached"] for one in told["layers"])


def test_it_works_for_a_uid_that_nobody_knows(built: dict[str, Any]) -> None:
    code = "import torch, transformers, peft, trl, getpass; print(torch.__version__, transformers.__version__, getpass.getuser())"
    done = docker("run", "--rm", "--network", "none", "--user", "12345:12345", REFERENCE, "python", "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["2.13.0+cpu", "5.24.0", "fl"]


def test_it_works_where_the_root_is_read_only(built: dict[str, Any]) -> None:
    done = docker("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", REFERENCE, "python", "-c", "import torch; print(1)")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr[-2000:]


def test_fl_itself_runs_inside(built: dict[str, Any]) -> None:
    done = docker("run", "--rm", "--network", "none", REFERENCE, "fl", "images", "list", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert STACK in {image["stack"] for image in json.loads(done.stdout)["images"]}


def test_verify_finds_nothing(built: dict[str, Any], tmp_path: Path) -> None:
    done = fl("images", "verify", REFERENCE, "--json", "--evidence", str(tmp_path / "ledger"))
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert done.returncode == 0
    passed = {check["name"] for check in report["checks"] if check["passed"]}
    assert {"versions", "requirements", "imports", "training", "uid", "home", "entrypoint", "labels", "files", "secrets"} <= passed
    assert [check["name"] for check in report["checks"] if check["passed"] is None] == ["device"]
    layers = [one["bytes"] for one in report["sizes"] if one["kind"] == "layer"]
    assert abs(sum(layers) - built["size"]) < 1e6
    assert "torch" in {one["what"] for one in report["sizes"] if one["kind"] == "package"}
    assert (report["reference"], report["stack"], report["id"]) == (REFERENCE, STACK, built["id"])
    (record,) = ledger.read(tmp_path / "ledger")
    assert (record["outcome"], record["stack"], len(record["metrics"]["loss"])) == ("passed", STACK, 2)
    assert record["environment"]["matches_lock"] is True


def test_verify_finds_what_was_changed(built: dict[str, Any], tmp_path: Path) -> None:
    """A child that upgrades nothing but lies about its stack, runs as root, keeps caches and secrets and has lost a package."""
    (tmp_path / "Dockerfile").write_text(
        f'FROM {REFERENCE}\nUSER 0:0\nLABEL fl.lock.sha256=other\nENV NVIDIA_VISIBLE_DEVICES=all\nENTRYPOINT ["/usr/bin/env"]\n'
        f"RUN rm -rf {SITE}/xxhash* && touch /srv/cache /opt/x-1-py3-none-any.whl /root/.netrc && mkdir -p {SITE}/evil-1.dist-info && "
        f"printf 'Metadata-Version: 2.1\\nName: evil\\nVersion: 1\\n' > {SITE}/evil-1.dist-info/METADATA\n"
        "RUN echo https://me:hunter22@index.example/simple > /dev/null\n"
    )
    assert docker("build", "-q", "-t", "fl-test:broken", str(tmp_path)).returncode == 0
    try:
        done = fl("images", "verify", "fl-test:broken", "--json", SITE_TOKEN="a-secret-of-this-test")
    finally:
        docker("image", "rm", "-f", "fl-test:broken")
    assert done.returncode == ImageError.exit_code
    report = json.loads(done.stdout)
    found = "\n".join(report["problems"])
    for words in (
        "label fl.lock.sha256 is other", "user is 0:0", "xxhash: the lock says", "left behind: /srv/cache", "NVIDIA_VISIBLE_DEVICES is set",
        "left behind: /opt/x-1-py3-none-any.whl", "left behind: /root/.netrc", "evil 1 is installed, and the lock does not have it",
        "the image has an entrypoint", "a password in a URL",
    ):  # fmt: skip
        assert words in found
    assert "hunter22" not in done.stdout + done.stderr
    assert {"labels", "user", "versions", "files", "environment", "entrypoint", "secrets"} <= {
        check["name"] for check in report["checks"] if check["passed"] is False
    }


def test_the_bill_of_materials_has_what_is_installed(built: dict[str, Any]) -> None:
    pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib (fl[sbom]) is not installed")
    done = fl("images", "sbom", REFERENCE)
    assert done.returncode == 0, done.stderr
    components = {one["bom-ref"]: one for one in json.loads(done.stdout)["components"]}
    locked = lock.path(STACK, "train", "linux/amd64")
    assert locked is not None
    assert {f"pypi:{name}" for name in [*lock.parse(locked.read_text()), "fl"]} == {ref for ref in components if ref.startswith("pypi:")}
    licensed = [ref for ref, one in components.items() if ref.startswith("pypi:") and one.get("licenses")]
    assert len(licensed) > 60
    assert components["deb:python3"]["purl"].startswith("pkg:deb/debian/python3@3.11")


def test_no_index_and_no_secret_stay_in_the_image(built: dict[str, Any]) -> None:
    told = docker("image", "inspect", REFERENCE).stdout + docker("history", "--no-trunc", REFERENCE).stdout
    assert "UV_DEFAULT_INDEX" not in told
    assert "UV_EXTRA_INDEX_URL" not in told
    assert "BEGIN CERTIFICATE" not in told


def test_a_base_that_is_not_there_is_an_image_error(base: str) -> None:
    done = fl("images", "build", STACK, "--base", "fl-test/absent:1")
    assert done.returncode == ImageError.exit_code
    assert "fl-test/absent:1" in done.stderr
    assert "--base REF" in done.stderr


def names() -> str:
    return docker("image", "inspect", "-f", "{{.Id}}", REFERENCE, tags.moving(STACK)).stdout


def test_a_base_without_the_row_s_python_is_named_and_moves_no_name(built: dict[str, Any]) -> None:
    if docker("image", "inspect", "flpy:trixie").returncode != 0:
        pytest.skip("the image flpy:trixie is not on this machine")
    before = names()
    done = fl("images", "build", STACK, "--base", "flpy:trixie", "--json")
    assert done.returncode == ImageError.exit_code
    error = json.loads(done.stdout)["error"]
    assert error["message"].startswith("the base flpy:trixie has no Python 3.11, which the row names"), done.stderr
    assert "--base REF" in error["remedy"]
    assert names() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_stops_and_moves_no_name(built: dict[str, Any], number: signal.Signals, code: int, tmp_path: Path) -> None:
    """A base of its own, so that every step runs."""
    before, mine = names(), "fl-test:interrupted"
    text = f"FROM {BASE}\nLABEL own={tmp_path.name}{number}\nRUN date > /own\n"
    subprocess.run(["docker", "build", "--no-cache", "-q", "-t", mine, "-"], input=text, text=True, capture_output=True, check=True)
    command = [sys.executable, "-m", "fl", "images", "build", STACK, "--base", mine]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "[packages 1/" in line:
                break
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(timeout=30) == code
    finally:
        process.kill()
        docker("image", "rm", "-f", mine)
    assert "no name was given" in said
    assert names() == before
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"base.name={mine}" not in running and "buildx build" not in "".join(one for one in running.splitlines() if mine in one)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--platform", "linux/riscv64"), 7, "'linux/riscv64' is no platform of cpu-torch213: it has linux/amd64"),
        (("--cache-to", "type=local,dest={}"), 7, "keeps no cache outside itself (--cache-to)"),
        (("--attest",), 7, "makes no attestations (--attest)"),
        (("--push",), 2, "--push needs a registry"),
    ],
)
def test_what_cannot_be_built_is_said_with_what_can(
    words: tuple[str, ...], code: int, said: str, built: dict[str, Any], tmp_path: Path
) -> None:
    if words[0] != "--platform" and code == 7 and "io.containerd.snapshotter" in docker("info", "-f", "{{.DriverStatus}}").stdout:
        pytest.skip("this daemon keeps images in containerd's store")
    before = names()
    done = fl("images", "build", STACK, "--base", BASE, *(word.format(tmp_path / "cache") for word in words))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert names() == before


def test_a_platform_that_the_builder_cannot_run_is_said_with_the_cure(base: str) -> None:
    """Without qemu, before anything is fetched."""
    known = docker("buildx", "inspect").stdout
    if "linux/arm64" in known or not known:
        pytest.skip("this builder runs arm64 programs")
    done = fl("images", "build", "cuda130-torch214", "--platform", "linux/arm64", "--base", base)
    assert done.returncode == ImageError.exit_code
    assert "not linux/arm64" in done.stderr
    assert "build on a machine that is linux/arm64" in done.stderr
    assert "qemu-user-static" in done.stderr


def test_the_image_that_lost_its_names_is_removed(built: dict[str, Any]) -> None:
    """Else each build of CUDA's image would leave seven gigabytes. One that has another name stays."""
    tiny(tags.moving(STACK), own="first")
    first = docker("image", "inspect", "-f", "{{.Id}}", tags.moving(STACK)).stdout.strip()
    assert fl("images", "build", STACK, "--base", BASE).returncode == 0
    assert docker("image", "inspect", first).returncode != 0
    tiny(tags.moving(STACK), own="second")
    docker("tag", tags.moving(STACK), "fl-test:kept")
    try:
        assert fl("images", "build", STACK, "--base", BASE).returncode == 0
        assert docker("image", "inspect", "fl-test:kept").returncode == 0
    finally:
        docker("image", "rm", "-f", "fl-test:kept")
    assert len(set(names().split())) == 1


def test_a_cache_inside_the_image_works_with_every_builder(built: dict[str, Any]) -> None:
    done = fl("images", "build", STACK, "--base", BASE, "--cache-from", REFERENCE, "--cache-to", "type=inline", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["reference"] == REFERENCE
    assert "nothing changed" not in done.stderr
    assert fl("images", "build", STACK, "--base", BASE).returncode == 0


def test_another_file_than_the_locked_one_stops_the_build(base: str, tmp_path: Path) -> None:
    stack = MATRIX.stack(STACK)
    folder, folders = context.prepare(MATRIX, stack, "train", tmp_path, context.Site(base=base))
    context.complete(folder, folders)
    full = folder / "full" / "lock.txt"
    text = full.read_text()
    old = lock.entries(text)["hjson"]
    full.write_text(text.replace(old, "hjson==3.1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"))
    with pytest.raises(ImageError) as caught:
        build._run(build.argv(stack, folder, folders, {"FL_VERSION": "0"}, {}, build.Options()), base)
    assert "Hash mismatch for `hjson==3.1.0`" in caught.value.message or "hjson" in caught.value.message
    assert "the package index serves another file" in caught.value.remedy
    assert "containerimage.digest" not in ((tmp_path / "built").read_text() if (tmp_path / "built").exists() else "")


def test_no_daemon_is_an_engine_error() -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker client")
    done = fl("images", "build", STACK, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert done.returncode == 6
    assert "the docker daemon does not answer" in done.stderr


def test_a_partial_lock_is_refused_before_anything_starts() -> None:
    done = fl("images", "build", "xpu-torch212", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert done.returncode == 8
    assert "is a partial lock" in done.stderr
    assert "fl images lock xpu-torch212" in done.stderr


# Stand-ins for vendors' bases. Proven: the order of steps, the hash checks, that the vendor's torch survives, that the environment is
# complete. Not proven: that a vendor's image has the paths, or that anything runs on a device.


@pytest.fixture
def vendor(built: object, tmp_path: Path) -> Iterator[str]:
    """A base whose interpreter has a torch of its own, an old tqdm, and not all of the layer."""
    steps = [
        f"rm -rf {SITE}/peft* {SITE}/hjson* {SITE}/fl {SITE}/fl-* {SITE}/fl_trainers /opt/fl",
        f"echo vendor > {SITE}/torch/vendor.txt",
        f"sed -i 's/^Version:.*/Version: 4.0/' {SITE}/tqdm-*.dist-info/METADATA",
        f"mv {SITE}/tqdm-*.dist-info {SITE}/tqdm-4.0.dist-info",
    ]
    (tmp_path / "Dockerfile").write_text(f"FROM {REFERENCE}\nUSER 0:0\nRUN {' && '.join(steps)}\n")
    done = docker("build", "-q", "-t", VENDOR, str(tmp_path))
    assert done.returncode == 0, done.stderr
    yield VENDOR
    docker("image", "rm", "-f", VENDOR)


def standin(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, only: str = "", **changes: object) -> rows.Stack:
    """A row like `name` that fits the stand-in: Python 3.11, torch 2.13.0+cpu, the CPU row's lock without torch where the base has it.

    `only`: the packages of the lock that the test needs, if not all.
    """
    row = MATRIX.stack(name)
    train = {**MATRIX.stack(STACK).train, "torch": "2.13.0+cpu"}
    hosts = row.hosts.model_copy(update={"platforms": ("linux/amd64",)})
    row = row.model_copy(update={"id": f"test-{row.lane}", "python": "3.11", "train": train, "hosts": hosts, **changes})
    file = lock.path(STACK, "train", "linux/amd64")
    assert file is not None
    entries = lock.entries(file.read_text())
    wanted = only.split() or [package for package in entries if package != "torch" or row.torch_from == "index"]
    (folder / "lock.txt").write_text("".join(entries[package] for package in wanted))
    monkeypatch.setattr(lock, "path", lambda *_, **__: folder / "lock.txt")
    return row


def remove(row: rows.Stack) -> None:
    docker("image", "rm", "-f", tags.reference(row.id), tags.moving(row.id))


def test_a_stand_in_vendor_s_torch_survives_untouched(vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if context.host_platform() != "linux/amd64":
        pytest.skip("the CPU row's lock is for linux/amd64")
    row = standin(monkeypatch, tmp_path, "rocm72-torch210")
    made = build.build(MATRIX, row, site=context.Site(base=vendor))
    try:
        code = (
            "import torch, peft, tqdm, fl, fl_trainers, pathlib, importlib.metadata as m\n"
            "print(torch.__version__, m.version('tqdm'), m.version('peft'))\n"
            "print(pathlib.Path(torch.__file__).with_name('vendor.txt').read_text())"
        )
        done = docker("run", "--rm", "--network", "none", "--user", "12345:12345", made.reference, "python", "-c", code)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["2.13.0+cpu", lock.parse((tmp_path / "lock.txt").read_text())["tqdm"], "0.21.2", "vendor"]
        assert docker("run", "--rm", made.reference, "cat", "/opt/fl/stack").stdout.strip() == "test-rocm"
    finally:
        remove(row)


def test_a_stand_in_cann_needs_no_entrypoint(base: str, built: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's scripts, with what CANN's export, add nothing to the image's ENV; one that exports more is found out."""
    if context.host_platform() != "linux/amd64":
        pytest.skip("the CPU row's lock is for linux/amd64")
    cann, atb = "/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1"
    (tmp_path / "toolkit.sh").write_text(
        f"export ASCEND_TOOLKIT_HOME={cann} ASCEND_HOME_PATH={cann} ASCEND_AICPU_PATH={cann}\n"
        f"export ASCEND_OPP_PATH={cann}/opp TOOLCHAIN_HOME={cann}/toolkit\n"
        f"export LD_LIBRARY_PATH={cann}/lib64:{cann}/lib64/plugin/opskernel:{cann}/lib64/plugin/nnengine:$LD_LIBRARY_PATH\n"
        f"export PYTHONPATH={cann}/python/site-packages:{cann}/opp/built-in/op_impl/ai_core/tbe:$PYTHONPATH\n"
        f"export PATH={cann}/bin:{cann}/compiler/ccec_compiler/bin:$PATH\n"
    )
    (tmp_path / "atb.sh").write_text(f"export ATB_HOME_PATH={atb}\nexport LD_LIBRARY_PATH={atb}/lib:$LD_LIBRARY_PATH\n")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base}\nCOPY toolkit.sh /usr/local/Ascend/ascend-toolkit/set_env.sh\nCOPY atb.sh /usr/local/Ascend/nnal/atb/set_env.sh\n"
        'ENTRYPOINT ["/bin/bash", "-c", "source /usr/local/Ascend/ascend-toolkit/set_env.sh; exec \\"$@\\"", "--"]\n'
    )
    assert docker("build", "-q", "-t", "fl-test:cann", str(tmp_path)).returncode == 0
    row = standin(monkeypatch, tmp_path, "cann91-torch210", only=f"{OF_TORCH} {OF_FL}", index=None)
    try:
        made = build.build(MATRIX, row, site=context.Site(base="fl-test:cann"))
        assert verify.environment_problems(made.reference) == []
        done = docker("run", "--rm", "--network", "none", made.reference, "python", "-c", "import torch, sys; print(sys.prefix)")
        assert done.stdout.strip() == "/opt/venv", done.stderr[-2000:]
        more = f"FROM {made.reference}\nUSER 0:0\nRUN echo 'export ATB_NEW=1' >> /usr/local/Ascend/nnal/atb/set_env.sh\n"
        subprocess.run(["docker", "build", "-q", "-t", "fl-test:more", "-"], input=more, check=True, capture_output=True, text=True)
        assert verify.environment_problems("fl-test:more") == ["set_env.sh also puts 1 into ATB_NEW"]
    finally:
        remove(row)
        docker("image", "rm", "-f", "fl-test:cann", "fl-test:more")


@pytest.mark.parametrize(("image", "python"), [("flpy:bookworm", "3.11"), ("flpy:trixie", "3.13")])
def test_two_builds_from_nothing_give_the_same_layers(image: str, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some small packages, on both bases: neither has /etc/hosts or /etc/resolv.conf, which the builder mounts. Every step runs twice,
    with downloads of its own."""
    if docker("image", "inspect", image).returncode != 0:
        pytest.skip(f"the image {image} is not on this machine")
    row = MATRIX.stack(STACK).model_copy(update={"id": "test-same", "python": python, "index": None})
    file = lock.path(STACK, "train", "linux/amd64")
    assert file is not None
    entries = lock.entries(file.read_text())
    monkeypatch.setattr(lock, "path", lambda *_, **__: tmp_path / "lock.txt")
    (tmp_path / "lock.txt").write_text("".join(entries[name] for name in f"{OF_FL} typing-extensions jinja2 markupsafe".split()))
    monkeypatch.setattr(groups, "split", lambda *_: {"torch": entries["click"] + entries["pyyaml"]})
    layers = []
    try:
        for _ in range(2):
            made = build.build(MATRIX, row, site=context.Site(base=image), options=build.Options(no_cache=True, check_disk=False))
            layers.append(json.loads(docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", made.reference).stdout))
    finally:
        remove(row)
    assert layers[0] == layers[1]
    assert len(set(layers[0])) > 5
