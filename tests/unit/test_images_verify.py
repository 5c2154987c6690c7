"""What verification asks of an image, and what it makes of the answers."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fl import ledger
from fl import matrix as rows
from fl.errors import UsageError
from fl.images import inside, leaks, proof, verify

MATRIX = rows.load()
CPU = MATRIX.stack("cpu-torch213")
GOOD: dict[str, Any] = {
    "python": "3.11", "lock_sha256": "a" * 64, "uid": verify.UID, "environment": {}, "differences": [], "beyond": [], "packages": [],
    "imports": [], "writable_home": True, "run": {"found": []}, "seconds": {"versions": 1, "requirements": 1, "imports": 1, "training": 1},
}  # fmt: skip
BAD: dict[str, Any] = {
    **GOOD, "python": "3.12", "lock_sha256": "b" * 64, "uid": 0, "differences": ["peft: x"], "beyond": ["evil 1"], "packages": ["y"],
    "imports": ["import trl: z"], "writable_home": False, "run": {"found": ["r"]},
}  # fmt: skip


def failed(checks: list[verify.Check]) -> dict[str, tuple[str, ...]]:
    return {one.name: one.found for one in checks if one.passed is False}


def test_every_difference_fails_the_check_of_its_name() -> None:
    assert failed(verify.fact_checks(GOOD, CPU, "a" * 64)) == {}
    found = failed(verify.fact_checks(BAD, CPU, "a" * 64))
    assert set(found) == {"lock", "python", "versions", "requirements", "imports", "uid", "home", "training"}
    assert found["versions"] == ("peft: x", "evil 1 is installed, and the lock does not have it")


def test_what_a_vendor_s_base_brings_is_not_beyond_the_lock() -> None:
    vendor = next(stack for stack in MATRIX.stacks if stack.torch_from == "base")
    found = verify.fact_checks({**GOOD, "python": vendor.python, "beyond": ["torch 2.10.0"]}, vendor, "a" * 64)
    assert failed(found) == {}


def test_a_serving_image_is_not_said_to_have_trained() -> None:
    (training,) = [one for one in verify.fact_checks({**GOOD, "run": None}, CPU, "a" * 64) if one.name == "training"]
    assert training.passed is None


def test_the_configuration_is_looked_at() -> None:
    labels = verify.labels_wanted(CPU, "train", "a", "b")
    config = {"User": "1000:1000", "Labels": labels, "Env": ["PATH=/opt/venv/bin"], "Entrypoint": None}
    image = {"Os": "linux", "Architecture": "amd64", "Config": config}
    assert failed(verify.config_checks(image, CPU, labels)) == {}
    wrong = {"User": "", "Labels": None, "Env": ["NVIDIA_VISIBLE_DEVICES=all"], "Entrypoint": ["/x"]}
    found = failed(verify.config_checks({"Os": "linux", "Architecture": "arm64", "Config": wrong}, CPU, labels))
    assert set(found) == {"platform", "labels", "user", "entrypoint", "environment"}
    assert "the image's user is root" in found["user"][0]


def test_labels_are_compared() -> None:
    wanted = verify.labels_wanted(CPU, "train", "a", "b")
    assert verify.label_problems(wanted, wanted) == []
    assert verify.label_problems({**wanted, "fl.stack": "other"}, wanted) == ["label fl.stack is other, not cpu-torch213"]


def test_versions_are_compared_with_what_is_installed() -> None:
    version = metadata.version("click")
    assert inside.differences(f"click=={version}\n") == []
    assert inside.differences("click==0.0.1\nno-such-package==1\n") == [
        f"click: the lock says 0.0.1, installed is {version}",
        "no-such-package: the lock says 1, installed is absent",
    ]


def test_imports_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inside.import_failures(["click", "PyYAML"]) == []
    broken = tmp_path / "fl_test_broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no libfoo')\n")
    (tmp_path / "fl_test_broken-1.dist-info").mkdir()
    (tmp_path / "fl_test_broken-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fl-test-broken\nVersion: 1\n")
    (tmp_path / "fl_test_broken-1.dist-info" / "top_level.txt").write_text("fl_test_broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert inside.import_failures(["click", "fl-test-broken"]) == ["import fl_test_broken: ImportError: no libfoo"]
    (broken / "__init__.py").write_text("import os\nos._exit(3)\n")
    assert inside.import_failures(["click", "fl-test-broken"]) == ["import fl_test_broken: ended the process"]


def test_a_package_that_no_lock_has_is_beyond_it() -> None:
    text = "".join(f"{one.metadata['Name']}=={one.version}\n" for one in metadata.distributions() if one.metadata["Name"] != "click")
    assert inside.beyond(text) == [f"click {metadata.version('click')}"]


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([{"event": "step", "step": 1, "loss": 2.0}, {"event": "step", "step": 2, "loss": 1.5}], None),
        ([{"event": "step", "step": 1, "loss": 2.0}], "of steps [1]"),
        ([{"event": "step", "step": 1, "loss": 2.0}, {"event": "step", "step": 2}], "of steps [1]"),
        ([{"event": "step", "step": 1, "loss": float("nan")}, {"event": "step", "step": 2, "loss": 1.0}], "of steps [2]"),
        ([{"event": "start"}], "of steps none"),
    ],
)
def test_a_tiny_run_is_two_steps_with_losses(events: list[dict[str, Any]], problem: str | None) -> None:
    found = inside.step_problems("\n".join(json.dumps(one) for one in events))
    assert found == [] if problem is None else problem in found[0]


def test_sizes_are_the_bytes_of_the_largest_and_of_the_rest() -> None:
    found = inside.sizes()
    assert {one["kind"] for one in found} == {"package"}
    named = [one["bytes"] for one in found[:-1]]
    assert named == sorted(named, reverse=True) and named[0] > 1_000_000
    assert found[-1]["what"] == "all others"


def test_what_a_system_package_has_there_was_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / "libpython3.13-dev.list").write_text(f"/.\n{tmp_path}/src\n{tmp_path}/src/python3.13\n")
    assert inside.packaged(tmp_path / "absent") == frozenset()
    for name in ("python3.13", "lock.txt"):
        (tmp_path / "src" / name).mkdir(parents=True)
    everything = inside.packaged(tmp_path / "info")
    monkeypatch.setattr(inside, "_EMPTY", (f"{tmp_path}/src",))
    monkeypatch.setattr(inside, "_wheels", lambda root: iter(()))
    monkeypatch.setattr(inside, "_PRIVATE", ())
    monkeypatch.setattr(inside, "packaged", lambda info: everything)
    assert inside.left_behind() == [f"{tmp_path}/src/lock.txt"]


def test_wheels_that_were_kept_are_found_and_python_s_own_are_not(tmp_path: Path) -> None:
    for name in ("opt/cache/torch-1-py3-none-any.whl", "usr/lib/python3/ensurepip/_bundled/pip-1.whl", "opt/readme"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(inside._wheels(tmp_path)) == [f"{tmp_path}/opt/cache/torch-1-py3-none-any.whl"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("RUN pip install --index-url https://me:hunter22@i.example/simple x", "a password in a URL"),
        ("HF_TOKEN=abcdefgh", "called secret"),
        ("ENV API_KEY=0123456789", "called secret"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("RUN echo -----BEGIN CERTIFICATE-----", "certificates"),
        ("x=" + "hf_" + "a" * 30, "Hugging Face"),
        ("x=" + "ghp_" + "a" * 36, "GitHub"),
        ("x=" + "AKIA" + "A" * 16, "AWS"),
    ],
)
def test_secrets_are_known_by_their_form(text: str, what: str) -> None:
    found = leaks.leaks({"step 3 of its history": text}, {})
    assert len(found) == 1 and what in found[0] and found[0].startswith("step 3 of its history holds")
    assert not any(word in found[0] for word in ("hunter22", "abcdefgh", "0123456789"))


@pytest.mark.parametrize(
    "text",
    ["RUN . /run/secrets/index", "HF_TOKEN_PATH=/run/secrets/token", "ENV PATH=/opt/venv/bin", "https://i.example/simple", "NO_TOKEN= x",
     "RUN tokenizers==0.22 --hash=sha256:00"],
)  # fmt: skip
def test_what_only_looks_like_a_secret_is_let_go(text: str) -> None:
    assert leaks.leaks({"x": text}, {}) == []


def test_this_machine_s_own_secrets_are_looked_for() -> None:
    own = leaks.own(
        {"CI_TOKEN": "s3cret-value", "SHORT_TOKEN": "abc", "TOKEN_FILE": "/etc/token", "HOME": "/root"},
        ["https://me:index-pass@i.example/simple", "https://e.example/simple"],
    )
    assert own == {"s3cret-value": "the value of CI_TOKEN", "index-pass": "the password of i.example"}
    found = leaks.leaks({"its labels": '{"note": "s3cret-value"}', "its environment": "A=index-pass"}, own)
    assert found == ["its labels holds the value of CI_TOKEN", "its environment holds the password of i.example"]


def test_the_report_lists_what_is_wrong_and_not_what_was_not_seen() -> None:
    checks = (verify.check("a", []), verify.check("b", ["x", "y"]), verify.Check(name="c", passed=None, found=("no device",)))
    report = verify.Report(
        reference="r", stack="s", flavor="train", platform="linux/amd64", id="i", digest=None, lock_sha256="l", time="t", checks=checks,
        sizes=(),
    )  # fmt: skip
    document = report.document()
    assert document["problems"] == ["x", "y"]
    assert document["schema"] == 1
    assert [one["passed"] for one in document["checks"]] == [True, False, None]
    assert {"reference", "stack", "checks", "sizes", "problems"} <= document.keys()
    assert "proof" not in document


def report(passed: bool) -> verify.Report:
    config = {"model": {"name": "builtin/tiny-qwen3", "kind": "tiny"}, "method": {"stage": "sft", "finetuning_type": "lora"}}
    told = {"model": {"model_type": "qwen3", "parameters": 7}, "metrics": {"loss": [2.0, 1.5]}, "versions": {"torch": "2.13.0+cpu"}}
    training = verify.check("training", [] if passed else ["a run of two steps failed (1)"])
    return verify.Report(
        reference="fl-train:x", stack=CPU.id, flavor="train", platform="linux/amd64", id="i", digest="sha256:" + "d" * 64,
        lock_sha256="l" * 64, time="t", checks=(verify.check("lock", []), verify.check("versions", []), training), sizes=(),
        proof={"config": json.dumps(config), "record": json.dumps(told), "trainer_sha256": "t" * 64},
    )  # fmt: skip


@pytest.mark.parametrize("passed", [True, False])
def test_the_tiny_run_is_evidence_that_a_ledger_takes(passed: bool, tmp_path: Path) -> None:
    record = proof.record(MATRIX, CPU, report(passed))
    assert (record["outcome"], record["lane"], record["stack"]) == ("passed" if passed else "failed", "cpu", CPU.id)
    assert record["model"]["name"] == "builtin/tiny-qwen3"
    assert record["environment"]["matches_lock"] is True
    assert record["image"] == {"reference": "fl-train:x", "digest": "sha256:" + "d" * 64}
    assert record["accelerator"]["count"] == 0
    assert (record["failure"] is None) is passed
    assert ledger.open_record(ledger.add(tmp_path, record)) == record


def test_no_device_is_no_evidence_for_devices() -> None:
    proof.allowed(CPU)
    with pytest.raises(UsageError, match="cuda130-torch214 is for devices") as caught:
        proof.allowed(MATRIX.stack("cuda130-torch214"))
    assert "fl conform --stack cuda130-torch214" in caught.value.remedy
