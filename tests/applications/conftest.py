"""An application run in this process, as its command line runs it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from bilevel import commandline

SCRIPT = Path(__file__).parents[2] / "applications" / "adv_training.py"
SIZES = {"train_size": 40, "validation_size": 20, "test_size": 10}


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("adv_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["adv_training"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(
    app: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """Trains plainly for one epoch on few images, unless arguments say otherwise."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's
    tiny = ["--method", "plain", "--epochs", 1, "--out", tmp_path / "run"]
    tiny += [word for name, size in SIZES.items() for word in (f"--{name}", size)]

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, [*tiny, *arguments])])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            commandline.run(app.main, app.Args)
        return Ended(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run: Callable[..., Ended]) -> Callable[..., str]:
    """Runs it on bad input and gives its one line."""

    def refused(*arguments: object) -> str:
        ended = run(*arguments)
        assert ended.status == 2
        assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
        return ended.err

    return refused


@pytest.fixture(scope="session")
def finished(app: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run."""
    out = tmp_path_factory.mktemp("finished")
    app.main(app.Args(method=("plain",), epochs=1, **SIZES, out=out))
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder, where the next run writes."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
