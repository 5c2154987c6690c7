"""The argv of docker and podman: who runs inside, limits, security, and what SELinux or a rootless engine changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hosts import recorded
from hypothesis import given
from hypothesis import strategies as st

from fl import container, plan
from fl.grants import EngineFacts, Grants
from fl.lanes import LANES

DOCKER, PODMAN = EngineFacts(name="docker"), EngineFacts(name="podman", rootless=True)


def argv(engine: EngineFacts, record: str = "cpu-only", **more: Any) -> tuple[str, ...]:
    hardware = recorded(record)
    chosen = hardware.accelerators[:2]
    grants = LANES[chosen[0].lane].grants(chosen, hardware, engine) if chosen else Grants()
    asked = plan.Request(
        run="r-1", lane=chosen[0].lane if chosen else "cpu", stack="s", image=plan.Image(reference="fl-train:s"), hardware=hardware,
        chosen=chosen, grants=more.pop("grants", grants), visibility={}, engine=engine, caller=plan.Caller(uid=1000, gid=100, name="zoe"),
        python="python", folder="/state/r-1", cache="/cache", code=None, working_directory="/state/r-1", **more,
    )  # fmt: skip
    return container.describe(asked, {}).arguments


def values(words: tuple[str, ...], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


@pytest.mark.parametrize("engine", [DOCKER, PODMAN])
def test_selinux_is_off_for_the_container_and_no_folder_is_relabelled(engine: EngineFacts) -> None:
    words = argv(replace(engine, selinux=True))
    assert values(words, "--security-opt") == ["no-new-privileges", "label=disable"]
    assert not any("relabel" in word or word.endswith((":z", ":Z")) for word in words)
    assert values(argv(engine), "--security-opt") == ["no-new-privileges"]


@pytest.mark.parametrize(
    ("engine", "user"),
    [(DOCKER, "1000:100"), (replace(DOCKER, rootless=True), "0:0"), (PODMAN, "0:0"), (replace(PODMAN, rootless=False), "1000:100")],
)
def test_what_is_made_belongs_to_the_caller(engine: EngineFacts, user: str) -> None:
    assert values(argv(engine), "--user") == [user]


@pytest.mark.parametrize("record", ["cpu-only", "h100x8-driver580", "mi300x8-spx", "ascend-a2x8-one-busy", "intel-max1100x2"])
@pytest.mark.parametrize("engine", [replace(DOCKER, selinux=True), PODMAN])
def test_nothing_is_given_beyond_the_devices(engine: EngineFacts, record: str) -> None:
    words = argv(engine, record)
    assert not {"--privileged", "--cap-add", "--pid", "--volume", "-v", "--gpus=all"} & set(words)
    assert "seccomp=unconfined" not in words and "host" not in values(words, "--network") + values(words, "--ipc")
    assert values(words, "--network") == ["none"] and "--init" in words and values(words, "--pull") == ["never"]


def test_amds_calls_for_memory_by_numa_node_get_a_profile_on_docker_only() -> None:
    (_, profile) = values(argv(DOCKER, "mi300x8-spx"), "--security-opt")
    assert profile == f"seccomp={container.MEMORY_POLICY}" and container.MEMORY_POLICY.is_file()
    assert values(argv(PODMAN, "mi300x8-spx"), "--security-opt") == ["no-new-privileges"], "podman's own profile allows them"


def test_limits_are_those_that_the_engine_may_grant() -> None:
    assert values(argv(DOCKER), "--ulimit") == ["memlock=-1", "nofile=1048576:1048576", "stack=67108864:67108864"]
    low = replace(DOCKER, hard_limits={"memlock": 65536, "nofile": 4096})
    assert values(argv(low), "--ulimit") == ["memlock=65536:65536", "nofile=4096:4096", "stack=67108864:67108864"]


def test_shared_memory_is_set_and_never_more_than_half_of_the_memory() -> None:
    (size,) = values(argv(DOCKER), "--shm-size")
    assert 64 < int(size.removesuffix("m")) <= (recorded("cpu-only").cpu.memory_mib or 0) // 2
    words = argv(DOCKER, grants=Grants(ipc="host"))
    assert values(words, "--ipc") == ["host"] and "--shm-size" not in words


@given(st.dictionaries(st.sampled_from(["memlock", "nofile", "stack"]), st.integers(0, 1 << 40)))
def test_no_limit_is_asked_above_the_engines_own(hard: dict[str, int]) -> None:
    asked = container.ulimits(replace(DOCKER, hard_limits=hard))
    assert all(0 <= asked[name] <= most for name, most in hard.items()) and set(asked) == {"memlock", "nofile", "stack"}
