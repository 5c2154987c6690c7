"""What the commands of images are told: a flavor, a platform, a registry or a revision that is none. Cause and cure are named, and nothing
was begun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fl import matrix as rows
from fl import paths
from fl.cli import main
from fl.errors import ImageError, UsageError
from fl.images import inventory, registry
from fl.settings import load, place

MATRIX = rows.load()


@pytest.mark.parametrize(
    ("words", "code", "said", "cure"),
    [
        ("lock --check cpu-torch213 --flavor serve", 8, "cpu-torch213 has no serve image", "fl images list"),
        ("lock --check cpu-torch213 --platform linux/riscv64", 8, "no image for linux/riscv64; known: linux/amd64", "fl images list"),
        ("lock --check --extras --platform linux/riscv64", 8, "no image for linux/riscv64; known: linux/amd64", "fl images list"),
        ("lock --check --extras --jit", 2, "go one at a time", "fl images lock --help"),
        ("lock --check --jit --flavor train", 2, "take no --flavor", "fl images lock --help"),
        ("diff cpu-torch213 cpu-torch213 --platform linux/ppc", 7, "linux/ppc: it is for linux/amd64", "--platform linux/amd64"),
        ("diff cpu-torch213 cpu-torch213 --flavor serve", 7, "cpu-torch213 has no serve image: it has train", "fl images list"),
        ("sbom cpu-torch210 --platform linux/amd64", 7, "cpu-torch210 has no lock for train on linux/amd64", "--platform linux/arm64"),
        ("sbom xpu-torch212 --platform linux/amd64", 7, "a bill of it would lack torch==2.12.1", "fl images lock xpu-torch212"),
        ("list --changed-since nosuchrev", 2, "git does not know the revision nosuchrev", "git fetch --unshallow"),
        ("push cpu-torch213 --registry https://r.example.com/team", 2, "'https://r.example.com/team' is no registry", "r.example.com/team"),
        ("push cpu-torch213 --registry r.example.com/Team", 2, "in small letters", "r.example.com/team"),
        ("build cpu-torch213 --registry http://r.example.com", 2, "--registry: 'http://r.example.com' is no registry", "r.example.com"),
        ("tags cpu-torch213 --registry https://r.example.com", 2, "--registry: 'https://r.example.com' is no registry", "r.example.com"),
    ],
)
def test_what_is_none_is_said(words: str, code: int, said: str, cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["images", *words.split()])
    err = capsys.readouterr().err
    assert raised.value.code == code, err
    assert said in err and f"try: {cure}" in err, err


def test_a_partial_lock_is_compared_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["images", "diff", "xpu-torch212", "cpu-torch213", "--platform", "linux/amd64"])
    assert raised.value.code == 0
    assert "the lock of xpu-torch212 is partial: it lacks torch==2.12.1" in capsys.readouterr().err


def test_a_name_that_is_nearly_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    from fl.engines import daemon

    monkeypatch.setattr(daemon, "image", lambda address, name: None)
    with pytest.raises(ImageError, match=r"neither a stack nor an image on this machine; did you mean cuda132-torch215\?"):
        inventory.of(MATRIX, "cuda132-torch216", "train", "linux/amd64")


def test_the_registry_of_the_settings_is_looked_at() -> None:
    file = Path(os.environ["XDG_CONFIG_HOME"]) / "fl/config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("registry: https://registry.example.com/team\n")
    with pytest.raises(UsageError, match=r"config\.yaml: registry: 'https://registry\.example\.com/team' is no registry") as caught:
        load()
    assert caught.value.remedy == "registry.example.com/team"
    file.write_text("registry: registry.example.com/team/\n")
    assert load().registry == "registry.example.com/team"


@pytest.mark.parametrize("told", ["localhost:5000", "127.0.0.1:5000/fl-test_1/x.y", "ghcr.io/some-one/fl", "registry.example.com/"])
def test_registries(told: str) -> None:
    assert place(told, "--registry") == told.rstrip("/")


@pytest.mark.parametrize("told", ["https://", "a b", "host/pa th", "host:port/x", "user:secret@host/x", "host//x"])
def test_no_registries(told: str) -> None:
    with pytest.raises(UsageError, match="is no registry"):
        place(told, "--registry")


def test_words_of_a_failed_connection_are_whole() -> None:
    cause = "<x>: Failed to resolve 'r.example' ([Errno -2] Not known)"
    told = f'Max retries exceeded with url: /v2/ (Caused by NameResolutionError("{cause}"))'
    assert registry._last(OSError(told)) == "Failed to resolve 'r.example' ([Errno -2] Not known)"


@pytest.mark.parametrize("words", ["images lock cpu-torch213", "images lock --extras cpu-torch213", "matrix update cpu-torch213"])
@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "was interrupted"), (signal.SIGTERM, 143, "was terminated")])
def test_an_interrupted_resolver_leaves_nothing(words: str, number: signal.Signals, code: int, said: str, tmp_path: Path) -> None:
    """The index takes the question and never answers."""
    before = {file: file.read_bytes() for file in (paths.IMAGES / "cpu/locks").rglob("*.txt")}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {"PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple", "PIP_CONFIG_FILE": os.devnull}
        environment = {**os.environ, **index, "TMPDIR": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "cache")}
        process = subprocess.Popen([sys.executable, "-m", "fl", *words.split()], stderr=subprocess.PIPE, text=True, env=environment)
        silent.settimeout(120)
        held = silent.accept()
        process.send_signal(number)
        told = process.communicate(timeout=120)[1]
        held[0].close()
    assert (process.returncode, said in told) == (code, True), told
    assert list(tmp_path.glob("fl-lock-*")) == []
    assert before == {file: file.read_bytes() for file in (paths.IMAGES / "cpu/locks").rglob("*.txt")}
