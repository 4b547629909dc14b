"""`applications/gail.py`: the games it builds, its run from end to end, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bilevel import BilevelError
from bilevel.experiment import checkpoint
from bilevel.imitation import MountainCarExpert, demonstrate, save_demonstrations
from tests.applications.conftest import one_line

ENV = "MountainCar-v0"
SMALL = ["--steps", 320, "--environments", 4, "--demonstrations", 2, "--jobs", 1]


@pytest.fixture
def module(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("gail")


@pytest.fixture
def games(applications: Callable[[str], ModuleType]) -> ModuleType:
    return applications("gail_lib.games")


@pytest.fixture
def setting(games: ModuleType) -> Callable[..., Any]:
    def setting(method: str, updater: str = "coordinate", skip: float | None = 0.1) -> Any:
        policy = (0.01, 0.01, 0.99, 0.98)
        return games.Setting(ENV, method, 0, updater, skip, "finish", None, 2, *policy, None, 64, 4)

    return setting


@pytest.fixture
def early_checkpoints(applications: Callable[[str], ModuleType], monkeypatch: Any) -> None:
    """Every two iterations."""
    monkeypatch.setattr(applications("gail_lib.runs"), "CHECKPOINT_EVERY", 2)


def test_the_smoke_run(module: ModuleType, call: Callable[..., Any], tmp_path: Path) -> None:
    ended = call(module, "--smoke", "--out", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content) == {"config", "environment", "results"}
    by_method = {record["method"]: record for record in content["results"]}
    assert list(by_method) == ["gail", "l2l-gail", "bc", "constant"]
    assert all(not isinstance(v, dict | list) for r in content["results"] for v in r.values())
    assert by_method["constant"]["objective"] == pytest.approx(-2 * 0.693147, abs=1e-4)
    assert by_method["bc"]["return"] > -140  # pushing along the velocity is soon learned
    assert (tmp_path / "figure-6.png").read_bytes().startswith(b"\x89PNG")
    assert "| cloning |" in (tmp_path / "tables.md").read_text()
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2  # three methods that iterate, twice
    assert (rows[0]["return"], rows[0]["episodes"]) == ("-200", "16")
    for name in ("gail-0", "l2l-gail-coordinate-0", "bc-0", "constant-0"):
        assert (tmp_path / ENV / name / "policy.safetensors").exists()
    assert list((tmp_path / ENV / "gail-0" / "tensorboard").iterdir())


@pytest.mark.usefixtures("early_checkpoints")
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    one = [*SMALL, "--method", "l2l-gail"]
    assert call(module, *one, "--iterations", 4, "--out", tmp_path / "whole").status == 0
    assert call(module, *one, "--iterations", 2, "--out", tmp_path / "parts").status == 0
    for _ in range(2):  # the second finds nothing left to do
        on = call(module, *one, "--iterations", 4, "--out", tmp_path / "parts", "--resume")
        assert on.status == 0
    whole, parts = ((tmp_path / name / "curves.csv").read_text() for name in ("whole", "parts"))
    assert whole == parts
    logs = EventAccumulator(str(tmp_path / "parts" / ENV / "l2l-gail-coordinate-0" / "tensorboard"))
    assert [point.step for point in logs.Reload().Scalars("kl")] == [1, 2, 3, 4]
    other = call(module, *one, "--resume", "--max-kl", 0.02, "--out", tmp_path / "parts")
    assert "is a run with max_kl = 0.01, this one has max_kl = 0.02" in one_line(other)
    fewer = call(module, *one, "--resume", "--iterations", 3, "--out", tmp_path / "parts")
    assert re.search(
        "has run 4 iterations already, and 3 are requested: give --iterations 4", one_line(fewer)
    )
    for demonstrations in (["--demonstrations", 1], ["--every", 2]):
        other = call(module, *one, *demonstrations, "--resume", "--out", tmp_path / "parts")
        assert "is a run with demonstrations = " in one_line(other)


@pytest.mark.usefixtures("early_checkpoints")
def test_a_new_run_leaves_nothing_of_an_old_one_to_resume(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    one = [*SMALL, "--method", "gail", "--out", tmp_path, "--iterations"]
    assert call(module, *one, 2).status == 0
    assert call(module, *one, 1, "--max-kl", 0.02).status == 0  # too short for a checkpoint
    assert call(module, *one, 2, "--max-kl", 0.02, "--resume").status == 0


def test_a_checkpoint_of_another_application_is_refused(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint.save(tmp_path / ENV / "gail-0" / "checkpoint.pt", {"config": {"seed": 0}})
    other = call(module, *SMALL, "--method", "gail", "--resume", "--out", tmp_path)
    assert re.search("checkpoint.pt is a run with env = None, .*give the same", one_line(other))


@pytest.mark.usefixtures("early_checkpoints")
def test_a_new_run_that_is_stopped_leaves_none_of_a_later_seed_either(
    module: ModuleType,
    call: Callable[..., Any],
    applications: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = [*SMALL, "--method", "gail", "--seeds", 2, "--jobs", 1, "--iterations", 2]
    assert call(module, *two, "--out", tmp_path).status == 0
    assert len(list(tmp_path.glob("*/*/checkpoint.pt"))) == 2

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(applications("gail_lib.runs"), "run_one", stop)
    assert call(module, *two, "--out", tmp_path).status == 130
    assert not list(tmp_path.glob("*/*/checkpoint.pt"))


def test_a_finished_run_without_a_checkpoint_is_resumed_as_it_was_begun(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    """It is run anew, since it has too few iterations for a checkpoint."""
    one = [*SMALL, "--every", 20, "--method", "gail", "bc", "--out", tmp_path]
    assert call(module, *one, "--iterations", 2).status == 0
    policies = [tmp_path / ENV / name / "policy.safetensors" for name in ("gail-0", "bc-0")]
    before = [path.read_bytes() for path in policies]
    for arguments, told in (
        (["--max-kl", 0.02], "is a run with max_kl = 0.01, this one has max_kl = 0.02"),
        (["--iterations", 1], "has run 2 iterations already, and 1 are requested"),
        (["--demonstrations", 1], "is a run with demonstrations = "),
        (["--demonstrations", 1, "--method", "bc"], "is a run with demonstrations = "),
    ):
        ended = call(module, *one, "--iterations", 2, "--resume", *arguments)
        assert told in one_line(ended)
        assert [path.read_bytes() for path in policies] == before
    assert call(module, *one, "--iterations", 3, "--resume").status == 0
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 3


def test_cloning_of_a_single_pair_is_refused_before_anything_runs(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    few = ["--smoke", "--demonstrations", 1, "--every", 1000, "--out", tmp_path]
    line = one_line(call(module, *few, "--method", "gail", "bc"))
    assert "there is one pair of MountainCar-v0: bc fits" in line
    assert not (tmp_path / ENV).exists()


def test_the_folder_of_a_run_has_a_name_on_windows(setting: Callable[..., Any]) -> None:
    of_a_package = dataclasses.replace(setting("gail"), env="package:Name-v0")
    assert of_a_package.name == "package-Name-v0/gail-0"


@pytest.mark.parametrize(
    ("method", "updater"),
    [
        ("gail", "coordinate"),
        ("l2l-gail", "coordinate"),
        ("l2l-gail", "block"),
        ("constant", "coordinate"),
    ],
)
def test_every_game_moves_the_policy(
    games: ModuleType, setting: Callable[..., Any], method: str, updater: str
) -> None:
    shown = demonstrate(ENV, MountainCarExpert(), 1).subsample()
    trainer = games.make_trainer(setting(method, updater), *shown)
    first = trainer.iterate()
    second = trainer.iterate()
    assert second["kl"] > 0
    assert (first["norm"] == second["norm"]) == (method == "constant")


def test_cloning_needs_no_memory_for_an_updater(
    games: ModuleType, setting: Callable[..., Any]
) -> None:
    shown = demonstrate(ENV, MountainCarExpert(), 1).subsample()
    game = games.make_trainer(setting("bc", "dense"), *shown).game
    assert not list(game.solver.parameters())  # 324 million, of which check_memory does not know


def test_updaters_start_as_a_gradient_step_or_do_nothing(
    games: ModuleType, setting: Callable[..., Any]
) -> None:
    for updater in ("coordinate", "block", "dense"):
        for skip in (0.1, None):
            update = games.make_updater(setting("l2l-gail", updater, skip), 33)
            y, slope = torch.randn(2, 33)
            moved, _ = update(y, slope, None, None)
            torch.testing.assert_close(moved, y + (skip or 0) * slope)


def test_what_is_said_of_a_run(applications: Callable[[str], ModuleType], setting: Any) -> None:
    tables, runs = applications("gail_lib.tables"), applications("gail_lib.runs")
    expert = demonstrate(ENV, MountainCarExpert(), 5)
    curve = torch.cat(
        [torch.full((30,), -200.0), torch.full((30,), -110.0), torch.full((9,), -190.0)]
    )
    constant = dict.fromkeys(("objective", "accuracy", "norm", "episodes"), torch.ones(69))
    curves = constant | {"return": curve}
    run = runs.Run(setting("gail"), curves, torch.tensor([-120.0, -130.0]), 0.2)
    told = tables.record(run, expert)
    assert told["return"] == -125
    assert told["reached"] == 38  # eight of ten are enough for −132: −128
    assert told["worst_after"] == pytest.approx((-110 - 9 * 190) / 10)
    table = tables.tabulate(ENV, [told, {**told, "reached": None, "return": -200.0}])
    assert table.rows[0][:3] == ("GAIL", "−162.5 ± 53.0", "1 of 2, 38 to 38")


def test_each_episode_counts_the_same_and_not_each_iteration(
    applications: Callable[[str], ModuleType], setting: Any
) -> None:
    """After a restart short episodes end first: one of 20 steps is no iteration's mean of 500."""
    figure, runs = applications("gail_lib.figure"), applications("gail_lib.runs")
    curves = {
        "return": torch.tensor([torch.nan, 20.0, 500.0, 500.0, torch.nan]),
        "episodes": torch.tensor([0.0, 1.0, 9.0, 10.0, 0.0]),
    }
    run = runs.Run(setting("gail"), curves, torch.zeros(1), 0.0)
    mean = figure.mean_return(run, 2)
    assert mean[0].isnan()
    assert mean[1:].tolist() == pytest.approx([20, 452, 500, 500])


def test_environments_of_other_seeds_and_iterations_are_others(setting: Any) -> None:
    one, next_one = setting("gail"), dataclasses.replace(setting("gail"), seed=1)
    seeds = [
        each.env_seed(iteration) + env
        for each in (one, next_one)
        for iteration in (0, 25, 50)
        for env in range(one.environments)
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_name_without_a_version_is_no_name_of_a_result(module: ModuleType) -> None:
    args = module.Args(env=("CartPole",), method=("bc",))
    with (
        pytest.warns(UserWarning, match="latest versioned"),
        pytest.raises(BilevelError, match="CartPole is CartPole-v1 today"),
    ):
        module.check(args, module.plan_runs(args))
    args = module.Args(env=("gymnasium:CartPole",), method=("bc",))
    with (
        pytest.warns(UserWarning, match="latest versioned"),
        pytest.raises(BilevelError, match=r"give --env gymnasium:CartPole-v1$"),
    ):
        module.check(args, module.plan_runs(args))


def test_results_are_written_before_they_are_shown(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: Any) -> None:
        raise BilevelError("no table")

    monkeypatch.setattr(module, "tabulate", fail)
    cloned = [*SMALL, "--method", "bc", "--every", 20]
    assert "no table" in one_line(call(module, *cloned, "--out", tmp_path))
    assert {"results.json", "curves.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_results_are_written_whatever_becomes_of_the_film(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: Any) -> None:
        raise BilevelError("no film")

    monkeypatch.setattr(module, "check_rendering", lambda _: None)
    monkeypatch.setattr(module, "record_gif", fail)
    cloned = [*SMALL, "--method", "bc", "--every", 20]
    assert "no film" in one_line(call(module, *cloned, "--render", "--out", tmp_path))
    assert (tmp_path / "results.json").exists()
    assert (tmp_path / "figure-6.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--env MountainCar-v7", "no environment 'MountainCar-v7': did you mean MountainCar"),
        ("--env FrozenLake-v1", "policies read vectors"),
        ("--env", "no env is given"),
        ("--method", "no method is given"),
        ("--method trpo", "invalid choice 'trpo'"),
        ("--iterations 0", "iterations is 0: .*give 1, 2"),
        ("--seeds 0", "seeds is 0: .*give 1, 2"),
        ("--seed -1", "seed is -1: .*give 0"),
        ("--follower-lr 0", "follower_lr is 0.0: .*give a .* above 0"),
        ("--max-norm 0", "max_norm is 0.0: .*give a .* above 0"),
        ("--max-kl 0", "max_kl is 0.0: .*give a .* above 0"),
        ("--damping nan", "damping is nan: .*give a damping above 0"),
        ("--discount 1.5", "discount is 1.5: .*give 0 to 1"),
        ("--gae-lambda nan", "gae_lambda is nan: .*give 0 to 1"),
        ("--demonstrations 0", "demonstrations is 0: .*give 1, 2"),
        ("--demonstrations 1000", "demonstrations is 1000: 100 episodes of an expert"),
        ("--every 0", "every is 0: .*give 1, 2"),
        ("--expert nowhere.npz", "there is no file of demonstrations nowhere.npz"),
        ("--resume", "no such run in .*leave out --resume"),
    ],
)
def test_bad_input_gets_one_line(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path, arguments: str, told: str,
    monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.delattr(module, "run_all")  # it is told before hours are spent
    if "--expert" not in arguments:
        monkeypatch.delattr(module, "expert_demonstrations")  # and before an expert is trained
    line = one_line(call(module, "--smoke", "--out", tmp_path, *arguments.split()))
    assert re.search(told, line), line


def test_demonstrations_of_another_environment_are_refused(
    module: ModuleType, call: Callable[..., Any], tmp_path: Path
) -> None:
    save_demonstrations(tmp_path / "car.npz", demonstrate(ENV, MountainCarExpert(), 2))
    given = ["--env", "CartPole-v1", "--expert", tmp_path / "car.npz"]
    line = one_line(call(module, "--smoke", "--out", tmp_path, *given))
    assert "has demonstrations of MountainCar-v0, not CartPole-v1" in line
