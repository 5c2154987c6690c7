"""The house rules that a reviewer would otherwise have to look for: who imports whom, and what stands nowhere."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
FL: Final = ROOT / "launcher" / "fl"
TRAINERS: Final = ROOT / "trainers" / "fl_trainers"
LANES: Final = ("cuda", "rocm", "ascend", "xpu", "cpu")
# What the files of lanes/ begin with, by the lane that they belong to; other files there belong to all.
OWNERS: Final = {
    "cuda": ("cuda", "nvidia", "nvml"), "rocm": ("rocm", "amd", "kfd"), "ascend": ("ascend", "davinci"), "xpu": ("xpu", "intel"),
    "cpu": ("cpu",),
}
HEAVY: Final = frozenset((
    "torch", "torch_npu", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes", "safetensors", "matplotlib",
    "gguf", "tokenizers", "liger_kernel", "numpy",
))
LONGEST: Final = 400


def modules(folder: Path) -> list[Path]:
    """Every Python file below a folder."""
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, function-local imports and `from package import module` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, package: str) -> bool:
    """True when the dotted name is the package or stands below it."""
    return name == package or name.startswith(package + ".")


def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_below(folder: Path, package: str) -> list[str]:
    """`file:line name` of every import of a package below a folder."""
    every = ((path, line, name) for path in modules(folder) for line, name in imported(parse(path)))
    return [f"{path.relative_to(ROOT)}:{line} {name}" for path, line, name in every if within(name, package)]


def owner(module: str) -> str | None:
    """The lane that a module of lanes/ belongs to; None: all of them."""
    return next((lane for lane, prefixes in OWNERS.items() if module.split("_")[0] in prefixes), None)


def prints(tree: ast.AST) -> list[int]:
    """Lines that call print."""
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]


def broad_handlers(tree: ast.AST) -> list[int]:
    """Lines of `except:`, `except Exception` and `except BaseException`; those that clean up and end with `raise` swallow nothing."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(t is None or (isinstance(t, ast.Name) and t.id in ("Exception", "BaseException")) for t in types)
            if broad and not isinstance(node.body[-1], ast.Raise):
                found.append(node.lineno)
    return found


def lane_decisions(tree: ast.AST) -> list[int]:
    """Lines that compare something called lane with the name of one, or match on it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            constants = {c.value for side in sides for c in ast.walk(side) if isinstance(c, ast.Constant)}
            if any(_called_lane(side) for side in sides) and constants & set(LANES):
                found.append(node.lineno)
        elif isinstance(node, ast.Match) and _called_lane(node.subject):
            found.append(node.lineno)
    return found


def _called_lane(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "lane") or (isinstance(node, ast.Attribute) and node.attr == "lane")


def tracked() -> list[Path]:
    """The files that git knows; without git, every file that is not a build product."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
        if listing.returncode == 0 and listing.stdout:
            return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".git", ".venv", "build", "dist", "saves", "__pycache__", "node_modules", "images-out"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not skipped & set(p.relative_to(ROOT).parts) and ".egg-info" not in str(p)]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """`file:line` of every tracked line that the pattern is found in; binary files are left out."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            text = data.decode("utf-8", "replace")
            found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    return found


# Names are put together here, so that this file does not hold them.
REGISTRIES: Final = re.compile("|".join(re.escape(".".join(parts)) for parts in (
    ("pypi", "org"), ("pypi", "python", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"), ("security", "debian", "org"),
    ("ftp", "debian", "org"), ("archive", "ubuntu", "com"), ("registry", "npmjs", "org"), ("npmjs", "com"),
)))
MACHINE: Final = re.compile("|".join((
    "/" + "work/(shared|main)", "/" + r"work/\.", "/opt/" + "wheels", "/tmp/" + r"trainenv", "/tmp/" + r"b/",
)))


def test_fl_imports_only_the_config_of_the_trainer() -> None:
    found = [hit for hit in imports_below(FL, "fl_trainers") if not within(hit.split()[1], "fl_trainers.config")]
    # The package itself is imported where its folder is asked for, nothing of it.
    assert [hit for hit in found if hit.split()[1] != "fl_trainers"] == []
    assert {hit.split(":")[0] for hit in found} <= {"launcher/fl/paths.py"}


def test_the_trainer_never_imports_the_launcher() -> None:
    assert imports_below(TRAINERS, "fl") == []


def test_lanes_do_not_import_each_other() -> None:
    wrong = []
    for path in modules(FL / "lanes"):
        mine = owner(path.stem)
        for line, name in imported(parse(path)):
            if mine is not None and within(name, "fl.lanes") and name != "fl.lanes":
                theirs = owner(name.split(".")[2])
                wrong += [f"{path.name}:{line} {name}"] if theirs not in (None, mine) else []
    assert wrong == []


def test_lanes_know_nothing_of_plans_recipes_and_engines() -> None:
    above = ("plan", "select", "recipe", "portability", "engines", "images", "runs", "matrix", "evidence", "launch", "cli")
    assert [hit for name in above for hit in imports_below(FL / "lanes", f"fl.{name}")] == []


def test_nothing_imports_commands_but_the_group_by_name() -> None:
    outside = [hit for hit in imports_below(FL, "fl.commands") if not hit.startswith("launcher/fl/commands/")]
    assert outside == []


def test_engines_do_not_decide() -> None:
    deciders = ("select", "portability", "recipe", "lanes", "commands", "evidence")
    assert [hit for name in deciders for hit in imports_below(FL / "engines", f"fl.{name}")] == []


def test_decisions_touch_no_machine() -> None:
    """matrix, select, portability and plan are pure: they reach neither the host nor an engine nor a process."""
    doors = ("subprocess", "socket", "docker", "fl.host", "fl.engines")
    names = ("matrix", "select", "portability", "plan", "grants", "hardware", "memory")
    pure = [path for path in (FL / f"{name}.py" for name in names) if path.exists()]
    assert pure
    wrong = [f"{p.name}:{line} {name}" for p in pure for line, name in imported(parse(p)) if any(within(name, door) for door in doors)]
    assert wrong == []


def test_the_launcher_and_the_config_import_nothing_heavy() -> None:
    files = [*modules(FL), TRAINERS / "config.py"]
    wrong = [f"{p.relative_to(ROOT)}:{line} {name}" for p in files for line, name in imported(parse(p)) if name.split(".")[0] in HEAVY]
    assert wrong == []


def test_no_relative_imports() -> None:
    files = [*modules(FL), *modules(TRAINERS)]
    wrong = [f"{p.relative_to(ROOT)}:{n.lineno}" for p in files for n in ast.walk(parse(p)) if isinstance(n, ast.ImportFrom) and n.level]
    assert wrong == []


def test_only_ui_prints() -> None:
    assert [f"{p.relative_to(ROOT)}:{line}" for p in modules(FL) if p != FL / "ui.py" for line in prints(parse(p))] == []


def test_no_broad_except_in_the_launcher() -> None:
    assert [f"{p.relative_to(ROOT)}:{line}" for p in modules(FL) for line in broad_handlers(parse(p))] == []


def test_lanes_are_told_apart_only_in_lanes() -> None:
    outside = [p for p in modules(FL) if FL / "lanes" not in p.parents]
    assert [f"{p.relative_to(ROOT)}:{line}" for p in outside for line in lane_decisions(parse(p))] == []


def test_images_hold_no_code() -> None:
    assert list((ROOT / "images").rglob("*.py")) == []


def test_no_registry_is_named() -> None:
    assert lines_with(REGISTRIES) == []


def test_no_path_of_one_machine_is_named() -> None:
    assert lines_with(MACHINE) == []


def test_module_length_warns() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in [*modules(FL), *modules(TRAINERS)]}
    long = {name: lines for name, lines in lengths.items() if lines > LONGEST}
    for name, lines in long.items():
        warnings.warn(f"{name} has {lines} lines, more than {LONGEST}", stacklevel=1)
    if long:
        pytest.skip(f"over {LONGEST} lines: {', '.join(long)}")


@pytest.mark.parametrize(("source", "names"), [
    ("import torch", ["torch"]),
    ("def f():\n    from torch.nn import Linear", ["torch.nn.Linear"]),
    ("from fl import ui, cli", ["fl.ui", "fl.cli"]),
])
def test_imports_are_found_wherever_they_stand(source: str, names: list[str]) -> None:
    assert [name for _, name in imported(ast.parse(source))] == names


@pytest.mark.parametrize("source", [
    "try: pass\nexcept: pass",
    "try: pass\nexcept Exception: pass",
    "try: pass\nexcept (OSError, BaseException) as e: log(e)",
])
def test_broad_handlers_are_found(source: str) -> None:
    assert broad_handlers(ast.parse(source)) == [2]


def test_narrow_handlers_are_left_alone() -> None:
    assert broad_handlers(ast.parse("try: pass\nexcept (OSError, ValueError): pass")) == []
    assert broad_handlers(ast.parse("try: pass\nexcept BaseException:\n    clean()\n    raise")) == []


@pytest.mark.parametrize("source", [
    "if lane == 'cuda': pass", "x = plan.lane != 'cpu'", "y = lane in ('cuda', 'rocm')", "match lane:\n    case 'cuda': pass",
])
def test_lane_decisions_are_found(source: str) -> None:
    assert lane_decisions(ast.parse(source)) == [1]


@pytest.mark.parametrize("source", ["x = a.lane == lane", "x = [a for a in b if a.lane == chosen.lane]", "y = engine == 'docker'"])
def test_filters_by_lane_are_no_decisions(source: str) -> None:
    assert lane_decisions(ast.parse(source)) == []


def test_files_of_lanes_know_their_lane() -> None:
    assert [owner(name) for name in ("cuda", "nvidia_smi", "nvml", "pci", "values")] == ["cuda", "cuda", "cuda", None, None]
