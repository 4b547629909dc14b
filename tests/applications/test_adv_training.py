"""`adv_training.py` as a user runs it, and what it says to bad input: one line, exit status 2."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from bilevel import checkpoint, commandline
from bilevel.robustness import (
    RECIPES,
    Attacker,
    Recipe,
    build_model,
    load_weights,
    read_about,
)
from tests.images import write_image, write_tree

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "applications" / "adv_training.py"
DIGITS = RECIPES["digits"]
SIZES = {"train_size": 40, "validation_size": 20, "test_size": 10}
TINY = ["--method", "plain", "--epochs", "1"]
TINY += [word for name, size in SIZES.items() for word in (f"--{name}", f"{size}")]


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ended]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("adv_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["adv_training"] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the application in this process."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            commandline.run(app.main, app.Args)
        return Ended(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run: Run) -> Refused:
    """Runs the application on bad input and gives its one line."""

    def refused(*arguments: object) -> str:
        ended = run(*arguments)
        assert ended.status == 2
        assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
        return ended.err

    return refused


@pytest.fixture(scope="module")
def finished(app: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a TINY run."""
    out = tmp_path_factory.mktemp("finished")
    app.main(app.Args(("plain",), epochs=1, **SIZES, out=out))
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# As a user runs it.


def test_the_smoke_run(tmp_path: Path) -> None:
    end = subprocess.run(
        [sys.executable, SCRIPT, "--smoke", "--out", tmp_path],
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
        weights = folder / "classifier.safetensors"
        about = read_about(weights)
        channels, classes = int(about["channels"]), int(about["classes"])
        load_weights(weights, build_model(about["model"], channels=channels, classes=classes))


def test_help_is_a_page(run: Run) -> None:
    ended = run("--help")
    assert (ended.status, ended.err) == (0, "")
    assert "--epsilon" in ended.out
    assert "Radius of the L-infinity ball" in ended.out


def test_what_is_not_given_comes_from_the_datasets_recipe(app: ModuleType) -> None:
    assert app.Args(dataset="cifar10").recipe() == Recipe()
    assert app.Args().recipe() == DIGITS
    assert app.Args(epochs=7, lr=0.5).recipe() == replace(DIGITS, epochs=7, lr=0.5)


def test_what_is_given_reaches_the_solver(
    run: Run, app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(method: str, **options: object) -> None:
        assert (method, options) == ("pgm", expected)
        raise KeyboardInterrupt

    expected = {"eps": 0.1, "channels": 1, "pgm_steps": 3}
    expected["attacker"] = Attacker("slim", 7, "batch", 0.5)
    monkeypatch.setattr(app, "make_solver", spy)
    attacker = "--attacker slim --attacker-width 7 --normalize batch --gradient-skip 0.5"
    arguments = f"--method pgm --epsilon 0.1 --pgm-steps 3 {attacker}"
    assert run(*arguments.split()).status == 130


def test_a_folder_of_images(run: Run, tmp_path: Path) -> None:
    write_tree(tmp_path / "photos", count=20)
    out = tmp_path / "run"
    arguments = ["--dataset", "folder", "--data-dir", tmp_path / "photos", "--model", "small-cnn"]
    ended = run("--method", "fgsm", "--epochs", 1, *arguments, "--out", out)
    assert ended.status == 0
    assert json.loads((out / "results.json").read_text())["results"][0]["dataset"] == "folder"


def test_a_finished_run_is_resumed_to_the_same_results(run: Run, out: Path) -> None:
    before = json.loads((out / "results.json").read_text())["results"]
    assert run(*TINY, "--out", out, "--resume").status == 0
    assert json.loads((out / "results.json").read_text())["results"] == before


def test_an_interrupted_run_tells_how_to_go_on(
    run: Run, app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "main", interrupted)
    ended = run()
    assert ended.status == 130
    assert ended.err == "stopped; the same command with --resume goes on\n"


# Bad arguments.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--epsilon -0.1", "epsilon is -0.1: .*give 0 < epsilon ≤ 1"),
        ("--epsilon 8", "epsilon is 8.0: .*8/255 = 0.031 rather than 8"),
        ("--epsilon 0", "epsilon is 0.0: .*the method plain trains without an adversary"),
        ("--epsilon nan", "epsilon is nan: .*give 0 < epsilon ≤ 1"),
        ("--epochs 0", "epochs is 0: .*give 1 or more"),
        ("--epochs -3", "epochs is -3: .*give 1 or more"),
        ("--batch-size 0", "batch_size is 0: .*give 1 or more"),
        ("--pgm-steps 0", "pgm_steps is 0: .*give 1 or more"),
        ("--attacker-width 0", "attacker_width is 0: .*give 1 or more"),
        ("--lr -0.1", "lr is -0.1: .*give a number from 0 on"),
        ("--lr nan", "lr is nan: .*give a number from 0 on"),
        ("--attacker-lr -1", "attacker_lr is -1.0: .*give a number from 0 on"),
        ("--weight-decay -1", "weight_decay is -1.0: .*give a number from 0 on"),
        ("--train-size 0", "train_size is 0: .*give 1 to 1294"),
        ("--train-size -5", "train_size is -5: .*give 1 to 1294"),
        ("--train-size 2000", "train_size is 2000: 1294 training images .*give 1 to 1294"),
        ("--validation-size 0", "a sample of 0 images is empty: give a size of 1 or more"),
        ("--test-size -2", "a sample of -2 images is empty: give a size of 1 or more"),
        ("--seed -1", "seed is -1: .*give 0 or more"),
        ("--method plain pmg", "there is no method 'pmg': did you mean pgm[?]"),
        ("--method two-steps-l2l", "no method 'two-steps-l2l': did you mean two-step-l2l[?]"),
        ("--method zzz", "there is no method 'zzz': choose from plain, fgsm, pgm"),
        ("--method", "no method is given: .*name one or several"),
        ("--model resnet20", "no model 'resnet20', the nearest is 'resnet18'"),
        ("--model wrn-33-10", "there is no wrn-33-10: .*give wrn-34-10"),
        ("--device gpu", "device 'gpu' is not available .*give --device auto"),
        ("--resume", "no checkpoint in .*run: .*leave out --resume"),
        # What tyro refuses.
        ("--epochs many", r"parsing --epochs: .*\['many'\]; --help tells the arguments"),
        ("--epochs", "Missing value for argument '--epochs'.*; --help tells the arguments"),
        ("--dataset imagenet", "invalid choice 'imagenet' for argument '--dataset'.*'cifar100'"),
        ("--epoch 3", "there is no argument --epoch: did you mean --epochs[?]"),
        ("--frobnicate", "there is no argument --frobnicate: --help tells the arguments"),
        ("pgm", "there is no argument pgm: --help tells the arguments"),
    ],
)
def test_a_bad_argument(refused: Refused, tmp_path: Path, arguments: str, told: str) -> None:
    assert re.search(told, refused("--out", tmp_path / "run", *arguments.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    line = refused("--device", "cuda", "--out", tmp_path)
    assert re.search("device 'cuda' is not available .*give --device auto", line)


def test_an_out_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    line = refused(*TINY, "--out", tmp_path / "file")
    assert re.search("cannot make the folder .*file.*: write to another folder", line)
    assert (tmp_path / "file").read_text() == "precious"


# Bad images.


def corrupt(root: Path) -> None:
    write_tree(root)
    path = root / "dog" / "004.png"
    path.write_bytes(path.read_bytes()[:-30])


def of_two_sizes(root: Path) -> None:
    write_tree(root)
    write_image(root / "dog" / "007.png", 1, size=(6, 4))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: None, "there is no folder .*photos: .*give the folder"),
        (Path.mkdir, "photos holds no class folders: .*put the images"),
        (lambda root: write_tree(root, ["cat"]), r"photos holds one class folder \(cat\): .*put"),
        (lambda root: (root / "cat" / "dog").mkdir(parents=True), "one class folder"),
        (corrupt, "image .*dog/004.png cannot be decoded: .*repair it or remove it"),
        (of_two_sizes, "cat/000.png is 5x4 and .*dog/007.png is 6x4 pixels; bring all images"),
    ],
    ids=["missing", "empty", "one class", "no image", "corrupt", "two sizes"],
)
def test_a_bad_folder(
    refused: Refused, tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / "photos")
    folder = ["--dataset", "folder", "--data-dir", tmp_path / "photos"]
    assert re.search(told, refused(*folder, "--out", tmp_path / "run"))


# Bad checkpoints.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--model wrn-10-1", f"with model = {DIGITS.model}, this one has wrn-10-1"),
        ("--attacker-width 9", f"with width = {DIGITS.attacker_width}, this one has 9"),
        ("--validation-size 10", "with validation_images = 20, this one has 10"),
        ("--pgm-steps 3", "with pgm_steps = 10, this one has 3"),
        ("--seed 1", "with seed = 0, this one has 1"),
    ],
)
def test_a_checkpoint_of_another_run(
    refused: Refused, out: Path, arguments: str, told: str
) -> None:
    line = refused(*TINY, "--out", out, "--resume", *arguments.split())
    assert re.search(f"checkpoint.pt is a run {told}: .*give the same arguments", line)


def test_a_checkpoint_of_another_architecture_under_the_same_name(
    refused: Refused, out: Path
) -> None:
    path = out / "plain" / "checkpoint.pt"
    state = checkpoint.load(path)
    del state["game"]["leader"]["model.head.weight"]
    checkpoint.save(path, state)
    line = refused(*TINY, "--out", out, "--resume")
    assert re.search("leader is of another architecture: model.head.weight is missing", line)


def test_a_truncated_checkpoint(refused: Refused, out: Path) -> None:
    path = out / "plain" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    line = refused(*TINY, "--out", out, "--resume")
    assert re.search("checkpoint.pt is no readable checkpoint .*delete it to begin again", line)


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
    run: Run,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_size: int,
    told: str,
) -> None:
    arguments = [*TINY, "--train-size", train_size, "--batch-size", 100, "--out", tmp_path]
    arguments += ["--epochs", 3]
    monkeypatch.setattr(Recipe, "lr_at", lambda recipe, epoch: 1e30 if epoch == 1 else 0.1)
    assert re.search(told, refused(*arguments))
    state = checkpoint.load(tmp_path / "plain" / "checkpoint.pt")
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


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (100_000, r"cannot write .*checkpoint.pt .*older file there is kept: free some space"),
        (10, r"cannot write .*tensorboard .*: free some space"),
    ],
    ids=["the checkpoint", "the log"],
)
def test_a_full_disk_keeps_the_old_checkpoint(
    refused: Refused, out: Path, size: int, told: str
) -> None:
    path = out / "plain" / "checkpoint.pt"
    before = path.read_bytes()
    with files_of_at_most(size):
        line = refused(*TINY, "--out", out)
    assert re.search(told, line)
    assert path.read_bytes() == before
    assert not list(out.rglob("*.part"))
