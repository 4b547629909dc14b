"""`applications/hyper_cleaning.py` as a user runs it, and what it learns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bilevel import Bilevel, BilevelError
from bilevel.experiment.weights import load_weights, read_about
from bilevel.robustness import Batch
from tests.applications.conftest import Part, one_line
from tests.robustness.data.test_sources import write_fashion_mnist

REFERENCES = ("uniform", "right only", "held out")


@pytest.fixture
def app(applications: Part) -> ModuleType:
    return applications("hyper_cleaning")


@pytest.fixture
def run(app: ModuleType, tmp_path: Path, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: call(app, "--smoke", "--out", tmp_path / "run", *arguments)


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")  # training is short
def test_a_run_with_several_adjoints(
    run: Callable[..., Any], app: ModuleType, part: Part, tmp_path: Path
) -> None:
    names = ["recomputed", "truncated", "implicit"]
    ended = run("--adjoint", *names)
    assert (ended.status, ended.err) == (0, "")
    assert "40% of 1000 labels wrong" in ended.out
    out = tmp_path / "run"
    assert (out / "hyper_cleaning.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out / "results.json").read_text())
    assert list(content) == ["config", "environment", "results"]
    assert [one["weights"] for one in content["results"]] == [*REFERENCES, *names]
    for record in content["results"]:
        assert 0.5 < record["accuracy"] <= 1
        if record["weights"] not in REFERENCES:
            assert record["auc"] > 0.7
            assert record["peak_mib"] > 0
        folder = out / record["weights"]
        about = read_about(folder / "network.safetensors")
        assert about["weights"] == record["weights"]
        data = part("data").load("digits", seed=0)
        network = data.network("linear")
        load_weights(folder / "network.safetensors", network)
        assert part("metrics").accuracy(network, data) == pytest.approx(record["accuracy"])
    assert list(out.glob("implicit/tensorboard/events*"))
    assert len(names) == len(list(out.glob("*/checkpoint.pt")))


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")  # training is short
@pytest.mark.parametrize("adjoint", ["unrolled", "implicit", "sampled"])
def test_a_resumed_run_is_the_one_that_was_never_stopped(
    app: ModuleType, tmp_path: Path, adjoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = Bilevel.step
    monkeypatch.setattr(
        Bilevel, "step", lambda game, batch: steps.append(game.steps) or step(game, batch)
    )

    def learned(folder: str, iterations: int, *, resume: bool = False) -> Any:
        out = tmp_path / folder
        args = app.Args(steps=5, iterations=iterations, train_size=50, out=out, resume=resume)
        return app.learn(args, adjoint, data)

    data = app.load("digits", seed=0, train_size=50)
    torch.manual_seed(0)
    whole = learned("whole", 4)
    torch.manual_seed(0)
    learned("stopped", 2)
    torch.manual_seed(7)  # it goes on with the random numbers of the checkpoint
    resumed = learned("stopped", 4, resume=True)
    assert torch.equal(whole.leader.logits, resumed.leader.logits)
    assert whole.leader.logits.ne(0).all()
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3]
    assert resumed.seconds > 0


def test_a_run_that_begins_anew_leaves_no_checkpoint_of_an_earlier_one(
    app: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With which --resume would go on, if it is stopped before it has its own."""
    few = ["--train-size", 50, "--steps", 5, "--iterations", 1, "--out", tmp_path]
    few += ["--adjoint", "unrolled", "truncated"]
    assert call(app, *few).status == 0
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == 2

    def stop(*_: Any) -> None:
        raise BilevelError("stopped")

    monkeypatch.setattr(app, "learn", stop)
    assert call(app, *few, "--resume").status == 2
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == 2
    assert call(app, *few).status == 2
    assert not list(tmp_path.glob("*/checkpoint.pt"))


@pytest.mark.filterwarnings("ignore::bilevel.HypergradientWarning")  # training is short
@pytest.mark.parametrize(("adjoint", "before"), [("unrolled", 0), ("implicit", 10)])
def test_where_answers_are_kept_there_is_one_before_the_weights_move(
    app: ModuleType, part: Part, tmp_path: Path, adjoint: str, before: int, monkeypatch: Any
) -> None:
    """Ten solves of a few steps each, in a run's beginning only; here each takes a second."""
    solves: list[int] = []
    solve, clock = Bilevel.solve, SimpleNamespace(perf_counter=lambda: float(len(solves)))
    monkeypatch.setattr(part("trainer"), "time", clock)
    monkeypatch.setattr(
        Bilevel, "solve", lambda game, batch: solves.append(game.steps) or solve(game, batch)
    )
    args = app.Args(steps=5, iterations=1, train_size=50, out=tmp_path)
    data = app.load("digits", seed=0, train_size=50)
    app.learn(args, adjoint, data)
    args.iterations, args.resume = 2, True
    assert app.learn(args, adjoint, data).seconds == before + 2
    assert solves == [0] * before + [0, 1]


def test_each_step_is_told_with_its_metrics_and_kept(
    app: ModuleType, part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("trainer"), "SAVE_EVERY", 0.0)
    data = app.load("digits", seed=0, train_size=50)
    args = app.Args(steps=5, iterations=1, train_size=50, out=tmp_path)
    learning = app.learn(args, "unrolled", data)
    weights = learning.leader.weights

    def stop(steps: int, metrics: dict[str, float]) -> None:
        if steps == 3:
            assert metrics["auc"] == part("metrics").roc(learning.leader.weights, data.wrong).auc
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learning.train(9, stop)
    learning.resume()
    assert learning.game.steps == 2
    assert not torch.equal(learning.leader.weights, weights)


def test_wrong_labels_lose_their_weight(app: ModuleType, part: Part, tmp_path: Path) -> None:
    """Ten moves of the weights tell most of them."""
    args = app.Args(iterations=10, steps=30, lr=0.3, out=tmp_path)
    data = app.load("digits", seed=0)
    weights = app.learn(args, "unrolled", data).leader.logits.detach().sigmoid()
    scores = part("metrics")
    assert scores.roc(weights, data.wrong).auc > 0.95
    assert scores.found(weights, data.wrong)["found"] > 0.8
    assert scores.found(weights, data.wrong)["false_alarms"] < 0.1
    learned = app.make_leader(args, data)
    learned.logits.data = torch.logit(weights)
    networks = [scores.train(one, data, 1.0, 200) for one in (learned, app.make_leader(args, data))]
    better, uniform = (scores.accuracy(network, data) for network in networks)
    assert better > uniform + 0.02


def test_a_run_is_as_the_arguments_say(
    app: ModuleType, part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final network is trained for five times as many steps."""
    given = {"model": "mlp", "steps": 3, "step": 0.3, "decay": 0.5, "lr": 0.7, "iterations": 2}
    args = app.Args(**given, train_size=30, seed=2, out=tmp_path)
    data, trained = app.load("digits", seed=2, train_size=30), []
    learned = app.learn(args, "unrolled", data)
    game, solver = learned.game, learned.game.solver
    assert (game.steps, solver.steps, solver.update.step) == (2, 3, 0.3)
    assert (game.follower.decay, game.leader_opt.param_groups[0]["lr"]) == (0.5, 0.7)
    first, again, other = (
        app.make_leader(replace(args, seed=seed), data).follower.network for seed in (2, 2, 3)
    )
    assert first[0].weight.shape == (256, 64)
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    train = part("metrics").train
    monkeypatch.setattr(
        part("metrics"), "train", lambda *run: trained.append(run[2:]) or train(*run)
    )
    app.evaluate(args, "unrolled", learned.leader, data)
    assert trained == [(0.3, 15)]


def test_data_are_as_the_arguments_say(
    app: ModuleType, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def load(*where: Any, **how: Any) -> Any:
        seen.append((*where, how))
        raise BilevelError("seen")

    monkeypatch.setattr(app, "load", load)
    chosen = ["--dataset", "fashion-mnist", "--data-dir", tmp_path, "--no-download", "--seed", 5]
    sizes = ["--corrupted", 0.2, "--train-size", 50, "--validation-size", 20]
    assert "seen" in one_line(call(app, *chosen, *sizes))
    how = {"seed": 5, "share": 0.2, "train_size": 50, "validation_size": 20, "download": False}
    assert seen == [("fashion-mnist", tmp_path, how)]


def test_what_each_baseline_learns_from(app: ModuleType, part: Part, tmp_path: Path) -> None:
    """Here every held-out image is called a 3."""
    data = app.load("digits", seed=0)
    images, labels = data.images.validation
    held_out = Batch(images, torch.full_like(labels, 3))
    data = replace(data, images=part("problem").Images(data.images.train, held_out))
    found = {r["weights"]: r["accuracy"] for r in app.baselines(app.Args(out=tmp_path), data)}
    assert found["held out"] == pytest.approx((data.test.y == 3).double().mean())
    assert found["right only"] > found["uniform"] > 0.8


def test_measuring_memory_leaves_the_game_as_it_was(app: ModuleType, tmp_path: Path) -> None:
    data = app.load("digits", seed=0, train_size=50)
    args = app.Args(steps=3, iterations=1, train_size=50, out=tmp_path)
    learning = app.learn(args, "unrolled", data)
    before = learning.leader.logits.detach().clone()
    assert learning.peak_mib() > 0
    assert torch.equal(learning.leader.logits, before)
    assert learning.game.steps == 1


def test_fashion_mnist(run: Callable[..., Any], tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "data")
    small = ["--train-size", 20, "--adjoint", "unrolled"]
    ended = run("--dataset", "fashion-mnist", "--data-dir", tmp_path / "data", *small)
    assert ended.status == 0, ended.err
    assert "fashion-mnist, linear: 40% of 20 labels wrong" in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--adjoint", "no adjoint is given"),
        ("--adjoint unroled", "there is no adjoint 'unroled': did you mean unrolled[?]"),
        ("--adjoint zzz", "there is no adjoint 'zzz': choose from unrolled, .*, all"),
        ("--corrupted 0", "corrupted is 0.0: .*give a fraction between 0 and 1"),
        ("--corrupted 1", "corrupted is 1.0"),
        ("--corrupted nan", "corrupted is nan"),
        ("--corrupted 0.0001", "corrupted is 0.0001: .*no label of 1000 would be wrong"),
        ("--train-size 5000", "train_size is 5000: .*give 1 to 1007"),
        ("--train-size 0", "train_size is 0"),
        ("--validation-size 0", "a sample of 0 images is empty"),
        ("--steps 0", "steps is 0: it must be a whole number of at least 1; give 1, 2"),
        ("--iterations 0", "iterations is 0: it must be a whole number of at least 1"),
        ("--step 0", "step is 0.0: it is positive and finite; give a step above 0"),
        ("--lr -1", "lr is -1.0"),
        ("--decay -1", "decay is -1.0: .*give a number from 0 on"),
        ("--decay nan", "decay is nan"),
        ("--seed -1", "seed is -1: .*give 0, 1"),
        ("--device gpu", "device 'gpu' is not available"),
        ("--dataset mnist", "invalid choice 'mnist'"),
        ("--model cnn", "invalid choice 'cnn'"),
        ("--resume", "no checkpoint in .*leave out --resume"),
        ("--iteration 3", "did you mean --iterations[?]"),
    ],
)
def test_bad_input_is_one_line(
    app: ModuleType, call: Callable[..., Any], tmp_path: Path, arguments: str, message: str
) -> None:
    line = one_line(call(app, "--out", tmp_path / "run", *arguments.split()))
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_forward_mode_is_for_few_samples(run: Callable[..., Any]) -> None:
    assert "would solve 1000 times" in one_line(run("--adjoint", "forward"))


def test_a_checkpoint_of_another_run(run: Callable[..., Any], tmp_path: Path) -> None:
    """Its weights, those of the baselines too, stay as its results tell of them."""
    small = ["--adjoint", "unrolled", "--train-size", 30]
    assert run(*small).status == 0
    written = [path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))]
    assert "is a run with decay = 0.01, this one has decay = 0.5" in one_line(
        run(*small, "--decay", 0.5, "--resume")
    )
    fewer = run(*small, "--iterations", 1, "--resume")
    assert "has run 3 iterations already, and 1 are requested" in one_line(fewer)
    assert written == [path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))]
