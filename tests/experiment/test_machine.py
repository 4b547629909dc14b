"""The device of a run, and what ``results.json`` says of the machine and the code."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from bilevel import BilevelError, experiment
from bilevel.experiment import machine


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """GPUs are there; which of them became the current one."""
    seen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Fast {device.index}")
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    return seen


@pytest.mark.parametrize(
    ("name", "device"),
    [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), ("cpu:0", "cpu:0")],
)
def test_the_device_of_a_name(current: list[torch.device], name: str, device: str) -> None:
    """A GPU that is named by its number becomes the current one."""
    assert experiment.pick_device(name) == torch.device(device)
    assert current == ([torch.device(device)] if name == "cuda:1" else [])


def test_auto_takes_the_processor_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert experiment.pick_device("auto") == torch.device("cpu")


def test_what_results_depend_on(
    current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "--seed", "1"])
    monkeypatch.setattr(machine.distributed, "world_size", lambda: 2)
    found = experiment.environment(torch.device("cuda:1"))
    assert found["command"] == "python app.py --seed 1"
    assert found["device"] == "cuda: Fast 1"
    assert (found["threads"], found["processes"]) == ("1", "2")
    assert (found["python"], found["torch"]) == (platform.python_version(), torch.__version__)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_the_processor_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "Path", lambda _: told)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert experiment.environment(torch.device("cpu"))["device"] == "cpu: riscv64"
    told.write_text("flags\t: none\n")
    assert experiment.environment(torch.device("cpu"))["device"] == "cpu: riscv64"
    monkeypatch.setattr(machine.platform, "processor", lambda: "powerpc")
    assert experiment.environment(torch.device("cpu"))["device"] == "cpu: powerpc"
    told.write_text("processor\t: 0\nmodel name\t: Abacus: second edition \nflags\t: none\n")
    found = experiment.environment(torch.device("cpu"))["device"]
    assert found == "cpu: Abacus: second edition"


def test_the_checksum_is_of_library_application_and_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, app = tmp_path / "bilevel", tmp_path / "app.py"
    (library / "experiment").mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(library / "experiment" / "machine.py"))
    monkeypatch.setattr(sys, "argv", [str(app)])
    seen = [experiment.code()]  # the application is no file, as of python -c
    part = tmp_path / "app_lib" / "part.py"
    part.parent.mkdir()
    for file in (library / "game.py", library / "experiment" / "machine.py", app, part):
        file.write_text(file.name)
        seen.append(experiment.code())
    monkeypatch.setattr(torch, "__version__", "0.0")
    seen.append(experiment.code())
    assert len(set(seen)) == 6
    (tmp_path / "other.py").write_text("of no concern")
    assert experiment.code() == seen[-1]
    assert all(len(bytes.fromhex(checksum)) == 8 for checksum in seen)


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError])
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    """A torch without CUDA raises the one, a machine without a GPU the other."""

    def empty(*_: object, **__: object) -> None:
        raise kind("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(BilevelError, match=r"'cuda' is not available \(Torch not .*--device auto"):
        experiment.pick_device("cuda")
