"""pip's own configuration, told to uv, which does not read it. A site's mirror in fl's settings stands for the index of pip's files.

Translated: index-url, extra-index-url, no-index, find-links, cert, client-cert, trusted-host, proxy, timeout.
Not translated: constraint. What is installed comes from a lock, which is exact already, and a lock must not depend on who resolved it.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from fl import settings as fl_settings
from fl.errors import EngineError

_SECTIONS: Final = ("global", "install")
_TRUE: Final = frozenset({"1", "true", "yes", "on", "y", "t"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PipSettings:
    """What pip was told about where packages come from."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    no_index: bool = False
    find_links: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    proxy: str | None = None
    timeout: str | None = None

    def folders(self) -> tuple[Path, ...]:
        """The find-links that are local folders or files."""
        return tuple(path for link in self.find_links if (path := local_path(link)) is not None)


def local_path(link: str) -> Path | None:
    """The path behind a find-links or index entry; None for one on the network."""
    parts = urlsplit(link)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in link else Path(link).expanduser()


def config_files(environ: Mapping[str, str], home: Path, prefix: Path) -> tuple[Path, ...]:
    """The files that pip reads, weakest first: global, user, site, then the one that PIP_CONFIG_FILE names; none at all for /dev/null."""
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return ()
    directories = [Path(d) for d in reversed((environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")) if d]
    user = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [d / "pip" / "pip.conf" for d in directories] + [Path("/etc/pip.conf")]
    files += [home / ".pip" / "pip.conf", user / "pip" / "pip.conf", prefix / "pip.conf"]
    return (*files, Path(named)) if named else tuple(files)


def _key(name: str) -> str:
    return name.lower().removeprefix("--").replace("_", "-")


def parse(texts: Iterable[tuple[str, str]], environ: Mapping[str, str]) -> PipSettings:
    """Settings out of (file name, content) pairs, weakest first, and PIP_* variables, which win. As in pip a later value replaces.

    Raises EngineError for a file that pip could not read either.
    """
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for name, text in texts:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text, name)
        except configparser.Error as error:
            raise EngineError(f"pip's configuration file {name} is malformed: {str(error).splitlines()[0]}", "pip config debug") from error
        for section in _SECTIONS:
            if parser.has_section(section):
                sections[section].update({_key(key): value for key, value in parser.items(section)})
    merged = {**sections["global"], **sections["install"]}
    merged.update({_key(name[4:]): value for name, value in environ.items() if name.startswith("PIP_") and value})

    def words(key: str) -> tuple[str, ...]:
        return tuple(merged.get(key, "").split())

    return PipSettings(
        index_url=merged.get("index-url") or None,
        extra_index_urls=words("extra-index-url"),
        no_index=merged.get("no-index", "").strip().lower() in _TRUE,
        find_links=words("find-links"),
        cert=merged.get("cert") or None,
        client_cert=merged.get("client-cert") or None,
        trusted_hosts=words("trusted-host"),
        proxy=merged.get("proxy") or None,
        timeout=merged.get("timeout") or None,
    )


def translate(settings: PipSettings, environ: Mapping[str, str], *, system_store: bool = False) -> dict[str, str]:
    """Variables for uv that say the same as `settings`. A variable that the caller has set for uv already is left alone.

    `system_store`: this machine has a certificate store; pip trusts it without being told to, uv does not.
    pip takes the best version of all its indexes together, uv by default only those of the first that has the name: the strategy
    is set to pip's. That is safe where hashes are required.
    """
    wanted = {
        "UV_DEFAULT_INDEX": settings.index_url or "",
        "UV_EXTRA_INDEX_URL": " ".join(settings.extra_index_urls),
        "UV_INDEX_STRATEGY": "unsafe-best-match" if settings.extra_index_urls else "",
        "UV_FIND_LINKS": ",".join(str(local_path(link) or link) for link in settings.find_links),
        "SSL_CERT_FILE": settings.cert or "",
        "UV_SYSTEM_CERTS": "1" if system_store and not settings.cert and not environ.get("SSL_CERT_FILE") else "",
        "SSL_CLIENT_CERT": settings.client_cert or "",
        "UV_INSECURE_HOST": " ".join(settings.trusted_hosts),
        "ALL_PROXY": settings.proxy or "",
        "UV_HTTP_TIMEOUT": settings.timeout.split(".")[0] if settings.timeout else "",
    }
    return {name: value for name, value in wanted.items() if value and not environ.get(name)}


def read(environ: Mapping[str, str]) -> PipSettings:
    """This machine's settings. Local find-links that do not exist are left out: pip only warns about them, uv stops."""
    from dataclasses import replace

    texts = []
    for file in config_files(environ, Path.home(), Path(sys.prefix)):
        try:
            texts.append((str(file), file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except UnicodeDecodeError as error:
            raise EngineError(f"pip's configuration file {file} is not UTF-8 text", "pip config debug") from error
    settings = parse(texts, environ)
    mirror = fl_settings.load().mirrors.index
    if mirror and not environ.get("PIP_INDEX_URL"):
        settings = replace(settings, index_url=mirror, extra_index_urls=(), no_index=False)
    links = tuple(link for link in settings.find_links if (path := local_path(link)) is None or path.exists())
    return replace(settings, find_links=links)


def uv_environment(environ: Mapping[str, str], *, local_indexes: bool = True) -> dict[str, str]:
    """What to add to uv's environment so that it finds packages where pip does on this machine. To be used with `uv_flags`.

    `local_indexes=False` leaves out extra indexes that are folders of this machine. Such a folder often holds a few files of a release
    only, and uv, unlike pip, looks no further than the first index that has the release: a lock for other platforms needs the rest.
    """
    import ssl
    from dataclasses import replace

    settings = read(environ)
    if not local_indexes:
        settings = replace(settings, extra_index_urls=tuple(url for url in settings.extra_index_urls if local_path(url) is None))
    store = ssl.get_default_verify_paths()
    return translate(settings, environ, system_store=bool(store.cafile or store.capath))


def uv_flags(environ: Mapping[str, str]) -> list[str]:
    """What uv takes on its command line only."""
    return ["--no-index"] if read(environ).no_index else []
