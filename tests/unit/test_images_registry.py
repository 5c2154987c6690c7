"""What a registry says is checked against what it sends; what docker says about a push is turned into cause and cure."""

from __future__ import annotations

import hashlib
import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fl import matrix as rows
from fl.commands.images import images
from fl.errors import ImageError
from fl.images import publish, push, registry, tags

BODY = json.dumps({"schemaVersion": 2, "config": {"digest": "sha256:" + "a" * 64}, "layers": [{"digest": "sha256:x", "size": 3}]}).encode()
DIGEST = "sha256:" + hashlib.sha256(BODY).hexdigest()
LIE = "sha256:" + "0" * 64


class Answers(BaseHTTPRequestHandler):
    """A registry that does as the test says: `paths` is path → (status, headers, body)."""

    paths: dict[str, tuple[int, dict[str, str], bytes]]
    seen: list[tuple[str, str, str | None]]

    def _answer(self) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        length = int(self.headers.get("Content-Length") or 0)
        if length:
            self.rfile.read(length)
        status, headers, body = self.paths.get(self.path.split("?")[0], (404, {}, b"{}"))
        if status == 200 and self.headers.get("Authorization") is None and "/locked/" in self.path:
            status, headers, body = 401, {"WWW-Authenticate": f'Bearer realm="http://{self.headers["Host"]}/token",service="s"'}, b"{}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Answers]]]:
    kind = type("Own", (Answers,), {"paths": {}, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{http.server_address[1]}", kind
        http.shutdown()


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag"),
    [
        ("127.0.0.1:5000/team/fl-train:x-1.0", "127.0.0.1:5000", "team/fl-train", "x-1.0"),
        (f"r.example/fl@{DIGEST}", "r.example", "fl", DIGEST),
        ("fl-train", "docker.io", "library/fl-train", "latest"),
        ("me/fl:1", "docker.io", "me/fl", "1"),
        ("localhost/fl:1", "localhost", "fl", "1"),
    ],
)
def test_references_are_read_as_docker_reads_them(text: str, host: str, repository: str, tag: str) -> None:
    name = registry.parse(text)
    assert (name.host, name.repository, name.tag) == (host, repository, tag)


@pytest.mark.parametrize("text", ["r.example/Fl:1", "r.example/fl:a b", "r.example/fl@sha256:12", "", "r.example/../x"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="is no name of an image"):
        registry.parse(text)


def test_only_this_machine_is_spoken_to_without_tls() -> None:
    assert [registry.is_local(h) for h in ("127.0.0.1:5000", "localhost:1", "localhost", "[::1]:5000", "10.0.0.1:5000", "r.example")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


def test_a_manifest_has_the_digest_of_its_bytes(server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    answers.paths["/v2/fl/manifests/1"] = (200, {"Docker-Content-Digest": DIGEST, "Content-Type": "application/x"}, BODY)
    found = registry.Registry(host).manifest(registry.Name(host, "fl", "1"))
    assert found is not None
    assert (found.digest, found.body, len(found.layers)) == (DIGEST, BODY, 1)
    assert registry.Registry(host).manifest(registry.Name(host, "fl", "2")) is None


def test_a_registry_that_lies_about_a_digest_is_found_out(server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    answers.paths["/v2/fl/manifests/1"] = (200, {"Docker-Content-Digest": LIE}, BODY)
    answers.paths[f"/v2/fl/manifests/{LIE}"] = (200, {"Docker-Content-Digest": LIE}, BODY)
    for tag in ("1", LIE):
        with pytest.raises(ImageError, match=f"lies about .*: it calls it {LIE}, and what it sent has {DIGEST}") as caught:
            registry.Registry(host).manifest(registry.Name(host, "fl", tag))
        assert caught.value.exit_code == 7
    with pytest.raises(ImageError, match="broken configuration"):
        answers.paths[f"/v2/fl/blobs/sha256:{'a' * 64}"] = (200, {}, b"{}")
        registry.Registry(host).config(registry.Name(host, "fl", "1"), registry.Manifest(DIGEST, "", BODY, json.loads(BODY)))


def test_a_lie_ends_the_command_that_meets_it(server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    name = registry.parse(tags.reference("cpu-torch213", registry=host))
    answers.paths[f"/v2/{name.repository}/manifests/{name.tag}"] = (200, {"Docker-Content-Digest": LIE}, BODY)
    with pytest.raises(ImageError, match="lies about"):
        CliRunner().invoke(images, ["tags", "cpu-torch213", "--registry", host, "--json"], catch_exceptions=False)


def test_what_was_stored_is_read_back(server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    answers.paths["/v2/fl/manifests/new"] = (201, {}, b'{"other": 1}')
    with pytest.raises(ImageError, match="gives back something else"):
        registry.Registry(host).put(registry.Name(host, "fl", "new"), registry.INDEX, BODY)


def test_a_token_is_asked_for_with_docker_s_credentials(server: tuple[str, type[Answers]], no_credentials: Path) -> None:
    host, answers = server
    no_credentials.write_text(json.dumps({"auths": {host: {"auth": b64encode(b"me:secret").decode()}}}))
    answers.paths["/token"] = (200, {}, b'{"token": "t0"}')
    answers.paths["/v2/locked/fl/manifests/1"] = (200, {}, BODY)
    assert registry.Registry(host).manifest(registry.Name(host, "locked/fl", "1")) is not None
    assert [auth for _, path, auth in answers.seen if path.startswith("/token")] == ["Basic " + b64encode(b"me:secret").decode()]
    assert answers.seen[-1][2] == "Bearer t0"


def test_no_password_goes_to_a_token_server_without_tls(server: tuple[str, type[Answers]], no_credentials: Path) -> None:
    host, answers = server
    no_credentials.write_text(json.dumps({"auths": {host: {"auth": b64encode(b"me:secret").decode()}}}))
    far = registry.Registry(host, plain=False)
    assert far._login(f'Bearer realm="http://{host}/token"') is False
    assert answers.seen == []


@pytest.mark.parametrize(("status", "words"), [(401, "docker login"), (403, "docker login"), (500, "those who run the registry")])
def test_refusals_say_what_to_type(status: int, words: str, server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    answers.paths["/v2/fl/manifests/1"] = (status, {}, b'{"errors": [{"message": "no", "detail": {"Err": 28}}]}')
    with pytest.raises(ImageError) as caught:
        registry.Registry(host).manifest(registry.Name(host, "fl", "1"))
    assert words in caught.value.remedy
    assert '{"Err": 28}' in caught.value.message


def test_an_endless_manifest_is_cut_off(server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    answers.paths["/v2/fl/manifests/1"] = (200, {}, b" " * (5 << 20))
    with pytest.raises(ImageError, match="more than 4 MiB"):
        registry.Registry(host).manifest(registry.Name(host, "fl", "1"))


@pytest.mark.parametrize(
    ("said", "transient", "message", "remedy"),
    [
        ("no basic auth credentials", False, "refuses", "docker login r.example"),
        ("denied: requested access to the resource is denied", False, "refuses", "docker login r.example"),
        ('unknown error {"Enclosed": {"Op": "write", "Err": 28}}', False, "disk of the registry", "free space"),
        ("write: no space left on device", False, "disk of the registry", "free space"),
        ("An image does not exist locally with the tag: r.example/fl", False, "no image", "fl images build"),
        ("read tcp 1.2.3.4: connection reset by peer", True, "broke off", "docker push"),
        ("received unexpected HTTP status: 500 Internal Server Error", True, "broke off", "docker push"),
        ("Client.Timeout exceeded while awaiting headers", True, "broke off", "docker push"),
        ("something new", False, "cannot be pushed", "docker push"),
    ],
)
def test_what_docker_says_of_a_push(said: str, transient: bool, message: str, remedy: str) -> None:
    error = push.explain(said, "r.example/fl:1")
    assert isinstance(error, push.Transient) is transient
    assert error.exit_code == 7
    assert message in error.message
    assert remedy in error.remedy


def test_only_bytes_and_finished_layers_are_news() -> None:
    progress = push.Progress()
    lines: list[tuple[dict[str, Any], bool]] = [
        ({"status": "The push refers to repository [x]"}, False),
        ({"status": "Preparing", "id": "a", "progressDetail": {}}, True),
        ({"status": "Waiting", "id": "a", "progressDetail": {}}, False),
        ({"status": "Pushing", "id": "a", "progressDetail": {"current": 1000000, "total": 4000000}}, True),
        ({"status": "Pushing", "id": "a", "progressDetail": {"current": 1000000, "total": 4000000}}, False),
        ({"status": "Retrying in 5 seconds", "id": "a", "progressDetail": {}}, False),
        ({"status": "Pushed", "id": "a", "progressDetail": {}}, True),
        ({"status": "Layer already exists", "id": "b", "progressDetail": {}}, True),
    ]
    for item, news in lines:
        assert progress.add(item) is news, item
    assert progress.retrying
    assert progress.line() == "4 of 4 MB, 2 of 2 layers"
    assert progress.digest is None
    assert progress.add({"aux": {"Tag": "1", "Digest": DIGEST, "Size": 1}})
    assert progress.digest == DIGEST


def test_passing_failures_are_tried_again_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def once(reference: str, report: object, silence: float) -> str:
        tries.append(reference)
        raise push.explain("connection reset by peer" if len(tries) < 3 else "denied", reference)

    monkeypatch.setattr(push, "_once", once)
    waited: list[float] = []
    with pytest.raises(ImageError, match="refuses"):
        push.push("r.example/fl:1", lambda line: None, retries=5, pause=waited.append)
    assert (len(tries), waited) == (3, [2.0, 8.0])


def test_an_index_is_of_docker_s_kind_where_all_of_it_is() -> None:
    entry = {"mediaType": registry._SCHEMA2, "digest": DIGEST, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    assert publish.index([entry])[0] == registry.LIST
    kind, body = publish.index([entry, {**entry, "mediaType": registry._MANIFEST}])
    assert kind == registry.INDEX
    assert json.loads(body)["mediaType"] == kind
    assert len(json.loads(body)["manifests"]) == 2


def test_a_platform_s_image_has_a_name_of_its_own() -> None:
    assert tags.of_platform("r.example/fl-train:x-0.1.0", "linux/arm64") == "r.example/fl-train:x-0.1.0-linux-arm64"


def test_an_image_goes_out_only_under_its_own_stack_s_name() -> None:
    stack = rows.load().stack("cpu-torch213")
    labels = {"fl.stack": "cpu-torch213", "fl.flavor": "train", "fl.version": publish.__version__}
    good = {"Os": "linux", "Architecture": "amd64", "Config": {"Labels": labels}}
    assert publish.mismatch(good, stack, "train") is None
    assert "fl.flavor is train, not serve" in str(publish.mismatch(good, stack, "serve"))
    assert "it is for linux/arm64" in str(publish.mismatch({**good, "Architecture": "arm64"}, stack, "train"))
    assert "fl.stack is absent" in str(publish.mismatch({**good, "Config": {"Labels": None}}, stack, "train"))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"[]", b'"x"', b"{}", b'{"config": []}', b'{"config": {"digest": 5}}', b'{"manifests": {"a": 1}}',
        b'{"manifests": "x"}', b'{"manifests": [{"platform": []}]}', b'{"manifests": [5]}', b'{"manifests": 5}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_an_error_of_the_image(body: bytes, server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    name = registry.parse(tags.reference("cpu-torch213", registry=host))
    answers.paths[f"/v2/{name.repository}/manifests/{name.tag}"] = (200, {}, body)
    done = CliRunner().invoke(images, ["tags", "cpu-torch213", "--registry", host, "--json"])
    assert done.exception is None or isinstance(done.exception, ImageError), repr(done.exception)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"config": []}'])
def test_what_is_no_configuration_is_an_error_of_the_image(body: bytes, server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    manifest = json.dumps({"schemaVersion": 2, "config": {"digest": digest}, "layers": []}).encode()
    name = registry.parse(tags.moving("cpu-torch213", registry=host))
    answers.paths[f"/v2/{name.repository}/manifests/{name.tag}"] = (200, {}, manifest)
    answers.paths[f"/v2/{name.repository}/blobs/{digest}"] = (200, {}, body)
    done = CliRunner().invoke(images, ["tags", "cpu-torch213", "--release", "--registry", host, "--json"])
    assert isinstance(done.exception, ImageError), repr(done.exception)


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"token": 5}'])
def test_what_is_no_token_is_a_refusal(body: bytes, server: tuple[str, type[Answers]]) -> None:
    host, answers = server
    answers.paths["/token"] = (200, {}, body)
    answers.paths["/v2/locked/fl/manifests/1"] = (401, {"WWW-Authenticate": f'Bearer realm="http://{host}/token"'}, b"[]")
    with pytest.raises(ImageError):
        registry.Registry(host).manifest(registry.Name(host, "locked/fl", "1"))
