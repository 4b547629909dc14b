"""An application run in this process, as its command line runs it."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from bilevel.experiment import commandline
from bilevel.robustness import About, Attacker, save_trained

APPLICATIONS = Path(__file__).parents[2] / "applications"
BENCHMARKS = APPLICATIONS / "benchmarks"
Suite = Callable[[str], ModuleType]
Part = Callable[[str], ModuleType]
SIZES = {"train_size": 40, "validation_size": 20, "test_size": 10}


def write(folder: Path, method: str = "grad-l2l", **about: object) -> Path:
    """An untrained classifier and its attacker, as a training run leaves them."""
    settings = {"model": "small-cnn", "channels": 1, "classes": 10, "dataset": "digits"}
    what = About(method, **settings | about, epsilon=0.2, attacker=Attacker("two-layer", 4))
    torch.manual_seed(what.seed)
    save_trained(folder, what, what.classifier(), what.solver())
    return folder


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def applications() -> Iterator[Callable[[str], ModuleType]]:
    """An application's module by name; they find each other as when one is run."""
    sys.path.insert(0, str(APPLICATIONS))
    yield importlib.import_module
    sys.path.remove(str(APPLICATIONS))


@pytest.fixture(scope="module")
def benchmarks(applications: Suite) -> Iterator[Suite]:
    """A benchmark's module by name."""
    sys.path.insert(0, str(BENCHMARKS))
    yield applications
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def suite(applications: Suite) -> Iterator[Suite]:
    """A benchmark, or a module of that of GPUs, by its name."""
    sys.path.insert(0, str(BENCHMARKS))
    scripts = "battery", "gpu_suite", "step_cost"
    yield lambda name: applications(name if name in scripts else f"suite.{name}")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="session")
def part(applications: Part) -> Part:
    """A module of hyper-cleaning, by its name."""
    return lambda name: applications(f"hyper_cleaning_lib.{name}")


@pytest.fixture(scope="session")
def app(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("adv_training")


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs an application's command line."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's

    def call(module: ModuleType, *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        capsys.readouterr()
        read = getattr(module, "read_arguments", commandline.read)
        with pytest.raises(SystemExit) as end:
            commandline.run(module.main, module.Args, read)
        return Ended(end.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def run(app: ModuleType, tmp_path: Path, call: Callable[..., Ended]) -> Callable[..., Ended]:
    """Trains plainly for one epoch on few images, unless arguments say otherwise."""
    tiny = ["--method", "plain", "--epochs", 1, "--out", tmp_path / "run"]
    tiny += [word for name, size in SIZES.items() for word in (f"--{name}", size)]
    return lambda *arguments: call(app, *tiny, *arguments)


def one_line(ended: Ended) -> str:
    """The one line that bad input gets."""
    assert ended.status == 2
    assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
    return ended.err


@pytest.fixture
def refused(run: Callable[..., Ended]) -> Callable[..., str]:
    """Runs it on bad input and gives its one line."""
    return lambda *arguments: one_line(run(*arguments))


@pytest.fixture(scope="session")
def finished(app: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["adv_training.py"])  # by which the results are known
        app.main(app.Args(method=("plain",), epochs=1, **SIZES, out=out))
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, where the next run writes."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
