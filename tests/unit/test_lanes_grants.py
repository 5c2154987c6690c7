"""What each lane asks of each engine, and what binds the host engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hosts import kfd_partitions, make, recorded, seen

from fl.grants import EngineFacts, Grants
from fl.hardware import Accelerator, Hardware, Partition
from fl.lanes import LANES

DOCKER = EngineFacts(name="docker")
PODMAN = EngineFacts(name="podman", rootless=True, nvidia_gpus=False)
APPTAINER = EngineFacts(name="apptainer", nvidia_gpus=False)


def granted(hardware: Hardware, lane: str, indices: list[int], engine: EngineFacts) -> Grants:
    module = next(module for name, module in LANES.items() if name == lane)
    return module.grants([a for a in hardware.accelerators if a.lane == lane and a.index in indices], hardware, engine)


def test_docker_gets_chosen_gpus_through_the_hook() -> None:
    grants = granted(recorded("h100x8-driver580"), "cuda", [2, 5], DOCKER)
    assert grants.gpus == '"device=2,5"' and grants.devices == () and grants.isolated
    assert grants.environment == {"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


@pytest.mark.parametrize(
    "names",
    [
        {"0", "1", "2", "5", "all"},
        {"gpu2", "gpu5"},
        {"GPU-00000003-0000-4000-8000-000000000003", "GPU-00000006-0000-4000-8000-000000000006"},
    ],
)
def test_a_fresh_cdi_spec_comes_first(names: set[str]) -> None:
    grants = granted(recorded("h100x8-driver580"), "cuda", [2, 5], replace(DOCKER, cdi={"nvidia.com/gpu": frozenset(names)}))
    assert grants.gpus is None and len(grants.cdi) == 2
    assert {name.removeprefix("nvidia.com/gpu=") for name in grants.cdi} <= names


def test_without_cdi_and_hook_the_toolkit_is_named() -> None:
    for engine in (PODMAN, replace(DOCKER, nvidia_gpus=False)):
        (problem,) = granted(recorded("h100x8-driver580"), "cuda", [0], engine).problems
        assert problem.severity == "error" and "nvidia-container-toolkit" in problem.message + problem.remedy


def test_a_spec_that_lacks_a_gpu_is_said_to_be_old() -> None:
    (problem,) = granted(
        recorded("h100x8-driver580"), "cuda", [0, 7], replace(PODMAN, cdi={"nvidia.com/gpu": frozenset({"0", "all"})})
    ).problems
    assert "nvidia-ctk cdi generate" in problem.remedy


def test_a_cdi_spec_of_another_vendor_does_not_count() -> None:
    assert granted(recorded("h100x8-driver580"), "cuda", [0], replace(PODMAN, cdi={"amd.com/gpu": frozenset({"0", "all"})})).problems


def test_apptainer_is_said_not_to_isolate_nvidia() -> None:
    grants = granted(recorded("h100x8-driver580"), "cuda", [1], APPTAINER)
    assert not grants.isolated and grants.flags == ("--nv",) and grants.notes
    assert grants.environment["CUDA_VISIBLE_DEVICES"].startswith("GPU-00000002")
    offered = granted(recorded("h100x8-driver580"), "cuda", [1], replace(APPTAINER, cdi={"nvidia.com/gpu": frozenset({"1"})}))
    assert offered.isolated and offered.cdi == ("nvidia.com/gpu=1",) and offered.flags == ()


@pytest.mark.parametrize(
    ("record", "lane", "indices"),
    [("mi300x8-spx", "rocm", [2, 5]), ("intel-max1100x2", "xpu", [1]), ("ascend-a2x8-one-busy", "ascend", [2])],
)
def test_apptainer_isolates_the_others_by_their_nodes(record: str, lane: str, indices: list[int]) -> None:
    grants = granted(recorded(record), lane, indices, APPTAINER)
    docker = granted(recorded(record), lane, indices, DOCKER)
    assert grants.devices == docker.devices and grants.mounts == docker.mounts
    assert grants.isolated and grants.flags == () and grants.groups == () and grants.environment == docker.environment


def test_mig_devices_are_named_by_uuid_or_by_place() -> None:
    parts = [
        Accelerator(lane="cuda", index=n, partition=Partition(kind="mig", profile="3g.40gb", parent=n // 2), uuid=f"MIG-{n}", usable=True)
        for n in range(4)
    ]
    hardware = Hardware(os="linux", arch="x86_64", accelerators=tuple(parts))
    assert LANES["cuda"].grants(parts[3:], hardware, DOCKER).gpus == '"device=MIG-3"'
    cdi = replace(PODMAN, cdi={"nvidia.com/gpu": frozenset({"1:1"})})
    assert LANES["cuda"].grants(parts[3:], hardware, cdi).cdi == ("nvidia.com/gpu=1:1",)
    assert LANES["cuda"].visibility(parts[3:], hardware)["CUDA_VISIBLE_DEVICES"] == "MIG-3"


def test_wsl_under_apptainer_needs_its_own_node_and_libraries() -> None:
    grants = granted(recorded("wsl2-4090"), "cuda", [0], APPTAINER)
    assert grants.devices == ("/dev/dxg",) and [m.source for m in grants.mounts] == ["/usr/lib/wsl"] and grants.flags == ("--nv",)


def test_wsl_has_only_all() -> None:
    hardware = recorded("wsl2-4090")
    assert granted(hardware, "cuda", [0], DOCKER).gpus == "all"
    assert granted(hardware, "cuda", [0], replace(PODMAN, cdi={"nvidia.com/gpu": frozenset({"all"})})).cdi == ("nvidia.com/gpu=all",)


def test_amd_gets_kfd_and_the_chosen_render_nodes_only() -> None:
    grants = granted(recorded("mi300x8-spx"), "rocm", [2, 5], DOCKER)
    assert grants.devices == ("/dev/kfd", "/dev/dri/renderD144", "/dev/dri/renderD168")
    assert grants.groups == (109,) and grants.environment == {} and grants.problems == () and grants.security == ()


def test_rootless_podman_keeps_groups_with_crun_and_says_so_without() -> None:
    hardware = recorded("mi300x8-spx")
    assert granted(hardware, "rocm", [0], PODMAN).flags == ("--group-add=keep-groups",)
    assert granted(hardware, "rocm", [0], PODMAN).groups == ()
    assert granted(hardware, "rocm", [0], replace(PODMAN, rootless=False)).groups == (109,)
    for engine in (replace(PODMAN, crun=False), replace(DOCKER, rootless=True)):
        assert [p.code for p in granted(hardware, "rocm", [0], engine).problems] == ["no-permission"]


def test_nodes_that_everyone_may_open_need_no_group(tmp_path: Path) -> None:
    files, nodes = kfd_partitions(1, 1)
    hardware = seen(make(tmp_path / "r", files, {path: {**entry, "mode": "0666"} for path, entry in nodes.items()}))
    assert granted(hardware, "rocm", [0], DOCKER).groups == ()


def test_ascend_gets_cards_managers_and_the_drivers_files() -> None:
    grants = granted(recorded("ascend-a2x8-one-busy"), "ascend", [2, 5], DOCKER)
    assert grants.devices == ("/dev/davinci2", "/dev/davinci5", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
    assert [mount.source for mount in grants.mounts] == [
        "/usr/local/dcmi",
        "/usr/local/bin/npu-smi",
        "/usr/local/Ascend/driver/lib64",
        "/usr/local/Ascend/driver/version.info",
        "/etc/ascend_install.info",
        "/etc/hccn.conf",
    ]
    assert all(mount.read_only and mount.source == mount.target for mount in grants.mounts)
    assert grants.groups == (1000,) and grants.environment == {} and grants.problems == ()


def test_one_ascend_card_needs_no_network_file() -> None:
    assert "/etc/hccn.conf" not in [mount.source for mount in granted(recorded("ascend-a2x8-one-busy"), "ascend", [0], DOCKER).mounts]


def test_missing_driver_files_are_preflight_errors_and_stay_in_the_plan() -> None:
    hardware = replace(recorded("ascend-a2x8-one-busy"), host_paths=frozenset())
    grants = granted(hardware, "ascend", [0, 1], DOCKER)
    assert len(grants.mounts) == 6 and [p.severity for p in grants.problems] == ["error"] * 6


def test_another_install_prefix_is_mounted_where_images_look() -> None:
    paths = frozenset({"/opt/npu/driver/lib64", "/opt/npu/driver/version.info"})
    mounts = granted(replace(recorded("ascend-a2x8-one-busy"), host_paths=paths), "ascend", [0], DOCKER).mounts
    assert ("/opt/npu/driver/lib64", "/usr/local/Ascend/driver/lib64") in [(mount.source, mount.target) for mount in mounts]


def test_intel_gets_chosen_nodes_both_groups_and_by_path_for_several() -> None:
    hardware = recorded("intel-max1100x2")
    one, two = granted(hardware, "xpu", [1], DOCKER), granted(hardware, "xpu", [0, 1], DOCKER)
    assert one.devices == ("/dev/dri/renderD128", "/dev/dri/card2") and one.groups == (44, 109) and one.mounts == ()
    assert [mount.source for mount in two.mounts] == ["/dev/dri/by-path"] and two.problems == ()


def test_a_missing_node_is_a_preflight_error() -> None:
    hardware = replace(recorded("mi300x8-spx"), nodes={})
    assert {p.message.split()[0] for p in granted(hardware, "rocm", [0], DOCKER).problems} == {"/dev/kfd", "/dev/dri/renderD128"}


@pytest.mark.parametrize(
    ("record", "lane", "indices", "environment"),
    [
        (
            "h100x8-driver580",
            "cuda",
            [1],
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-00000002-0000-4000-8000-000000000002"},
        ),
        (
            "mi300x8-spx",
            "rocm",
            [1, 3],
            {"ROCR_VISIBLE_DEVICES": "GPU-1111222233330001,GPU-1111222233330003", "HIP_VISIBLE_DEVICES": "0,1"},
        ),
        ("mi300x-cpx", "rocm", [1, 7], {"ROCR_VISIBLE_DEVICES": "1,7", "HIP_VISIBLE_DEVICES": "0,1"}),
        ("ascend-a2x8-one-busy", "ascend", [2, 5], {"ASCEND_RT_VISIBLE_DEVICES": "2,5"}),
        ("intel-max1100x2", "xpu", [1], {"ZE_AFFINITY_MASK": "1", "ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE"}),
    ],
)
def test_the_host_engine_is_bound_by_stable_ids(record: str, lane: str, indices: list[int], environment: dict[str, str]) -> None:
    grants = granted(recorded(record), lane, indices, EngineFacts(name="host"))
    assert dict(grants.environment) == environment and not grants.isolated
    assert (grants.devices, grants.mounts, grants.groups) == ((), (), ())


def test_the_cpu_lane_asks_for_nothing() -> None:
    hardware = recorded("cpu-only")
    assert LANES["cpu"].grants([], hardware, DOCKER) == Grants() and LANES["cpu"].visibility([], hardware) == {}
