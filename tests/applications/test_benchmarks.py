"""`applications/benchmarks/`: what a measurement prints is what the documentation shows."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from matplotlib.figure import Figure

from bilevel.imitation import MountainCarExpert, demonstrate, save_demonstrations
from bilevel.robustness import ImageSet
from bilevel.robustness.studies.arguments import TrainingArguments
from tests.applications.conftest import SIZES, Suite, one_line, write

TABLES = {
    "attack_strength": "attack strength",
    "learned_steps": "learned steps",
    "monitor": "monitor",
    "network_games": "cost between networks",
    "schedules": "cost of a schedule",
    "through_the_attacker": "through the attacker",
}


OTHERS = (
    "imitation.algorithms.adversarial.gail",
    "imitation.data.types",
    "imitation.rewards.reward_nets",
    "imitation.util.logger",
    "sb3_contrib",
    "stable_baselines3.common.env_util",
)
"""What the script for the package imitation imports from."""


@pytest.mark.parametrize("script", TABLES)
def test_the_screen_shows_the_columns_of_the_documentation(
    benchmarks: Callable[[str], ModuleType], call: Callable[..., Any], tmp_path: Path, script: str
) -> None:
    header = benchmarks("tables").TABLES[TABLES[script]]().splitlines()[0]
    ended = call(benchmarks(script), "--smoke", "--out", tmp_path)
    assert ended.status == 0, ended.err
    assert header.replace("1,000 stacked", "10 stacked") in ended.out
    assert json.loads((tmp_path / "results.json").read_text())["results"]


@pytest.mark.parametrize(
    ("script", "argument"),
    [
        ("carlini_wagner", "rounds"),
        ("carlini_wagner", "images"),
        ("hypergradient", "rounds"),
        ("hypergradient", "steps"),
        ("imitation", "iterations"),
        ("imitation", "rounds"),
        ("imitation", "seeds"),
        ("imitation", "steps"),
        ("monitor", "rounds"),
        ("network_games", "rounds"),
        ("network_games", "widths"),
        ("schedules", "rounds"),
        ("schedules", "steps"),
        ("schedules", "games"),
        ("step_cost", "rounds"),
        ("step_cost", "attacker_width"),
        ("step_cost", "batch_size"),
        ("step_cost", "channels"),
        ("step_cost", "image_size"),
        ("through_the_attacker", "seeds"),
        ("through_the_attacker", "rounds"),
    ],
)
def test_a_measurement_of_nothing_is_refused(
    benchmarks: Callable[[str], ModuleType],
    call: Callable[..., Any],
    tmp_path: Path,
    script: str,
    argument: str,
) -> None:
    ended = call(benchmarks(script), f"--{argument}", 0, "--out", tmp_path / "out")
    assert re.search(f"{argument[:-1]}.* is 0: .*give 1, 2", one_line(ended))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "script",
    ["attack_strength", "carlini_wagner", "hypergradient", "imitation", "monitor", "network_games",
     "schedules", "step_cost", "through_the_attacker"],
)  # fmt: skip
def test_the_results_of_another_application_are_kept(
    benchmarks: Callable[[str], ModuleType], call: Callable[..., Any], out: Path, script: str
) -> None:
    kept = (out / "results.json").read_bytes()
    assert "the results of adv_training.py" in one_line(
        call(benchmarks(script), "--smoke", "--out", out)
    )
    assert (out / "results.json").read_bytes() == kept


def test_an_interpreter_that_is_not_there_is_told_before_minutes_are_spent(
    benchmarks: Callable[[str], ModuleType], call: Callable[..., Any], tmp_path: Path
) -> None:
    ended = call(benchmarks("imitation"), "--imitation", tmp_path / "python")
    assert re.search("there is no interpreter .*: .*leave out --imitation", one_line(ended))


def test_a_stopped_run_goes_on_with_the_seeds_that_have_not_begun(
    benchmarks: Callable[[str], ModuleType], call: Callable[..., Any], tmp_path: Path
) -> None:
    sizes = (f"--{name.replace('_', '-')}={size}" for name, size in SIZES.items())
    tiny = [*sizes, "--epochs", 1, "--rounds", 1, "--attacker", "two-layer", "--attacker-width", 4]
    script = benchmarks("through_the_attacker")
    given = [*tiny, "--out", tmp_path]
    assert "no checkpoint" in one_line(call(script, *given, "--seeds", 2, "--resume"))
    assert call(script, *given, "--seeds", 1).status == 0
    assert call(script, *given, "--seeds", 2, "--resume").status == 0
    records = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [one["seed"] for one in records if "seed" in one] == [0, 0, 1, 1]


def test_attackers_of_as_many_steps_are_compared_seed_by_seed(
    benchmarks: Callable[[str], ModuleType],
) -> None:
    worst = {
        ("two-step-pgm", None): (0.5, 0.7),
        ("two-step-l2l", 0.002): (0.4, 0.5),
        ("two-step-l2l", 0.0005): (0.53, 0.71),
        ("pgm", None): (0.6, 0.6),
    }
    records = [
        {
            "dataset": "digits",
            "method": method,
            "attacker_lr": rate,
            "seed": seed,
            "worst_case": share,
            "pgm20": share + 0.1 * (method == "two-step-pgm"),
        }
        for (method, rate), shares in worst.items()
        for seed, share in enumerate(shares)
    ]
    table = benchmarks("tabulated.adversarial").learned_steps(records[::-1])
    assert table.splitlines()[2:] == [
        "| digits | 2 | 60.0 (50.0–70.0) | 62.0 (53.0–71.0) | 0.0005 "
        "| +2.0 ± 1.0 | -8.0 ± 1.0 | +2.0 ± 9.0 |",
        "| digits | 2 | 60.0 (50.0–70.0) | 45.0 (40.0–50.0) | 0.002 "
        "| -15.0 ± 5.0 | -25.0 ± 5.0 | -15.0 ± 5.0 |",
        "| digits | 10 | 60.0 | – | – | – | – | – |",
    ]


def test_going_on_is_compared_with_starting_anew_seed_by_seed(
    benchmarks: Callable[[str], ModuleType],
) -> None:
    anew, going_on = (
        [
            {"dataset": "digits", "method": method, "seed": seed, "worst_case": share, "pgm20": 0.5}
            for method, shares in worst.items()
            for seed, share in enumerate(shares)
        ]
        for worst in (
            {"fgsm": (0.5, 0.6), "pgm": (0.6, 0.6), "two-step-pgm": (0.5, 0.5)},
            {"grad-l2l": (0.7, 0.74), "fgsm": (0.7, 0.76)},
        )
    )
    table = benchmarks("tabulated.adversarial").warm_starts(anew, going_on)
    assert table.splitlines()[2:] == [
        "| digits | fgsm | – | 55.0 (50.0–60.0) | 73.0 (70.0–76.0) "
        "| +18.0 ± 2.0 | +0.0 ± 0.0 | +13.0 ± 3.0 | – |",
        "| digits | grad-l2l | 0.0005 | – | 72.0 (70.0–74.0) | – | – | +12.0 ± 2.0 | -1.0 ± 1.0 |",
    ]


def test_precisions_are_compared_seed_by_seed(benchmarks: Callable[[str], ModuleType]) -> None:
    exact, rounded = (
        [
            {"dataset": "digits", "method": "pgm", "seed": seed, "clean": 0.9}
            | {"pgm20": 0.5 + 0.1 * seed, "worst_case": 0.4 + 0.1 * seed - loss * (seed + 1)}
            for seed in order
        ]
        for loss, order in ((0.0, (0, 1)), (0.01, (1, 0)))
    )
    table = benchmarks("tabulated.adversarial").precisions(exact, rounded)
    assert table.splitlines()[2:] == [
        "| pgm | clean | 90.0 | 90.0 | +0.0 ± 0.0 |",
        "| pgm | PGM-20 | 55.0 (50.0–60.0) | 55.0 (50.0–60.0) | +0.0 ± 0.0 |",
        "| pgm | worst case | 45.0 (40.0–50.0) | 43.5 (39.0–48.0) | -1.5 ± 0.5 |",
    ]


def test_halved_images_are_means_of_four_pixels(
    benchmarks: Callable[[str], ModuleType],
) -> None:
    pixels = torch.randint(0, 250, (3, 1, 2, 5), dtype=torch.uint8)
    blocks = pixels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    blocks[..., ::2, ::2] += 4  # one of the four
    images = ImageSet(blocks, torch.tensor([0, 1, 0]), ("a", "b"))
    assert torch.equal(benchmarks("learned_steps").halve(images).images, pixels + 1)


def test_the_attacker_learns_at_the_rate_that_is_given(
    benchmarks: Callable[[str], ModuleType], call: Callable[..., Any], tmp_path: Path
) -> None:
    options = "--smoke", "--method", "two-step-l2l", "--attacker-lr", "0.25", "--warm-start"
    assert call(benchmarks("learned_steps"), *options, "--out", tmp_path).status == 0
    records = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {one["attacker_lr"] for one in records} == {0.25}
    assert {one["warm_start"] for one in records} == {True}


def test_bars_reach_from_the_least_to_the_greatest_seed(
    benchmarks: Callable[[str], ModuleType],
) -> None:
    worst = {"fgsm": (0.5, 0.6, 0.64), "pgm": (0.7,), "two-step-l2l": (0.4,)}
    records = [
        {"method": method, "worst_case": share}
        for method, shares in worst.items()
        for share in shares
    ]
    axes = Figure().subplots()
    benchmarks("learned_steps").draw_lines(axes, records)
    hand, learned = axes.containers
    assert hand.lines[0].get_ydata().tolist() == pytest.approx([58, 70])
    assert learned.lines[0].get_xydata().tolist() == [pytest.approx([2, 40], rel=0.03)]
    (bars,) = hand.lines[2]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([50, 64])


def test_what_the_battery_costs(
    suite: Suite, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`battery.py`: nothing more than its attacks, each on fewer images, with the given seed."""
    folder, out, module, seeds = write(tmp_path / "mine"), tmp_path / "out", suite("battery"), []

    def seeded(make: Any, *args: Any, seed: int, **given: Any) -> Any:
        seeds.append(seed)
        return make(*args, seed=seed, **given)

    for name in ("Battery", "AttackSettings"):
        monkeypatch.setattr(module, name, partial(seeded, getattr(module, name)))
    ended = call(module, folder, "--smoke", "--seed", 5, "--out", out)
    assert (ended.status, set(seeds)) == (0, {5})
    *costs, whole = json.loads((out / "results.json").read_text())["results"]
    alone, together = (
        {one["attack"]: one["passes"] for one in costs if one["how"] == how}
        for how in ("alone", "in battery")
    )
    assert alone.keys() == together.keys() == {"FGSM", "PGM-20"}
    assert all(together[attack] <= alone[attack] for attack in alone)
    assert whole["passes"] == pytest.approx(sum(together.values()) / max(alone.values()))
    shown = re.findall(r"(FGSM|PGM-20)\D+(\d+)\D+(\d+)", ended.out)  # an image's
    passes = [(name, alone[name] / 16, together[name] / 16) for name in alone]
    assert shown == [(name, f"{one:.0f}", f"{other:.0f}") for name, one, other in passes]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_study_of_several_seeds(
    benchmarks: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resumed: bool,
) -> None:
    """From the given seed on; what has not begun is not resumed, but for the first."""
    module = benchmarks("seeded")
    monkeypatch.setattr(module, "Study", lambda args, names: (args, names))
    checkpoint = tmp_path / "seed-5" / "pgm" / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    args = TrainingArguments(seed=3, out=tmp_path, resume=resumed)
    made, names = zip(*module.studies(args, ["pgm"], 3), strict=True)
    assert [one.seed for one in made] == [3, 4, 5]
    assert [one.out for one in made] == [tmp_path / f"seed-{seed}" for seed in (3, 4, 5)]
    assert [one.resume for one in made] == [resumed, False, resumed]
    assert [*names] == [["pgm"]] * 3


def test_an_iteration_of_the_other_package_is_one_rollout(
    benchmarks: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many steps as ours, also where the environments do not share them evenly."""
    save_demonstrations(tmp_path / "car.npz", demonstrate("MountainCar-v0", MountainCarExpert(), 1))
    packages = {name: MagicMock() for name in OTHERS}
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(sys, "argv", ["", "MountainCar-v0", str(tmp_path / "car.npz"), "100", "2"])
    trpo = packages["sb3_contrib"].TRPO
    trpo.return_value.num_timesteps = 2 * 112
    benchmarks("imitation_lib.imitation_gail").main()
    gail = packages["imitation.algorithms.adversarial.gail"].GAIL
    assert trpo.call_args.kwargs["n_steps"] == 7
    assert gail.call_args.kwargs["gen_train_timesteps"] == 112
    assert gail.return_value.train.call_args.args == (112,)


def test_iterations_without_the_end_of_an_episode_count(
    benchmarks: Callable[[str], ModuleType],
) -> None:
    imitation = benchmarks("imitation")
    means: list[float] = []
    for iteration, returns in enumerate(([20.0], [], [], [500.0])):
        imitation.append_mean(means, iteration, torch.tensor(returns))
    told = imitation.trpo_record("", 0, imitation.Args(), 1.0, means)
    assert (told["iterations to 490"], told["mean return"], told["last return"]) == (4, 260, 500)
    assert imitation.trpo_record("", 0, imitation.Args(), 1.0, [math.nan])["last return"] is None
