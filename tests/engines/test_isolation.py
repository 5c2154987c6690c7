"""What is chosen can be opened in the container and nothing else: real daemons, in namespaces of their own, on stand-in devices.

The stand-ins are character devices of the kernel that open without harm and that no container is given by default.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.conftest import HOSTS, ROOT

from fl import container, plan
from fl.detect import detect, open_host
from fl.engines import daemon, docker_errors
from fl.errors import EngineError, FlError, HardwareError
from fl.grants import EngineFacts, Grants
from fl.lanes import LANES

pytestmark = pytest.mark.engine
BOX = "flbox:1"
NOBODY = 54321
RENDER_GID = 10947
SCRIPT = Path(__file__).with_name("own_daemon.sh")
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
KFD = (10, 229)
RENDER = {128: (7, 0), 129: (7, 1), 130: (7, 64), 131: (7, 128)}
CARDS = {0: (10, 234), 1: (10, 235), 2: (10, 237), 3: (10, 232)}


@dataclass
class Machine:
    """A daemon in namespaces of its own, and how to be there."""

    folder: Path
    pid: int
    shared: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        return {**self.shared, "DOCKER_HOST": f"unix://{self.folder}/docker.sock"}

    def run(
        self, *command: str, user: int | None = None, groups: tuple[int, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        who = () if user is None else ("setpriv", f"--reuid={user}", f"--regid={user}", "--groups", ",".join(map(str, (user, *groups))))
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--net", "--pid", *who, *command], env={**self.environment, **environment},
            capture_output=True, text=True, timeout=600, check=False, cwd="/",
        )  # fmt: skip

    def docker(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("docker", *words)


def outside(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=300)


@contextlib.contextmanager
def machine(
    config: dict[str, object] | None = None, files: dict[str, str] | None = None, nodes: str = "", path: str = ""
) -> Iterator[Machine]:
    """Starts one. All of it is gone afterwards: its processes with their namespace, its mounts with theirs, its folder."""
    pid = daemon.process(daemon.endpoint(os.environ))
    if os.getuid() or pid is None:
        pytest.skip("needs root, and a docker daemon of this machine whose program can be started once more")
    folder = Path(tempfile.mkdtemp(prefix="fl-own-"))
    folder.chmod(0o755)
    cgroup = f"fl-own-{folder.name[-8:]}"
    settings = {
        "data-root": f"{folder}/data", "exec-root": f"{folder}/exec", "pidfile": f"{folder}/pid", "hosts": [f"unix://{folder}/docker.sock"],
        "bridge": "none", "iptables": False, "ip6tables": False, "features": {"cdi": True}, "cdi-spec-dirs": [f"{folder}/cdi"],
        "cgroup-parent": f"/{cgroup}", **(config or {}),
    }  # fmt: skip
    for name, text in {
        "daemon.json": json.dumps(settings),
        "nodes": nodes,
        "dockerd": str(Path(f"/proc/{pid}/exe").readlink()),
        **(files or {}),
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if file.parent.name == "bin":
            file.chmod(0o755)
    search = f"{folder}/bin:{daemon.search_path(pid)}"
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [*UNSHARE, "sh", str(SCRIPT), str(folder)],
        env={**os.environ, "PATH": search}, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: (folder / "docker.sock").exists() and answers(folder), process, folder)
        (folder / "docker.sock").chmod(0o666)
        yield Machine(folder, first(process), {**os.environ, "PATH": f"{os.environ['PATH']}:{search}"})
    finally:
        end(process)
        log.close()
        for group in Path("/sys/fs/cgroup").glob(f"**/{cgroup}"):
            for left in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
                left.rmdir()
            group.rmdir()
        shutil.rmtree(folder, ignore_errors=True)
        assert not folder.exists()


def first(process: subprocess.Popen[bytes]) -> int:
    """The first process of the namespace: the daemon."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def end(process: subprocess.Popen[bytes]) -> None:
    """The end of the first process is the end of all in its namespace."""
    try:
        with contextlib.suppress(OSError, IndexError):
            os.kill(first(process), signal.SIGTERM)
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(15)


def answers(folder: Path) -> bool:
    try:
        return bool(daemon.info(f"unix://{folder}/docker.sock"))
    except EngineError:
        return False


def wait_for(true: object, process: subprocess.Popen[bytes], folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if process.poll() is not None or time.monotonic() > end:
            pytest.skip(f"no second daemon on this machine: {(folder / 'log').read_text()[-400:]}")
        time.sleep(0.1)


def amd() -> tuple[dict[str, str], str]:
    """(files of sysfs, nodes) of four MI300X."""
    topology = "sys/class/kfd/kfd/topology/nodes"
    files = {f"{topology}/0/properties": "cpu_cores_count 2\nsimd_count 0\n"}
    lines = [f"/dev/kfd 660 {RENDER_GID} {KFD[0]} {KFD[1]}"]
    for n, (minor, numbers) in enumerate(RENDER.items()):
        bus = f"sys/bus/pci/devices/0000:{16 + n:02x}:00.0"
        files |= {f"{bus}/vendor": "0x1002\n", f"{bus}/device": "0x74a1\n", f"{bus}/class": "0x120000\n"}
        files[f"{topology}/{n + 1}/gpu_id"] = f"{4000 + n}\n"
        files[f"{topology}/{n + 1}/mem_banks/0/properties"] = "heap_type 1\nsize_in_bytes 206141652992\n"
        files[f"{topology}/{n + 1}/properties"] = (
            "cpu_cores_count 0\nsimd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\nvendor_id 4098\ndevice_id 29857\n"
            f"location_id {(16 + n) << 8}\ndomain 0\ndrm_render_minor {minor}\nunique_id {7000 + n}\nnum_xcc 8\n"
        )
        lines.append(f"/dev/dri/renderD{minor} 660 {RENDER_GID} {numbers[0]} {numbers[1]}")
    for n, numbers in CARDS.items():
        lines.append(f"/dev/davinci{n} 660 {RENDER_GID} {numbers[0]} {numbers[1]}")
    lines += [f"/dev/{name} 660 {RENDER_GID} 1 7" for name in ("davinci_manager", "devmm_svm", "hisi_hdc")]
    return files, "\n".join(lines) + "\n"


HOOK = """#!/bin/sh
# stands where NVIDIA's hook is: notes what it was asked for, and fails as the real one where the image asks for a newer driver
bundle=$(sed 's/.*"bundle":"\\([^"]*\\)".*/\\1/')
grep -o '"NVIDIA_[A-Z_]*=[^"]*' "$bundle/config.json" | tr -d '"' >> FOLDER/asked
if grep -q 'NVIDIA_REQUIRE_CUDA=cuda[^"]*99"' "$bundle/config.json"; then
    echo "Auto-detected mode as 'legacy'" >&2
    echo "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=99, please update your driver to a newer version" >&2
    exit 1
fi
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine with AMD and Ascend stand-ins for all tests of this file."""
    if shutil.which("docker") is None or outside("image", "inspect", BOX).returncode:
        pytest.skip(f"no docker daemon with the image {BOX}, a busybox")
    files, nodes = amd()
    with machine(files={**files, "bin/nvidia-container-runtime-hook": HOOK, "cdi/own.json": "{}"}, nodes=nodes) as made:
        hook = made.folder / "bin" / "nvidia-container-runtime-hook"
        hook.write_text(hook.read_text().replace("FOLDER", str(made.folder)))
        saved = made.folder / "box.tar"
        assert outside("save", "--output", str(saved), BOX).returncode == 0
        if (probe := made.run(sys.executable, "-c", "import json, yaml", user=NOBODY)).returncode:
            pytest.skip(f"other users cannot start this interpreter: {probe.stderr[-200:]}")
        loaded = made.docker("load", "--input", str(saved))
        assert loaded.returncode == 0, loaded.stderr
        yield made


def planned(
    own: Machine, *flags: str, user: int = NOBODY, groups: tuple[int, ...] = (RENDER_GID,), engine: str = "docker", **more: str
) -> dict[str, object]:
    """The plan that fl makes there for a user."""
    home = own.folder / f"home-{user}"
    home.mkdir(exist_ok=True)
    os.chown(home, user, user)
    done = own.run(
        sys.executable, "-m", "fl", "run", "--dry-run", "--json", "--engine", engine, "--image", BOX, *flags,
        "tiny-sft", f"output_dir={home}/out",
        user=user, groups=groups, HOME=str(home), PYTHONPATH=f"{ROOT}/launcher:{ROOT}/trainers", XDG_STATE_HOME=f"{home}/state",
        XDG_CACHE_HOME=f"{home}/cache", XDG_CONFIG_HOME=f"{home}/config", PYTHONDONTWRITEBYTECODE="1",
        **more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def device_part(argv: list[str], *, user: str | None = None) -> list[str]:
    """`docker run` of a plan without its mounts, environment and program."""
    dropped = {"--mount", "--env", "--workdir", "--entrypoint", "--name", "--label", "--log-driver", "--log-opt"}
    kept = ["run", "--rm"]
    words = iter(argv[2 : argv.index("--workdir")])
    for word in words:
        if word in dropped:
            next(words)
        elif word == "--user" and user is not None:
            next(words)
            kept += ["--user", user]
        elif word != "--detach":
            kept.append(word)
    return kept


OPEN = """for n in {nodes}; do
    if [ ! -e $n ]; then echo "$n absent"; elif (exec 3<>$n) 2>/dev/null; then echo "$n open"; else echo "$n closed"; fi
done"""


def opened(own: Machine, flags: list[str], nodes: list[str]) -> dict[str, str]:
    done = own.docker(*flags, BOX, "sh", "-c", f"id -u; {OPEN.format(nodes=' '.join(nodes))}")
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    return {"uid": first, **dict(line.split() for line in rest)}


def test_amd_the_chosen_ones_open_and_no_other_is_there(own: Machine) -> None:
    made = planned(own, "--hw", "rocm", "--devices", "1,3")
    assert made["devices"] == ["/dev/kfd", "/dev/dri/renderD129", "/dev/dri/renderD131"]
    assert made["groups"] == [RENDER_GID] and made["options"]["isolated"] is True  # type: ignore[index]
    flags = device_part(made["argv"])  # type: ignore[arg-type]
    seen = opened(own, flags, ["/dev/kfd", *(f"/dev/dri/renderD{n}" for n in RENDER)])
    assert seen == {
        "uid": str(NOBODY), "/dev/kfd": "open", "/dev/dri/renderD128": "absent", "/dev/dri/renderD129": "open",
        "/dev/dri/renderD130": "absent", "/dev/dri/renderD131": "open",
    }  # fmt: skip


def test_without_the_group_the_same_nodes_stay_closed(own: Machine) -> None:
    """The group is what opens them: the test above would pass on nodes that everyone may open."""
    flags = device_part(planned(own, "--hw", "rocm", "--devices", "1")["argv"])  # type: ignore[arg-type]
    at = flags.index("--group-add")
    assert flags[at + 1] == str(RENDER_GID)
    assert opened(own, flags[:at] + flags[at + 2 :], ["/dev/dri/renderD129"])["/dev/dri/renderD129"] == "closed"


def test_an_unchosen_device_cannot_be_had_by_making_its_node(own: Machine) -> None:
    flags = device_part(planned(own, "--hw", "rocm", "--devices", "1,3")["argv"], user="0:0")  # type: ignore[arg-type]
    make = "; ".join(
        f"mknod /tmp/{minor} c {a} {b} && {{ (exec 3<>/tmp/{minor}) && echo {minor} open || echo {minor} closed; }}"
        for minor, (a, b) in RENDER.items()
    )
    done = own.docker(*flags, BOX, "sh", "-c", make)
    assert done.stdout.splitlines() == ["128 closed", "129 open", "130 closed", "131 open"], done.stderr
    assert done.stderr.count("Operation not permitted") == 2


def test_two_runs_share_no_device(own: Machine) -> None:
    for devices, minor in (("0", 128), ("2", 130)):
        seen = opened(
            own, device_part(planned(own, "--hw", "rocm", "--devices", devices)["argv"]), [f"/dev/dri/renderD{n}" for n in RENDER]
        )  # type: ignore[arg-type]
        assert [n for n, state in seen.items() if state == "open"] == [f"/dev/dri/renderD{minor}"]


def test_a_caller_outside_the_group_is_told_before_the_start(own: Machine) -> None:
    home = own.folder / "home-2"
    home.mkdir()
    os.chown(home, NOBODY + 1, NOBODY + 1)
    done = own.run(
        sys.executable, "-m", "fl", "run", "--dry-run", "--engine", "docker", "--image", BOX, "--hw", "rocm",
        "tiny-sft", f"output_dir={home}/out",
        user=NOBODY + 1, HOME=str(home), PYTHONPATH=f"{ROOT}/launcher:{ROOT}/trainers", PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    assert done.returncode == 3 and f"gid {RENDER_GID}" in done.stderr, done.stderr


def request(own: Machine, lane: str, record: str, indices: list[int], facts: EngineFacts) -> tuple[Grants, list[str]]:
    """Grants for a recorded machine on this real engine, and the device part of the argv."""
    hardware = detect(open_host(HOSTS / record))
    module = next(module for name, module in LANES.items() if name == lane)
    chosen = tuple(a for a in hardware.accelerators if a.lane == lane and a.index in indices)
    grants = module.grants(chosen, hardware, facts)
    asked = plan.Request(
        run="r", lane=next(name for name in LANES if name == lane), stack="s", image=plan.Image(reference=BOX),
        hardware=hardware, chosen=chosen, grants=grants, visibility={}, engine=facts, caller=plan.Caller(uid=NOBODY, gid=NOBODY, name="x"),
        python="python", folder="/f", cache="/c", code=None, working_directory="/f",
    )  # fmt: skip
    return grants, device_part(list(container.describe(asked, {}).arguments))


ASK = "import json, sys; from fl.engines.docker import DockerEngine as D; f = D().facts(); "
ASK += (
    "print(json.dumps([f.version, f.nvidia_gpus, f.same_files, f.cgroup, {k: sorted(v) for k, v in f.cdi.items()}, dict(f.hard_limits)]))"
)


def facts(own: Machine) -> EngineFacts:
    """What fl finds out about the daemon, asked where the daemon is."""
    done = own.run(sys.executable, "-c", ASK, PYTHONPATH=f"{ROOT}/launcher:{ROOT}/trainers")
    assert done.returncode == 0, done.stderr
    version, hook, same, cgroup, cdi, limits = json.loads(done.stdout)
    assert same and cgroup == (2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1)
    return EngineFacts(
        name="docker", version=version, nvidia_gpus=hook, cgroup=cgroup, cdi={k: frozenset(v) for k, v in cdi.items()}, hard_limits=limits
    )


def test_ascend_the_chosen_cards_and_the_managers(own: Machine) -> None:
    grants, flags = request(own, "ascend", "ascend-a2x8-one-busy", [1, 3], facts(own))
    flags = [*flags[:2], "--group-add", str(RENDER_GID), *flags[2:]]  # the stand-ins' group, the record has another
    managers = ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"]
    seen = opened(own, flags, [f"/dev/davinci{n}" for n in CARDS] + managers)
    assert grants.devices == ("/dev/davinci1", "/dev/davinci3", *managers)
    assert [n for n, state in seen.items() if state == "open"] == list(grants.devices)
    assert seen["/dev/davinci0"] == seen["/dev/davinci2"] == "absent"


def cdi_spec(own: Machine, missing: str | None = None) -> None:
    """Writes the spec, and waits until the daemon, which watches the folder, has read it. `missing`: a library that is not there."""
    devices = [
        {"name": str(n), "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{n}", "hostPath": f"/dev/dri/renderD{minor}"}]}}
        for n, minor in enumerate(RENDER)
    ]
    library = missing or f"{own.folder}/libcuda.so.1"
    (own.folder / "libcuda.so.1").write_text("the driver's library")
    mounts = [{"hostPath": library, "containerPath": "/lib/libcuda.so.1", "options": ["ro", "bind"]}]
    edits = {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "mounts": mounts, "deviceNodes": [{"path": "/dev/nvidiactl", "hostPath": "/dev/kfd"}]}
    text = json.dumps({"cdiVersion": "0.6.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": edits})
    (own.folder / "cdi" / "own.json").write_text(text)
    end = time.monotonic() + 60
    while True:
        done = own.docker("run", "--rm", "--network", "none", "--device", "nvidia.com/gpu=1", BOX, "true")
        if missing in done.stderr if missing else done.returncode == 0:
            return
        assert time.monotonic() < end, done.stderr
        time.sleep(0.2)


def test_nvidia_by_a_fresh_cdi_spec(own: Machine) -> None:
    cdi_spec(own)
    grants, flags = request(own, "cuda", "h100x8-driver580", [1, 3], facts(own))
    assert grants.cdi == ("nvidia.com/gpu=1", "nvidia.com/gpu=3") and grants.gpus is None and grants.isolated
    flags = [*flags[:2], "--group-add", str(RENDER_GID), *flags[2:]]
    seen = opened(own, flags, ["/dev/nvidiactl", *(f"/dev/nvidia{n}" for n in range(4)), "/lib/libcuda.so.1"])
    assert {n for n, state in seen.items() if state == "open"} == {"/dev/nvidiactl", "/dev/nvidia1", "/dev/nvidia3"}
    assert seen["/dev/nvidia0"] == seen["/dev/nvidia2"] == "absent" and seen["/lib/libcuda.so.1"] == "closed", "read-only"


def test_a_stale_cdi_spec_does_not_count_and_the_hook_is_used(own: Machine) -> None:
    cdi_spec(own, missing="/usr/lib/x86_64-linux-gnu/libcuda.so.1.2.3")
    (own.folder / "asked").unlink(missing_ok=True)
    grants, flags = request(own, "cuda", "h100x8-driver580", [1, 3], facts(own))
    assert grants.cdi == () and grants.gpus == '"device=1,3"'
    done = own.docker(*flags, BOX, "true")
    assert done.returncode == 0, done.stderr
    assert "NVIDIA_VISIBLE_DEVICES=1,3" in (own.folder / "asked").read_text()


@pytest.fixture(scope="module")
def podman(own: Machine) -> dict[str, str]:
    """Podman with a store of its own in that machine: the variables that make it so."""
    from fl.engines.podman import environment

    if shutil.which("podman") is None:
        pytest.skip("no podman")
    store = own.folder / "storage.conf"
    store.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{own.folder}/store"\nrunroot = "{own.folder}/run"\n')
    own.shared.pop("DOCKER_CONFIG", None)
    variables = {"CONTAINERS_STORAGE_CONF": str(store), **{k: v for k, v in environment().items() if k == "CONTAINERS_CONF"}}
    loaded = own.run("podman", "load", "--input", f"{own.folder}/box.tar", **variables)
    probe = own.run("podman", "run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", BOX, "true", **variables)
    if loaded.returncode or probe.returncode:
        pytest.skip(f"this podman starts nothing: {(loaded.stderr + probe.stderr).strip()[-300:]}")
    return variables


def test_podman_passes_the_chosen_ones_only(own: Machine, podman: dict[str, str]) -> None:
    """As root, whom no group keeps out: the device cgroup does."""
    made = planned(own, "--hw", "rocm", "--devices", "1,3", user=0, groups=(), engine="podman", **podman)
    flags = device_part(made["argv"])  # type: ignore[arg-type]
    assert flags[flags.index("--group-add") + 1] == str(RENDER_GID) and "--gpus" not in flags
    nodes = " ".join(["/dev/kfd", *(f"/dev/dri/renderD{n}" for n in RENDER)])
    make = "; ".join(f"mknod /tmp/{minor} c {a} {b}; (exec 3<>/tmp/{minor}) && echo {minor}" for minor, (a, b) in RENDER.items())
    done = own.run("podman", *flags, BOX, "sh", "-c", f"{OPEN.format(nodes=nodes)}; id -G; {make}", **podman)
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "/dev/kfd open", "/dev/dri/renderD128 absent", "/dev/dri/renderD129 open", "/dev/dri/renderD130 absent", "/dev/dri/renderD131 open",
    ], done.stderr  # fmt: skip
    assert str(RENDER_GID) in lines[5].split()
    assert lines[6:] == ["129", "131"] and done.stderr.count("Operation not permitted") == 2


def test_what_podman_says_of_a_cdi_device_that_it_does_not_know(own: Machine, podman: dict[str, str]) -> None:
    """And does not start without it, as it does for `--gpus` by its Docker API."""
    done = own.run("podman", "run", "--rm", "--network", "none", "--device", "nvidia.com/gpu=77", BOX, "true", **podman)
    assert done.returncode != 0
    error = docker_errors.explain_start(done.stderr, replace(bare(), engine="podman"))
    assert type(error) is EngineError and "nvidia.com/gpu=77" in error.message and "nvidia-ctk" in error.remedy


def bare() -> plan.Plan:
    """A plan for errors, which name its image and engine."""
    return plan.Plan(
        run="r", lane="cuda", stack="s", engine="docker", flavor="train", image=plan.Image(reference=BOX), accelerators=(), devices=(),
        mounts=(), groups=(), environment={}, options={}, nodes=1, per_node=1, argv=(), working_directory="/",
    )  # fmt: skip


def failed(own: Machine, *words: str) -> FlError:
    done = own.docker("run", "--rm", *words, BOX, "true")
    assert done.returncode != 0
    return docker_errors.explain_start(done.stderr, bare())


def test_what_the_daemon_says_of_a_driver_that_is_too_old(own: Machine) -> None:
    error = failed(own, "--gpus", "all", "--env", "NVIDIA_REQUIRE_CUDA=cuda>=99")
    assert type(error) is HardwareError and "cuda>=99" in error.message and "too old" in error.message


def test_what_the_daemon_says_of_a_cdi_device_that_it_does_not_know(own: Machine) -> None:
    error = failed(own, "--device", "nvidia.com/gpu=77")
    assert type(error) is EngineError and "nvidia.com/gpu=77" in error.message and "nvidia-ctk" in error.remedy


def test_what_the_daemon_says_of_a_spec_whose_library_is_gone(own: Machine) -> None:
    cdi_spec(own, missing="/usr/lib/x86_64-linux-gnu/libcuda.so.1.2.3")
    error = failed(own, "--device", "nvidia.com/gpu=1")
    assert "libcuda.so.1.2.3" in error.message and "nvidia-ctk cdi generate" in error.remedy


def test_what_the_daemon_says_of_a_node_that_is_gone(own: Machine) -> None:
    error = failed(own, "--device", "/dev/davinci7")
    assert type(error) is HardwareError and "/dev/davinci7" in error.message


def test_what_the_shared_daemon_says_without_a_toolkit() -> None:
    if shutil.which("docker") is None or outside("image", "inspect", BOX).returncode:
        pytest.skip(f"no docker daemon with the image {BOX}")
    done = outside("run", "--rm", "--gpus", "all", BOX, "true")
    if done.returncode == 0:
        pytest.skip("this daemon passes GPUs")
    error = docker_errors.explain_start(done.stderr, bare())
    assert type(error) is EngineError and "nvidia-container-toolkit" in error.message + error.remedy


def test_a_daemon_that_remaps_users_is_refused() -> None:
    with machine({"userns-remap": "daemon"}, {"subids": "daemon:100000:65536\n"}) as own:
        done = fl_with(own)
        assert done.returncode == 6 and "userns-remap" in done.stderr, done.stderr


def test_a_daemon_that_sees_other_files_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with machine(files={"hidden": str(home)}) as own:
        done = fl_with(own, HOME=str(home))
        assert done.returncode == 6 and "another file system" in done.stderr, done.stderr


def fl_with(own: Machine, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{own.folder}/docker.sock",
        "PYTHONPATH": f"{ROOT}/launcher:{ROOT}/trainers",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-m", "fl", "run", "--dry-run", "--engine", "docker", "--image", BOX, "--hw", "cpu",
         "tiny-sft", f"output_dir={own.folder}/o"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
