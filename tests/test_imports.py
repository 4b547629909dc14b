"""The rooms: the core knows no kit, and importing the library is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bilevel

ROOT = Path(bilevel.__file__).parent
APPLICATIONS = ROOT.parent / "applications"
KITS = {"robustness", "imitation"}
CORE = [file for file in ROOT.rglob("*.py") if file.relative_to(ROOT).parts[0] not in KITS]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_core_imports_no_kit(file: Path) -> None:
    kits = {f"bilevel.{kit}" for kit in KITS}
    assert not {name for name in imported(file) if any(name.startswith(kit) for kit in kits)}


@pytest.mark.parametrize("kit", sorted(KITS))
def test_a_kit_imports_no_other_kit(kit: str) -> None:
    others = {f"bilevel.{other}" for other in KITS - {kit}}
    for file in (ROOT / kit).rglob("*.py"):
        assert not {name for name in imported(file) if any(name.startswith(o) for o in others)}


ROOMS = ("data", "networks", "threats", "methods", "attacks", "evaluation", "training", "studies")


def test_the_rooms_of_the_image_kit_import_those_before_them_only() -> None:
    """Second are what classifiers are trained by, and what was trained, which attacks read."""
    kit = ROOT / "robustness"
    files = {room: [*(kit / room).rglob("*.py")] for room in ROOMS}
    files["methods"] = [kit / f"{name}.py" for name in ("methods", "recipe", "trained")]
    names = dict.fromkeys(("methods", "recipe", "trained"), "methods") | {r: r for r in ROOMS}
    for room, own in files.items():
        assert own
        reached = {
            names.get(name.removeprefix("bilevel.robustness.").partition(".")[0])
            for file in own
            for name in imported(file)
            if name.startswith("bilevel.robustness.")
        }
        later = {*ROOMS[ROOMS.index(room) + 1 :]} & reached
        assert not later, f"{room} imports {later}"


@pytest.mark.parametrize("name", ["gail", "learned_follower", "limit_cycles", "maml"])
def test_an_application_without_images_imports_no_image_kit(name: str) -> None:
    files = [*APPLICATIONS.glob(f"{name}.py"), *APPLICATIONS.glob(f"{name}_lib/*.py")]
    assert files
    for file in files:
        assert not [one for one in imported(file) if one.startswith("bilevel.robustness")], file


def test_importing_needs_torch_and_numpy_alone_and_is_light() -> None:
    """Nor is a part of torch imported that ``import torch`` leaves out, such as its compiler."""
    code = (
        "import sys, torch; before = {*sys.modules}; import bilevel;"
        "print(*{*sys.modules} - before - {*sys.stdlib_module_names})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    packages = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    assert packages <= {"bilevel", "numpy"}


def test_the_image_kit_imports_what_few_of_its_functions_need_where_they_need_it() -> None:
    heavy = (
        "triton torchvision sklearn matplotlib gymnasium tyro rich tensorboard safetensors scipy"
    )
    code = (
        "import sys, bilevel.robustness;"
        f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"
