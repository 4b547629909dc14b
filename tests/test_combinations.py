"""Games of parts drawn at random, in runs in which something happens between the steps.

Each part has tests of its own. Here what they are together is compared: with the same run without
interruptions, with gradients by hand, and with the same game written another way.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten

from bilevel import (
    Alternating,
    Bilevel,
    BilevelError,
    Forward,
    Iterative,
    Parametric,
    Penalty,
    Sampled,
    frozen,
)
from tests.by_hand import gradients
from tests.drawn_games import CORRECTED, FIRST, JOINT, Batch, build, drawn_batch, specs

# Few steps and samples, which are compared all the same.
pytestmark = pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")


def few(examples: int) -> settings:
    """The same games in every run; most of those drawn are refused, rightly."""
    return settings(
        max_examples=examples,
        phases=[Phase.generate],  # what is drawn is small, and finding a smaller one takes minutes
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )


def attempt(function: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """What it returns, or the library's error in words."""
    try:
        return function(*args, **how)
    except BilevelError as error:
        return str(error)


UNTOUCHED = ("leader", "solver", "adjoint", "flags", "trained")
"""By a step that fails. An optimizer may have moved: at an extrapolated point."""


def step(game: Bilevel, batch: Any) -> Any:
    """Its metrics, or the words in which the library refuses it, the players as before."""
    before = state(game)
    torch.manual_seed(0)
    metrics = attempt(game.step, batch)
    if isinstance(metrics, str):
        assert re.fullmatch(r".+: .+", metrics)
        after = state(game)
        assert all(same(before[part], after[part]) for part in UNTOUCHED)
    return metrics


def legal(spec: dict[str, Any], **how: Any) -> Bilevel:
    """The game, if the library does not refuse it when it is built or in the first step."""
    trial = attempt(build, spec, **how)
    if isinstance(trial, str):
        assert re.fullmatch(r".+: .+", trial)
        reject()
    if isinstance(step(trial, drawn_batch(4)), str):
        reject()
    return build(spec, **how)


def state(game: Bilevel) -> dict[str, Any]:
    """All that a run goes on from, copied."""
    players = (game.leader, game.solver)
    flags = [part.training for player in players for part in player.modules()]
    trained = [p.requires_grad for player in players for p in player.parameters()]
    return copy.deepcopy({**game.state_dict(), "flags": flags, "trained": trained})


def grads(game: Bilevel) -> list[Any]:
    players = (game.leader, game.solver)
    return copy.deepcopy([p.grad for player in players for p in player.parameters()])


def same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors and other things are the same, bit for bit."""
    (some, form), (others, its_form) = map(tree_flatten, (one, other))
    pairs = zip(some, others, strict=False)
    return form == its_form and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs
    )


def evaluated(game: Bilevel) -> Bilevel:
    """By a copy of the solver, since a warm-started one goes on from any answer."""
    before = grads(game)
    with frozen(game.solver), torch.no_grad():
        copy.copy(game.solver).solve(game.follower, game.leader, drawn_batch(4, 7))
    assert same(grads(game), before)
    return game


def differentiated(game: Bilevel) -> Bilevel:
    """By an adjoint of its own, on other data."""
    before, batch = grads(game), drawn_batch(4, 7)
    with frozen(game.solver), frozen(game.leader, differentiable=True):
        given = copy.copy(game.solver), game.follower, game.leader, batch
        value = copy.deepcopy(game.adjoint).solve(*given).value
        theta = [p for p in game.leader.parameters() if p.requires_grad]
        torch.autograd.grad(game.leader.loss(value, batch), theta, allow_unused=True)
    assert same(grads(game), before)
    return game


def refused(game: Bilevel) -> Bilevel:
    assert "cannot read a batch of type NoneType" in step(game, None)
    if not game.zero_sum and not isinstance(game.schedule, Alternating):  # whose solver has moved
        batch = drawn_batch(4, 9)
        assert "not finite" in step(game, batch._replace(t=batch.t * torch.nan))
    return game


def rolled_back(game: Bilevel) -> Bilevel:
    kept = copy.deepcopy(game.state_dict())
    step(game, drawn_batch(4, 8))
    game.load_state_dict(kept)
    return game


BETWEEN: dict[str, Callable[[Bilevel], Bilevel]] = {
    "copy": copy.deepcopy,
    "evaluate": evaluated,
    "differentiate": differentiated,
    "refuse": refused,
    "roll back": rolled_back,
}


def other_rates(game: Bilevel) -> None:
    for optimizer in filter(None, (game.leader_opt, game.solver_opt)):
        for group in optimizer.param_groups:
            group["lr"] *= 0.5


def another_step(game: Bilevel) -> None:
    if isinstance(game.solver, Iterative):
        game.solver.steps += 1


def other_parameters(game: Bilevel) -> None:
    weight = game.leader.model.norm.weight
    weight.requires_grad_(not weight.requires_grad)


CHANGES: dict[str, Callable[[Bilevel], Any]] = {
    "rates": other_rates,
    "steps": another_step,
    "parameters": other_parameters,
    "mode": lambda game: game.leader.train(not game.leader.training),
    "anew": lambda game: setattr(game.solver, "kept", None),
}


def loaded(game: Bilevel, spec: dict[str, Any], changes: list[str]) -> Bilevel:
    """Another game with this one's state, by way of a file."""
    file = io.BytesIO()
    torch.save(game.state_dict(), file)
    file.seek(0)
    fresh = build(spec)
    for change in changes:  # those that no state has
        CHANGES[change](fresh)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


RUNS = st.lists(st.sampled_from([*CHANGES]), max_size=2).flatmap(
    lambda changes: st.permutations(["save", *BETWEEN, *changes])
)


@pytest.mark.parametrize("schedule", [*FIRST, *CORRECTED], ids=lambda one: type(one).__name__)
@few(4)
@given(specs(), RUNS)
def test_what_happens_between_steps_changes_no_step(
    schedule: Any, spec: dict[str, Any], run: list[str]
) -> None:
    spec["schedule"] = schedule
    plain, game = legal(spec), build(spec)
    of_one_size = isinstance(game.solver, Parametric) or game.solver.warm_start
    changes: list[str] = []
    for number, action in enumerate(["copy", *run]):
        if action in CHANGES:
            changes.append(action)
            for one in (plain, game):
                CHANGES[action](one)
        else:
            before = state(game)
            game = loaded(game, spec, changes) if action == "save" else BETWEEN[action](game)
            now = state(game)
            assert all(same(now[part], before[part]) for part in UNTOUCHED)
        batch = drawn_batch(4 if of_one_size else 2 + number % 3, number)
        metrics = [step(one, batch) for one in (plain, game)]
        assert same(*metrics)
        assert same(state(plain), state(game))


@few(25)
@given(specs(), st.lists(st.sampled_from([*CHANGES]), max_size=2))
def test_players_move_along_the_gradients_by_hand(spec: dict[str, Any], run: list[str]) -> None:
    game = legal(spec)
    started = isinstance(game.adjoint, Forward) and spec["warm_start"]  # goes on from step to step
    if isinstance(game.adjoint, Penalty | Sampled) or started:  # estimates
        reject()
    now: dict[str, Any] = {}

    def compare(player: Any, expected: list[Any]) -> None:
        trained = [p for p in player.parameters() if p.requires_grad]
        for parameter, own in zip(trained, expected, strict=True):
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            own = torch.zeros_like(parameter) if own is None else own
            torch.testing.assert_close(found, own, rtol=1e-6, atol=1e-9)
        now["seen"] += 1

    def by_leader(*_: Any) -> None:
        theta, now["phi"] = gradients(game, now["batch"], now["kept"])
        compare(game.leader, theta)

    def by_solver(*_: Any) -> None:
        if isinstance(game.schedule, Alternating):  # the leader has moved, or is yet to move
            now["phi"] = gradients(game, now["batch"], now["kept"])[1]
        compare(game.solver, now["phi"])

    game.leader_opt.register_step_pre_hook(by_leader)
    if game.solver_opt is not None:
        game.solver_opt.register_step_pre_hook(by_solver)
    for number, change in enumerate([None, *run]):
        if change is not None:
            CHANGES[change](game)
        now.update(batch=drawn_batch(4, number), kept=game.solver.kept, seen=0)
        game.step(now["batch"])
        assert now["seen"]


def permuted(batch: Batch) -> Batch:
    return Batch(batch.x.flip(0), batch.t.flip(0))


def played(game: Bilevel, change: Callable[[Batch], Batch] = lambda batch: batch) -> list[Tensor]:
    """The leader's parameters as one, and its losses."""
    losses = []
    for number in range(3):
        torch.manual_seed(number)
        losses.append(game.step(change(drawn_batch(4, number)))["loss"])
    weights = torch.cat([*game.leader.model.w, *game.leader.model.norm.parameters()])
    return [weights.detach(), torch.stack(losses)]


PLAIN = ("sgd", "momentum")  # others make steps of the rounding where a gradient is 0
WAYS = ("order of names", "split y", "split parameter", "sense", "order of samples")


@few(25)
@given(specs((*FIRST, *CORRECTED), PLAIN), st.sampled_from(WAYS))
def test_the_same_game_written_another_way(spec: dict[str, Any], way: str) -> None:
    (form, update), how, change = spec["suited"], {}, {}
    other = dict(spec)
    if way == "order of names":
        if not form.startswith("named") or update == "mlp":  # which knows elements by their place
            reject()
        how = {"order": -1}
    elif way == "split y":
        pair = {"rows": "named rows", "shared": "named"}
        if form not in pair or update in JOINT:  # to which the rows of a tensor are samples
            reject()
        other["suited"] = pair[form], update
    elif way == "split parameter":
        how = {"split": False}
    elif way == "sense":
        other["sense"] = "min" if spec["sense"] == "max" else "max"
    else:
        if update is None and form not in ("shared", "named"):  # its y belong to places
            reject()
        change = {"change": permuted}
    game, twin = legal(spec), build(other, **how)
    torch.testing.assert_close(played(game), played(twin, **change), rtol=1e-6, atol=1e-6)


@few(20)
@given(specs(), st.permutations(range(4)), st.integers(1, 3))
def test_answers_of_samples_follow_the_samples(
    spec: dict[str, Any], order: list[int], count: int
) -> None:
    form, update = spec["suited"]
    apart = form in ("rows", "images") or (form == "named rows" and update not in JOINT)
    if not apart or update is None or spec["leader_mode"] == "train":  # which mixes the samples
        reject()
    game, batch = legal({**spec, "warm_start": False}), drawn_batch(4)
    game.step(batch)
    some = torch.tensor(order[:count])
    with frozen(game.solver), torch.no_grad():
        answers = [
            game.solver.solve(game.follower, game.leader, one).value
            for one in (batch, Batch(batch.x[some], batch.t[some]))
        ]
    whole, part = map(game.follower.joined, answers)
    torch.testing.assert_close(part, whole[some])
