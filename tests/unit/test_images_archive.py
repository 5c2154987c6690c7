"""An archive of images is believed only as far as its hashes go."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from fl.errors import ImageError
from fl.images import archive


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parts(layers: list[bytes], labels: dict[str, str] | None = None) -> dict[str, bytes]:
    """Name → bytes of an archive as `docker save` writes it."""
    ids = [f"sha256:{sha(one)}" for one in layers]
    told = {"os": "linux", "architecture": "amd64", "config": {"Labels": labels}, "rootfs": {"diff_ids": ids}}
    config = json.dumps(told).encode()
    blobs = {f"blobs/sha256/{sha(data)}": data for data in (config, *layers)}
    entry = {
        "Config": f"blobs/sha256/{sha(config)}", "RepoTags": ["fl-train:x"], "Layers": [f"blobs/sha256/{sha(one)}" for one in layers],
    }  # fmt: skip
    return {**blobs, "manifest.json": json.dumps([entry]).encode()}


def write(file: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return file


def examine(file: Path) -> list[archive.Held]:
    return archive.examine(file, lambda line: None)


LAYERS = [b"one" * 1000, b"two" * 2000]


def test_a_good_archive_tells_what_it_holds(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar", parts(LAYERS, {"fl.stack": "x"}))
    (held,) = examine(file)
    assert held.names == ("fl-train:x",)
    assert held.platform == "linux/amd64"
    assert held.layers == tuple(sha(one) for one in LAYERS)
    assert (held.size, held.labels) == (9000, {"fl.stack": "x"})
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert examine(tmp_path / "a.tar.gz") == [held]


def test_layers_that_are_links_are_followed(tmp_path: Path) -> None:
    """As docker before 25 wrote them."""
    members = parts([LAYERS[0]])
    (entry,) = json.loads(members["manifest.json"])
    entry["Layers"] = ["b/layer.tar"]
    members |= {"a/layer.tar": LAYERS[0], "manifest.json": json.dumps([entry]).encode()}
    (held,) = examine(write(tmp_path / "a.tar", members, {"b/layer.tar": "../a/layer.tar"}))
    assert held.layers == (sha(LAYERS[0]),)


def test_a_changed_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    good = parts(LAYERS)
    for name, data in good.items():
        if name == "manifest.json":
            continue
        bad = data.replace(b"amd64", b"arm64") if data.startswith(b"{") else b"x" + data[1:]
        with pytest.raises(ImageError, match=r"is damaged: the (layer|configuration) .*Nothing was loaded") as caught:
            examine(write(tmp_path / "a.tar", {**good, name: bad}))
        assert "sha256sum" in caught.value.remedy


@pytest.mark.parametrize("keep", [0, 100, 3000, 12000])
def test_a_copy_that_broke_off_is_found(keep: int, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", parts(LAYERS)).read_bytes()
    for name, data in (("a.tar", whole), ("a.tar.gz", gzip.compress(whole, 0))):
        (tmp_path / name).write_bytes(data[:keep])
        with pytest.raises(ImageError, match="is damaged"):
            examine(tmp_path / name)


@pytest.mark.parametrize(
    "members",
    [
        {"readme": b"hello"},
        {"manifest.json": b"[1]"},
        {"manifest.json": b"not json"},
        {"manifest.json": b'[{"Config": "nowhere", "Layers": []}]'},
        {**parts(LAYERS), "manifest.json": parts(LAYERS[:1])["manifest.json"]},
    ],
)
def test_what_is_no_archive_of_images_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is damaged"):
        examine(write(tmp_path / "a.tar", members))


def test_a_layer_that_the_configuration_does_not_have_is_refused(tmp_path: Path) -> None:
    members = parts(LAYERS)
    (entry,) = json.loads(members["manifest.json"])
    entry["Layers"].pop()
    with pytest.raises(ImageError, match="1 of 2 layers are there"):
        examine(write(tmp_path / "a.tar", {**members, "manifest.json": json.dumps([entry]).encode()}))


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    archive.room(tmp_path / "not" / "there", 1, "x")
    with pytest.raises(ImageError, match=r"the image takes about 1000000\.0 GB, and .* GB free") as caught:
        archive.room(tmp_path, 10**15, "the image")
    assert "df -h" in caught.value.remedy


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        examine(tmp_path / "absent.tar")
