"""What `adv_training.py` says to bad input: one line, exit status 2."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bilevel.experiment import checkpoint
from bilevel.robustness import RECIPES
from tests.images import write_image, write_tree

DIGITS = RECIPES["digits"]

# Bad arguments.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--epsilon -0.1", "epsilon is -0.1: .*give 0 < epsilon ≤ 1"),
        ("--epsilon 8", "epsilon is 8.0: .*8/255 = 0.031 rather than 8"),
        ("--epsilon 0", "epsilon is 0.0: .*the method plain trains without an adversary"),
        ("--epsilon nan", "epsilon is nan: .*give 0 < epsilon ≤ 1"),
        ("--epochs 0", "epochs is 0: .*give 1, 2"),
        ("--epochs -3", "epochs is -3: .*give 1, 2"),
        ("--batch-size 0", "batch_size is 0: .*give 1, 2"),
        ("--attacker-width 0", "attacker_width is 0: .*give 1, 2"),
        ("--norm l2", "norm is l2 and there is no epsilon: .*give --epsilon, 0.5 in l2 or 12 in"),
        ("--norm l2 --epsilon 0", "epsilon is 0.0: .*give 0 < epsilon < ∞, say 0.5"),
        ("--norm l0", "invalid choice 'l0' for argument '--norm'.*'linf', 'l2', 'l1'"),
        ("--padding -1", "padding is -1: .*give 0, 1"),
        ("--milestones 30 60", "milestones are .30.0, 60.0.: .*give numbers in .0, 1."),
        ("--fast --milestones 0.5", "milestones are given with --fast, .*leave out one of them"),
        ("--lr -0.1", "lr is -0.1: .*give a number from 0 on"),
        ("--lr nan", "lr is nan: .*give a number from 0 on"),
        ("--method grad-l2l --attacker-lr -1", "attacker_lr is -1.0: .*give a number from 0 on"),
        ("--gradient-skip nan", "gradient_skip is nan: .*give a finite number"),
        ("--weight-decay -1", "weight_decay is -1.0: .*give a number from 0 on"),
        ("--weight-decay inf", "weight_decay is inf: .*from 0 on"),
        ("--ema 1", "ema is 1.0: .*give 0 ≤ ema < 1"),
        ("--ema -0.5", "ema is -0.5: .*give 0 ≤ ema < 1"),
        ("--train-size 0", "train_size is 0: .*give 1 to 1294"),
        ("--train-size -5", "train_size is -5: .*give 1 to 1294"),
        ("--train-size 2000", "train_size is 2000: 1294 training images .*give 1 to 1294"),
        ("--validation-size 0", "validation_size is 0: .*give 1, 2"),
        ("--test-size -2", "test_size is -2: .*give 1, 2"),
        ("--seed -1", "seed is -1: .*give 0, 1"),
        ("--method plain pmg", "there is no method 'pmg': did you mean pgm[?]"),
        ("--method two-steps-l2l", "no method 'two-steps-l2l': did you mean two-step-l2l[?]"),
        ("--method two-steps-pgm", "no method 'two-steps-pgm': did you mean two-step-pgm[?]"),
        ("--method 0-step-pgm", "no method '0-step-pgm': did you mean two-step-pgm[?]"),
        ("--method pgm --attacker-lr 0.1", "attacker_lr is 0.1 .*: only methods with l2l take it"),
        ("--method plain --warm-start", "warm_start is given .*: add two-step-pgm, or leave out"),
        ("--method zzz", "there is no method 'zzz': choose from plain, fgsm, pgm"),
        ("--method", "no method is given: .*name one or several"),
        ("--model resnet20", "no model 'resnet20': did you mean resnet18[?]"),
        ("--model wrn-33-10", "there is no wrn-33-10: .*give wrn-34-10"),
        ("--device gpu", "device 'gpu' is not available .*give --device auto"),
        ("--resume", "no checkpoint in .*run: .*leave out --resume"),
        # What tyro refuses.
        ("--epochs many", r"parsing --epochs: .*\['many'\]; --help tells the arguments"),
        ("--epochs", "Missing value for argument '--epochs'.*; --help tells the arguments"),
        ("--dataset imagenet", "invalid choice 'imagenet' for argument '--dataset'.*'cifar100'"),
        ("--epoch 3", "there is no argument '--epoch': did you mean --epochs[?]"),
        ("--frobnicate", "there is no argument '--frobnicate': --help tells the arguments"),
        ("pgm", "there is no argument 'pgm': --help tells the arguments"),
    ],
)
def test_a_bad_argument(
    refused: Callable[..., str], tmp_path: Path, arguments: str, told: str
) -> None:
    assert re.search(told, refused(*arguments.split()))
    assert not (tmp_path / "run").exists()


class Terminal(io.StringIO):
    """A screen with colours."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "screen", [Terminal(), io.TextIOWrapper(io.BytesIO(), "ascii")], ids=["colours", "ascii"]
)
def test_what_tyro_says_loses_its_frame_and_colours(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, screen: io.TextIOBase
) -> None:
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    line = refused("--precision", "bf8")
    assert line == (
        "error: invalid choice 'bf8' for argument '--precision'. Expected one of ('auto', "
        "'float32', 'tf32', 'bf16'); --help tells the arguments\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(refused: Callable[..., str]) -> None:
    line = refused("--device", "cuda")
    assert re.search("device 'cuda' is not available .*give --device auto", line)


def test_an_out_that_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    line = refused("--out", tmp_path / "file")
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
    refused: Callable[..., str], tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / "photos")
    folder = ["--dataset", "folder", "--data-dir", tmp_path / "photos"]
    assert re.search(told, refused(*folder))


# Bad checkpoints.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--model wrn-10-1", f"model = {DIGITS.model}, this one has model = wrn-10-1"),
        (
            "--attacker-width 9",
            f"attacker_width = {DIGITS.attacker_width}, this one has attacker_width = 9",
        ),
        (
            "--validation-size 10",
            "validation_images = 20, this one has validation_images = 10",
        ),
        ("--seed 1", "seed = 0, this one has seed = 1"),
    ],
)
def test_a_checkpoint_of_another_run(
    refused: Callable[..., str], out: Path, arguments: str, told: str
) -> None:
    line = refused("--resume", *arguments.split())
    assert re.search(f"checkpoint.pt is a run with {told}: .*give the same settings", line)


def test_a_checkpoint_of_another_architecture_under_the_same_name(
    refused: Callable[..., str], out: Path
) -> None:
    path = out / "plain" / "checkpoint.pt"
    state = checkpoint.load(path)
    del state["game"]["leader"]["model.head.weight"]
    checkpoint.save(path, state)
    line = refused("--resume")
    assert re.search("leader is of another architecture: model.head.weight is missing", line)


def test_a_truncated_checkpoint(refused: Callable[..., str], out: Path) -> None:
    path = out / "plain" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    line = refused("--resume")
    assert re.search("checkpoint.pt is no readable checkpoint .*delete it to start again", line)
