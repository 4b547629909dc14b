"""The recipes for learning to optimize, as they are printed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import bilevel
from tests.recipes import example, follow


def test_training_on_all_iterates(tmp_path) -> None:
    names = follow(example(tmp_path), "Proximal steps")
    names = follow(names, "Train a learned update on all its iterates")
    given = ("lasso", "training", "trajectory", "trained")
    lasso, game, path, solver = (names[name] for name in given)
    batch = {"A": torch.randn(32, 20, 40) / 20**0.5, "b": torch.randn(32, 20)}

    def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
        y, values = lasso.init(batch), []
        for _ in range(10):
            y, _ = path.update(y, None, lasso.context(y, batch), None)
            values.append(lasso.objective(None, y, batch).mean())
        return torch.stack(values).mean(), y

    mean, last = by_hand()
    slopes = torch.autograd.grad(mean, list(path.parameters()))
    torch.testing.assert_close(solver.solve(lasso, game.leader, batch).value, last)
    metrics = game.step(batch)
    torch.testing.assert_close(metrics["objective_after"], mean.detach())
    for parameter, slope in zip(path.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)
    for _ in range(60):
        game.step(batch)
    assert by_hand()[0] < 0.98 * mean


def test_windows_of_a_path_go_on(tmp_path) -> None:
    names = follow(example(tmp_path), "Proximal steps")
    names = follow(names, "Train a learned update on all its iterates")
    game, every, update = names["training"], names["every"], bilevel.updates.Gradient(0.01)
    batch = {"A": torch.randn(32, 20, 40) / 20**0.5, "b": torch.randn(32, 20)}
    whole = names["Path"](update, 6).solve(every, game.leader, batch, evaluate=False)
    windows = names["Path"](update, 3, warm_start=True)
    parts = [windows.solve(every, game.leader, batch, evaluate=False) for _ in range(2)]
    torch.testing.assert_close(torch.cat([part.value for part in parts], dim=1), whole.value)
    assert [whole.evaluations, *(part.evaluations for part in parts)] == [6, 3, 3]
    windows.kept = None
    again = windows.solve(every, game.leader, batch, evaluate=False).value
    torch.testing.assert_close(again, parts[0].value)


def test_networks_are_trained_by_what_was_trained_on_networks(tmp_path) -> None:
    names = follow(example(tmp_path), "Train networks with a learned optimizer")
    fit, learned, training, task = (names[n] for n in ("fit", "learned", "training", "task"))
    starts = [fit.init(task)["0.weight"] for _ in range(2)]
    assert not torch.equal(*starts)  # networks drawn anew
    before = [training.step(task)["objective_after"] for _ in range(5)]
    for _ in range(100):
        training.step(task)
    after = [training.step(task)["objective_after"] for _ in range(5)]
    assert sum(after) < 0.9 * sum(before)
    names["update"].load_state_dict(learned.update.state_dict())
    network = names["build"]()
    optimizer = bilevel.updates.LearnedOptimizer(network.parameters(), names["update"])
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(task["x"]), task["y"])
        loss.backward()
        optimizer.step()
    assert loss < 1.2 * sum(after) / 5  # as well as the solves that it was trained in


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_a_rate_is_tuned_by_all_steps_since_the_start(tmp_path) -> None:
    names = follow(example(tmp_path), "Train networks with a learned optimizer")
    names = follow(names, "Long solves in windows")
    tuned, fit, data = names["Tuned"](), names["fit"], names["data"]
    update = names["Decayed"](tuned)
    windows = bilevel.Iterative(update, 5, warm_start=True)
    forward, slopes = bilevel.Forward(), []
    solves = [
        (forward, windows),
        (forward, windows),
        (bilevel.Unrolled(), bilevel.Iterative(update, 10)),
    ]
    for adjoint, solver in solves:
        torch.manual_seed(0)
        weights = adjoint.solve(solver, fit, tuned, data).value
        slopes.append(
            torch.stack(torch.autograd.grad(tuned.loss(weights, data), tuned.parameters()))
        )
    torch.testing.assert_close(slopes[1], slopes[2], rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")
def test_an_optimizer_is_learned_by_evolution_strategies(tmp_path) -> None:
    names = follow(example(tmp_path), "Train networks with a learned optimizer")
    names = follow(names, "Long solves in windows")
    fit, task, evolution = names["fit"], names["task"], names["evolution"]

    def trained() -> float:
        torch.manual_seed(9)
        solver = bilevel.Iterative(names["small"], 40)
        return solver.solve(fit, evolution.leader, task).stats["objective_after"].item()

    before = trained()
    for _ in range(4):
        names["window"].kept = None
        for _ in range(10):
            evolution.step(task)
    assert trained() < 0.8 * before
