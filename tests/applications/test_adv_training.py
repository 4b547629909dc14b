"""`adv_training.py` as a user runs it, and what is kept when something goes wrong on the way."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bilevel.experiment import checkpoint
from bilevel.robustness import RECIPES, Attacker, Recipe, Trainer, fast, load_trained
from tests.applications.conftest import one_line
from tests.images import write_image, write_tree

ROOT = Path(__file__).parents[2]

# As a user runs it.


def test_the_smoke_run(tmp_path: Path) -> None:
    end = subprocess.run(
        [sys.executable, "applications/adv_training.py", "--smoke", "--out", tmp_path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (end.returncode, end.stderr) == (0, "")
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content) == {"config", "environment", "results"}
    assert content["config"]["smoke"]
    assert "--smoke" in content["environment"]["command"]
    records = {record["method"]: record for record in content["results"]}
    assert list(records) == ["plain", "pgm", "grad-l2l", "two-step-l2l"]
    assert records["pgm"]["ratio_to_pgm"] == 1
    assert (tmp_path / "attacks.png").read_bytes().startswith(b"\x89PNG")
    for method, record in records.items():
        assert method in end.stdout
        assert not any(isinstance(value, (list, dict)) for value in record.values())
        assert all(0 <= record[name] <= 1 for name in ("clean", "pgm20", "pgm100"))
        folder, learned = tmp_path / method, method.endswith("l2l")
        assert (record["own_attacker"] is not None) == learned
        assert (folder / "attacker.safetensors").exists() == learned
        assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
        assert checkpoint.load(folder / "checkpoint.pt")["progress"]["epoch"] == record["epochs"]
        trained = load_trained(folder)
        assert (trained.name, trained.about.method) == (method, method)
        assert (trained.solver is not None) == learned


def test_help_is_a_page(run: Callable[..., Any]) -> None:
    ended = run("--help")
    assert (ended.status, ended.err) == (0, "")
    assert "--epsilon" in ended.out
    assert "Radius of the threat model" in ended.out


def test_what_is_not_given_comes_from_the_datasets_recipe(app: ModuleType) -> None:
    assert app.Args(dataset="cifar10").recipe() == Recipe()
    assert app.Args().recipe() == RECIPES["digits"]
    assert app.Args(epochs=7, lr=0.5).recipe() == replace(RECIPES["digits"], epochs=7, lr=0.5)


def test_what_is_given_reaches_the_solver(
    run: Callable[..., Any], app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(method: str, **options: object) -> None:
        assert (method, options) == ("3-step-pgm", expected)
        raise KeyboardInterrupt

    expected = {"eps": 0.1, "channels": 1, "norm": "l2", "warm_start": True}
    expected["attacker"] = Attacker("slim", 7, "batch", 0.5)
    monkeypatch.setattr("bilevel.robustness.trained.make_solver", spy)
    attacker = "--attacker slim --attacker-width 7 --normalize batch --gradient-skip 0.5"
    arguments = f"--method 3-step-pgm --norm l2 --epsilon 0.1 {attacker} --warm-start"
    assert run(*arguments.split()).status == 130


def test_a_method_by_two_names_is_trained_once(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("--method", "plain", "10-step-pgm", "pgm").status == 0
    records = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert [record["method"] for record in records] == ["plain", "pgm"]
    assert all(record["ratio_to_pgm"] for record in records)


def test_a_folder_of_another_run_is_left_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    """Before the other run's checkpoints would be removed."""
    out = tmp_path / "run"
    (out / "pgm").mkdir(parents=True)
    (out / "pgm" / "checkpoint.pt").write_text("of the other run")
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
    code += "print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"
        assert f"another run writes to {out}" in one_line(run("--method", "pgm"))
        other.kill()
    assert (out / "pgm" / "checkpoint.pt").read_text() == "of the other run"


def test_training_in_l2(run: Callable[..., Any], tmp_path: Path) -> None:
    """Attacked, saved and resumed in its norm."""
    arguments = ["--method", "pgm", "grad-l2l", "--norm", "l2", "--epsilon", "5/2"]
    ended = run(*arguments)
    assert (ended.status, ended.err) == (0, "")
    assert "‖δ‖₂ ≤ 2.5" in ended.out
    (pgm, _) = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert (pgm["norm"], pgm["epsilon"]) == ("l2", 2.5)
    trained = load_trained(tmp_path / "run" / "grad-l2l")
    assert repr(trained.about.follower()) == "L2(eps=2.5, start=0.0, loss=cross_entropy)"
    assert trained.solver is not None
    assert run(*arguments, "--resume").status == 0
    refused = one_line(run(*arguments[:3], "--epsilon", 1, "--resume"))
    assert "is a run with" in refused
    assert "norm" in refused


def test_a_folder_of_images(run: Callable[..., Any], tmp_path: Path) -> None:
    photos = write_tree(tmp_path / "photos", count=40)
    write_image(photos / "cat" / "large.png", 1, size=(30, 20))
    folder = ["--dataset", "folder", "--data-dir", photos, "--model", "small-cnn"]
    assert "bring all images to one size, as image_size (--image-size)" in one_line(run(*folder))
    assert run(*folder, "--image-size", 8).status == 0
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["results"][0]["dataset"] == "folder"
    assert load_trained(tmp_path / "run" / "plain").about.size == (8, 8)


def test_a_rare_class(run: Callable[..., Any], tmp_path: Path) -> None:
    """The accuracy of one answer to all images is high, and no attack lowers it."""
    labels = np.arange(40) % 20 == 0
    images = np.full((40, 8, 8), 100, np.uint8)
    arrays = {"images": images, "labels": labels.astype(int)}
    file = tmp_path / "rare.npz"
    parts = {f"{part}_{kind}": arrays[kind] for part in ("train", "test") for kind in arrays}
    np.savez(file, **parts, classes=np.array(["nv", "mel"]))
    sizes = ["--train-size", 30, "--test-size", 40]
    ended = run("--dataset", "npz", "--data-dir", file, "--model", "small-cnn", *sizes)
    assert "always answering nv is right for 0.950 of the test images" in ended.out
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert content["results"][0]["one_answer"] == 0.95


def test_a_finished_run_is_resumed_to_the_same_results(run: Callable[..., Any], out: Path) -> None:
    before = json.loads((out / "results.json").read_text())["results"]
    assert run("--resume").status == 0
    assert json.loads((out / "results.json").read_text())["results"] == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("--epsilon 0.1", "epsilon = 0.2, this one has epsilon = 0.1: "),
        ("--attacker slim", "attacker = two-layer, this one has attacker = slim: "),
        ("--attacker-width 8", "attacker_width = 32, this one has attacker_width = 8: "),
        ("--normalize batch", "normalize = sample, this one has normalize = batch: "),
        ("--schedule alternating", r"schedule = Simultaneous\(\), this one has .*, first='lea…: "),
    ],
)
def test_of_a_run_that_is_not_resumed_each_other_argument_is_told_once(
    run: Callable[..., Any], changed: str, told: str
) -> None:
    grad = ["--method", "grad-l2l", "--attacker", "two-layer"]
    assert run(*grad).status == 0
    line = one_line(run(*grad, "--resume", *changed.split()))
    assert re.search(f"is a run with {told}", line)


def test_a_job_that_torchrun_restarts_goes_on(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run().status == 0  # it was lost before the first checkpoint
    before = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert run().status == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["results"] == before


def test_time_an_epoch_is_that_of_most_epochs(run: Callable[..., Any], out: Path) -> None:
    """The first one may have compiled the networks."""
    path = out / "plain" / "checkpoint.pt"
    state = checkpoint.load(path)
    state["progress"]["seconds"] = [60.0, 1.0, 2.0]
    checkpoint.save(path, state)
    assert run("--resume").status == 0
    (record,) = json.loads((out / "results.json").read_text())["results"]
    assert record["seconds_per_epoch"] == 2.0


def test_a_run_replaces_what_earlier_runs_of_its_names_left(
    run: Callable[..., Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its first method, it must not be resumed with an old run of its second."""

    def stopped(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    for name in ("pgm", "mine"):
        shutil.copytree(out / "plain", out / name)
        (out / name / "attacker.safetensors").touch()
    curves = {path.name for path in out.glob("*/tensorboard/*")}
    monkeypatch.setattr(Trainer, "fit", stopped)
    assert run("--method", "plain", "pgm").status == 130
    assert not (out / "results.json").exists()
    for kind in ("checkpoint.pt", "classifier.safetensors", "attacker.safetensors"):
        assert [path.parent.name for path in out.glob(f"*/{kind}")] == ["mine"]
    assert {path.name for path in out.glob("mine/tensorboard/*")} == curves
    for name in ("plain", "pgm"):
        assert not curves & {path.name for path in out.glob(f"{name}/tensorboard/*")}


def test_a_run_that_is_refused_replaces_nothing(refused: Callable[..., str], out: Path) -> None:
    refused("--model", "resnet20")
    assert (out / "plain" / "checkpoint.pt").exists()


def test_an_interrupted_run_tells_how_to_go_on(
    run: Callable[..., Any], app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "main", interrupted)
    ended = run()
    assert ended.status == 130
    assert "run the same command with --resume to continue from the last checkpoint" in ended.err


# What goes wrong on the way.


@pytest.mark.parametrize(
    ("train_size", "told"),
    [
        (200, "step [2-6]: the leader's loss is (nan|inf).*lower the learning rate"),
        (40, "step 2: the classifier's logits are not finite.*lower the learning rate"),
    ],
    ids=["within an epoch", "with its last step"],
)
def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(
    run: Callable[..., Any],
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_size: int,
    told: str,
) -> None:
    arguments = ["--train-size", train_size, "--batch-size", 100, "--epochs", 3]
    monkeypatch.setattr(Recipe, "lr_factor", lambda recipe, epoch: 1e30 if epoch == 1 else 0.1)
    monkeypatch.setitem(Trainer.__init__.__kwdefaults__, "save_every", -1.0)
    assert re.search(told, refused(*arguments))
    state = checkpoint.load(tmp_path / "run" / "plain" / "checkpoint.pt")
    assert state["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["game"]["leader"].values())
    monkeypatch.undo()
    assert run(*arguments, "--resume").status == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What the system refuses to write here it would also refuse on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_old_checkpoint(refused: Callable[..., str], out: Path) -> None:
    path = out / "plain" / "checkpoint.pt"
    before = path.read_bytes()
    with files_of_at_most(100_000):
        line = refused("--resume")
    assert re.search("cannot write .*checkpoint.pt .*older file .* kept: free some space", line)
    assert path.read_bytes() == before
    assert not list(out.rglob("*.part"))


def test_a_disk_that_is_full_before_the_epoch_ends(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    assert re.search("cannot write .*tensorboard .*No space left.*: free some space", refused())


def test_memory_that_ends_in_the_attack(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, batch_size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("bilevel.robustness.studies.study.accuracy", full)
    assert "out of memory with batches of 40 images" in refused("--batch-size", 20)


def test_attacks_that_go_on_from_the_last_epochs(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("--warm-start", "--method", "fgsm", "two-step-l2l", "--smoke").status == 0
    for method in ("fgsm", "two-step-l2l"):
        folder = tmp_path / "run" / method
        assert checkpoint.load(folder / "checkpoint.pt")["config"]["warm_start"]
        assert load_trained(folder).about.warm_start


def test_the_fast_recipe(run: Callable[..., Any], app: ModuleType, tmp_path: Path) -> None:
    assert app.Args(fast=True).recipe() == fast(RECIPES["digits"])
    assert app.Args(fast=True, ema=0.0, epochs=3).recipe().ema == 0
    arguments = ["--fast", "--method", "grad-l2l", "--attacker", "wide", "--epochs", 2]
    assert run(*arguments, "--model", "wrn-10-1").status == 0
    state = checkpoint.load(tmp_path / "run" / "grad-l2l" / "checkpoint.pt")
    assert state["averaged"] is not None
    assert [record["lr"] for record in state["progress"]["history"]] == [
        pytest.approx(0.2 * rate) for rate in (1 / 25, 0.5 / 0.7)
    ]
    assert load_trained(tmp_path / "run" / "grad-l2l").about.attacker.width == 4
