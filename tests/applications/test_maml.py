"""`applications/maml.py`: three methods are one game, and adapting is worth what it should be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.applications.conftest import one_line


@pytest.fixture
def app(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("maml")


@pytest.fixture
def run(app: ModuleType, tmp_path: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: call(app, "--smoke", "--out", tmp_path / "run", *arguments)


def test_a_run_and_what_is_there_is_taken(run: Callable[..., Any], tmp_path: Path) -> None:
    run = partial(run, "--method", "maml", "joint")
    assert run().status == 0
    out = tmp_path / "run"
    content = json.loads((out / "results.json").read_text())
    assert list(content) == ["config", "environment", "results"]
    assert [one["method"] for one in content["results"]] == ["maml", "joint"]
    for one in content["results"]:  # each number of steps has an error of its own
        assert len({one[f"error_{steps}"] for steps in (0, 1, 5, 20)}) == 4
    assert list(out.glob("maml/tensorboard/events*"))
    kept = (out / "maml" / "start.safetensors").stat().st_mtime_ns
    assert run("--resume").status == 0
    assert (out / "maml" / "start.safetensors").stat().st_mtime_ns == kept
    assert json.loads((out / "results.json").read_text())["results"] == content["results"]
    line = one_line(run("--resume", "--seed", 1))
    assert "start.safetensors is a run with seed = 0, this one has seed = 1: a run is" in line
    assert (out / "maml" / "start.safetensors").stat().st_mtime_ns == kept
    assert run("--seed", 1).status == 0
    assert (out / "maml" / "start.safetensors").stat().st_mtime_ns != kept


def test_there_is_nothing_to_load(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "there is no start in" in one_line(run("--resume"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_stopped_is_resumed_as_it_was_begun(
    run: Callable[..., Any], app: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the old start of a later method, whose settings were others."""
    assert run("--method", "maml", "joint").status == 0
    learn = app.learn

    def stopped(args: Any, method: str, device: torch.device) -> Any:
        if method == "joint":
            raise KeyboardInterrupt
        return learn(args, method, device)

    with monkeypatch.context() as patch:
        patch.setattr(app, "learn", stopped)
        assert run("--method", "maml", "joint", "--seed", 1).status == 130
    assert run("--method", "maml", "joint", "--seed", 1, "--resume").status == 0


def test_a_step_is_that_of_the_paper(app: ModuleType) -> None:
    """MAML's gradient by its own formula: one step for each task, then the error elsewhere."""
    network = torch.nn.Linear(1, 1)
    leader = app.Initialization(network)
    follower = app.Adaptation(network)
    tasks = app.sine_waves(3, torch.Generator().manual_seed(0), torch.device("cpu"))
    expected = 0.0
    for given, held_out in zip(*([*zip(b.x, b.y, strict=True)] for b in tasks), strict=True):
        theta = [*network.parameters()]
        error = (torch.nn.functional.linear(given[0], *theta) - given[1]).square().mean()
        slopes = torch.autograd.grad(error, theta, create_graph=True)
        moved = [p - 0.01 * slope for p, slope in zip(theta, slopes, strict=True)]
        far = (torch.nn.functional.linear(held_out[0], *moved) - held_out[1]).square().mean()
        expected = expected + far / 3
    exact = torch.autograd.grad(expected, [*network.parameters()])
    solver = app.bilevel.Iterative(app.Gradient(0.01), 1)
    gradients = {}
    for adjoint in (app.bilevel.Unrolled(), app.bilevel.Detached()):
        y = adjoint.solve(solver, follower, leader, tasks).value
        gradients[repr(adjoint)] = torch.autograd.grad(
            leader.loss(y, tasks), [*network.parameters()]
        )
    for ours, theirs in zip(gradients["Unrolled()"], exact, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(gradients["Detached()"][0], exact[0])


def test_waves_are_those_of_the_paper(app: ModuleType) -> None:
    """Amplitudes from 0.1 to 5 and phases from 0 to π, read off twenty points on [−5, 5]."""
    waves = app.sine_waves(1000, torch.Generator().manual_seed(0), torch.device("cpu"))
    x, y = (torch.cat([getattr(points, name) for points in waves], 1) for name in "xy")
    assert -5 <= x.min() < -4.9
    assert 4.9 < x.max() <= 5
    a, b = torch.linalg.lstsq(torch.cat([x.sin(), -x.cos()], -1), y).solution.squeeze(-1).T
    for found, least, greatest in ((torch.hypot(a, b), 0.1, 5), (torch.atan2(b, a), 0, math.pi)):
        assert least - 1e-3 <= found.min() < least + 0.05
        assert greatest - 0.05 < found.max() <= greatest + 1e-3


def test_a_learned_start_adapts_better_than_one_of_all_tasks(
    app: ModuleType, tmp_path: Path
) -> None:
    args = app.Args(iterations=150, out=tmp_path)
    unseen = app.sine_waves(200, torch.Generator().manual_seed(1), torch.device("cpu"))
    errors = {}
    for method in ("maml", "joint"):
        leader, follower = app.learn(args, method, torch.device("cpu"))
        y = app.bilevel.Iterative(app.Gradient(0.01), 5).solve(follower, leader, unseen).value
        errors[method] = float(leader.loss(y, unseen).detach())
    assert errors["maml"] < 0.8 * errors["joint"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method reptile", "no method 'reptile': .*maml"),
        ("--method", "no method is given: there is nothing to do; name one"),
        ("--iterations 0", "iterations is 0"),
        ("--seed -1", "seed is -1"),
        ("--device gpu", "device 'gpu' is not available"),
        ("--iteration 3", "did you mean --iterations[?]"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Any], tmp_path: Path, arguments: str, message: str
) -> None:
    assert re.search(message, one_line(run(*arguments.split())))
    assert not (tmp_path / "run").exists()


def test_it_is_short(app: ModuleType) -> None:
    assert app.__file__ is not None
    assert len(Path(app.__file__).read_text().splitlines()) < 150
