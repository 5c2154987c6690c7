"""pip's configuration, read as pip reads it and told to uv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl import pip_config
from fl.errors import EngineError

HOME = Path("/home/someone")


def test_files_come_weakest_first() -> None:
    files = pip_config.config_files({"XDG_CONFIG_DIRS": "/a:/b", "PIP_CONFIG_FILE": "/named.conf"}, HOME, Path("/venv"))
    assert [str(f) for f in files] == [
        "/b/pip/pip.conf", "/a/pip/pip.conf", "/etc/pip.conf",
        "/home/someone/.pip/pip.conf", "/home/someone/.config/pip/pip.conf", "/venv/pip.conf", "/named.conf",
    ]  # fmt: skip


def test_dev_null_means_no_file_at_all() -> None:
    assert pip_config.config_files({"PIP_CONFIG_FILE": os.devnull}, HOME, Path("/venv")) == ()


def test_later_files_then_the_install_section_then_variables_win() -> None:
    texts = [
        ("global", "[global]\nindex-url = https://one.example/simple\nfind-links = /a /b\ntimeout = 7\n"),
        ("user", "[global]\nindex_url = https://two.example/simple\n[install]\ntrusted-host = two.example\n"),
    ]
    settings = pip_config.parse(texts, {"PIP_FIND_LINKS": "/c", "PIP_EXTRA_INDEX_URL": "", "HOME": "/x"})
    assert settings == pip_config.PipSettings(
        index_url="https://two.example/simple", find_links=("/c",), trusted_hosts=("two.example",), timeout="7"
    )


def test_lists_may_span_lines_and_percent_signs_are_kept() -> None:
    settings = pip_config.parse([("f", "[global]\nextra-index-url =\n    https://u:p%40w@a.example/s\n    https://b.example/s\n")], {})
    assert settings.extra_index_urls == ("https://u:p%40w@a.example/s", "https://b.example/s")


def test_a_malformed_file_is_named() -> None:
    with pytest.raises(EngineError, match=r"/etc/pip\.conf is malformed"):
        pip_config.parse([("/etc/pip.conf", "index-url = x\n")], {})


def test_translation_names_uv_s_variables() -> None:
    settings = pip_config.PipSettings(
        index_url="https://i.example/simple", extra_index_urls=("https://e.example/simple", "file:///srv/simple"), no_index=True,
        find_links=("file:///srv/wheels%20two", "https://f.example/links.html"), cert="/ca.pem", client_cert="/me.pem",
        trusted_hosts=("i.example", "e.example:8443"), proxy="http://p.example:3128", timeout="15.5",
    )  # fmt: skip
    assert pip_config.translate(settings, {"ALL_PROXY": "http://mine.example"}) == {
        "UV_DEFAULT_INDEX": "https://i.example/simple",
        "UV_EXTRA_INDEX_URL": "https://e.example/simple file:///srv/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/srv/wheels two,https://f.example/links.html",
        "SSL_CERT_FILE": "/ca.pem",
        "SSL_CLIENT_CERT": "/me.pem",
        "UV_INSECURE_HOST": "i.example e.example:8443",
        "UV_HTTP_TIMEOUT": "15",
    }


def test_the_system_s_certificates_are_trusted_as_pip_does() -> None:
    assert pip_config.translate(pip_config.PipSettings(), {}, system_store=True) == {"UV_SYSTEM_CERTS": "1"}
    assert pip_config.translate(pip_config.PipSettings(), {"SSL_CERT_FILE": "/ca.pem"}, system_store=True) == {}


def test_nothing_configured_is_nothing_told() -> None:
    assert pip_config.translate(pip_config.PipSettings(), {}) == {}


def test_folders_that_are_gone_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "wheels"
    there.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    found = pip_config.read({"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": f"{there} {tmp_path}/gone https://l.example/"})
    assert found.find_links == (str(there), "https://l.example/")
    assert found.folders() == (there,)


def test_folders_as_indexes_can_be_left_out() -> None:
    asked = {"PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": "file:///srv/simple https://e.example/simple"}
    assert pip_config.uv_environment(asked)["UV_EXTRA_INDEX_URL"] == "file:///srv/simple https://e.example/simple"
    assert pip_config.uv_environment(asked, local_indexes=False)["UV_EXTRA_INDEX_URL"] == "https://e.example/simple"


def test_uv_obeys_what_is_told(tmp_path: Path) -> None:
    """uv really reads these variables: with no index and an empty folder of wheels, nothing is found, and it says why."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("the uv of this environment is not there")
    (tmp_path / "in.txt").write_text("click\n")
    asked = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    told = pip_config.uv_environment(asked)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "cache"), **told}
    command = [str(uv), "pip", "compile", *pip_config.uv_flags(asked), "in.txt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "click was not found in the provided package locations" in done.stderr.replace("\n      ", " ")
