"""Podman without root, for real: root inside is the caller outside, and only what the plan names is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import HOSTS

from fl import container, plan
from fl.detect import detect, open_host
from fl.engines.podman import environment, parse_facts
from fl.grants import EngineFacts, Grants, Mount

pytestmark = pytest.mark.engine
BOX = "flbox:1"
USER, GROUP = 54321, 10947


@dataclass
class Rootless:
    """A user of this machine with a podman of their own, and what it says of itself."""

    folder: Path
    variables: dict[str, str]
    facts: EngineFacts | None = None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        who = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
        return subprocess.run(
            [*who, *command], env=self.variables, capture_output=True, text=True, timeout=600, check=False, cwd=self.folder
        )


@pytest.fixture(scope="module")
def rootless() -> Iterator[Rootless]:
    if os.getuid() or shutil.which("podman") is None or shutil.which("docker") is None:
        pytest.skip("needs root to become somebody else, podman, and docker for the image")
    folder = Path(tempfile.mkdtemp(prefix="fl-rootless-"))
    user = Rootless(folder, {**environment(), "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)})
    try:
        user.variables.pop("DOCKER_CONFIG", None)
        storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n'
        (folder / "storage.conf").write_text(storage + '[storage.options.vfs]\nignore_chown_errors = "true"\n')
        user.variables["CONTAINERS_STORAGE_CONF"] = f"{folder}/storage.conf"
        if "CONTAINERS_CONF" in os.environ:  # names a runtime that others may not look at
            text = Path(os.environ["CONTAINERS_CONF"]).read_text()
            for path in re.findall(r'"(/[^"]+)"', text):
                text = text.replace(path, shutil.copy(path, str(folder)))
            (folder / "containers.conf").write_text(text)
            user.variables["CONTAINERS_CONF"] = f"{folder}/containers.conf"
        saved = subprocess.run(["docker", "save", "--output", f"{folder}/box.tar", BOX], capture_output=True, text=True, check=False)
        for path in (folder, *folder.iterdir()):
            os.chown(path, USER, USER)
        said = user.run("podman", "load", "--input", f"{folder}/box.tar") if saved.returncode == 0 else saved
        probe = user.run("podman", "run", "--rm", "--network", "none", BOX, "true") if said.returncode == 0 else said
        if probe.returncode:
            pytest.skip(f"no rootless podman here: {probe.stderr.strip()[-300:]}")
        user.facts = parse_facts(json.loads(user.run("podman", "info", "--format", "json").stdout))
        yield user
    finally:
        user.run("podman", "rm", "--all", "--force", "--time", "0")
        shutil.rmtree(folder, ignore_errors=True)


def described(user: Rootless, devices: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What fl starts for the processor, with a run's own folder."""
    assert user.facts is not None
    for name, text in (("passwd", f"me:x:0:0::{user.folder}:/bin/sh\n"), ("group", "me:x:0:\n"), ("data.json", "[1]\n")):
        (user.folder / name).write_text(text)
    out, cache = user.folder / "out", user.folder / "cache"
    for made in (out, cache):
        made.mkdir(exist_ok=True)
        os.chown(made, USER, USER)
    data = str(user.folder / "data.json")
    hardware, caller = detect(open_host(HOSTS / "cpu-only")), plan.Caller(uid=USER, gid=USER, name="me")
    request = plan.Request(
        run=f"rootless-{os.getpid()}", lane="cpu", stack="s", image=plan.Image(reference=BOX), hardware=hardware, chosen=(),
        grants=Grants(devices=devices), visibility={}, engine=user.facts, caller=caller, python="python",
        folder=str(user.folder), cache=str(cache), code=None, working_directory=str(user.folder),
        inputs=(Mount(source=data, target=data),), outputs=(str(out),),
    )  # fmt: skip
    words = list(container.describe(request, {"FL_WORD": "a b"}).arguments)
    words[words.index("--detach")] = "--rm"
    return tuple(words)


def test_it_says_that_it_is_rootless(rootless: Rootless) -> None:
    assert rootless.facts is not None and rootless.facts.rootless and rootless.facts.same_files and not rootless.facts.nvidia_gpus


def test_what_is_made_belongs_to_the_caller_and_inputs_stay_as_they_are(rootless: Rootless) -> None:
    words = described(rootless)
    assert words[words.index("--user") + 1] == "0:0"
    script = (
        f"id -u; echo made > {rootless.folder}/out/file; cat {rootless.folder}/data.json; "
        f"(echo changed > {rootless.folder}/data.json) 2>/dev/null || echo read-only; "
        'ls /sys/class/net; echo "$FL_WORD"; grep NoNewPrivs /proc/self/status'
    )
    done = rootless.run(*words, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "[1]", "read-only", "lo", "a", "b", "NoNewPrivs:", "1"]
    made = (rootless.folder / "out" / "file").stat()
    assert (made.st_uid, made.st_gid) == (USER, USER), "root inside is the caller outside"


def test_a_node_of_a_group_stays_closed_and_one_for_everybody_opens(rootless: Rootless) -> None:
    """Numbers of groups are mapped away: that is why the lanes refuse such nodes without crun (lanes/groups.py)."""
    for name, mode, gid in (("open", 0o666, 0), ("closed", 0o660, GROUP)):
        node = rootless.folder / name
        node.unlink(missing_ok=True)
        os.mknod(node, stat.S_IFCHR | mode, os.makedev(1, 5))
        node.chmod(mode)
        os.chown(node, 0, gid)
    try:
        (rootless.folder / "open").open("rb").close()
    except OSError:
        pytest.skip("this folder's file system has no device nodes")
    words = described(rootless, (f"{rootless.folder}/open:/dev/one", f"{rootless.folder}/closed:/dev/two"))
    script = "for n in one two three; do [ -c /dev/$n ] && (exec 3<>/dev/$n) 2>/dev/null && echo $n; done; "
    script += "(mknod /tmp/x c 1 5 && exec 3<>/tmp/x) 2>/dev/null || echo none"
    done = rootless.run(*words, "sh", "-c", script)
    assert done.stdout.split() == ["one", "none"], done.stderr
