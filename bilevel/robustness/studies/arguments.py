"""The command line that every training application of the kit shares."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from bilevel import Lookahead, Optimistic, Schedule, distributed
from bilevel.arguments import count
from bilevel.errors import BilevelError
from bilevel.robustness.data.sources import Dataset, load_together
from bilevel.robustness.data.splits import Splits, sample
from bilevel.robustness.methods import Form
from bilevel.robustness.networks.own import is_own
from bilevel.robustness.recipe import RECIPES, SMALL, Recipe, fast
from bilevel.updates.normalize import Over


def _number(words: list[str]) -> float:
    numerator, _, denominator = words[0].partition("/")
    if denominator and not float(denominator):
        raise ValueError(f"{words[0]} is no number")
    return float(numerator) / float(denominator or 1)


Radius = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=_number,
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A number on the command line that may be a fraction, as radii in grey levels are: 8/255."""


def at_most(size: int, given: int | None) -> int:
    """The size of a smoke run: no more than was asked for, so that bad values are still refused.

    Args:
        size: The size of a smoke run.
        given: The argument; None for one that was not given.

    Returns:
        The smaller of the two.

    Example:
        >>> at_most(2, None), at_most(2, 10), at_most(2, 0)
        (2, 2, 0)
    """
    return size if given is None else min(size, given)


@dataclass
class TrainingArguments:
    """What is trained, on what data; arguments not given default to the dataset's recipe."""

    dataset: Dataset = "digits"
    """digits are part of scikit-learn; folder is a tree of images, one folder per class; npz is one
    file of arrays in the layout of MedMNIST."""
    data_dir: Path = Path("data")
    """Where the images are, or are downloaded to; for npz the file."""
    image_size: int | None = None
    """Scale and crop the images of a folder to this height and width."""
    download: bool = True
    """Fetch a missing torchvision dataset."""
    train_size: int | None = None
    """Train on this many images only."""
    validation_size: int = 1000
    """Select the epoch on at most this many images, held out from the training images."""
    test_size: int | None = None
    """Attack this many test images only."""

    fast: bool = False
    """Half of the recipe's epochs, at most 30: one-cycle learning rate, averaged weights, a
    two-layer attacker."""
    model: str | None = None
    """small-cnn, resnet18, wrn-DEPTH-WIDTH such as wrn-34-10, or MODULE:FUNCTION for a network of
    your own, FUNCTION(channels=..., classes=...) from images in [0, 1] to logits."""
    attacker: Form | None = None
    """The attacker's network: wide is the paper's Table 1, slim its Table 5, two-layer the one of
    --fast."""
    attacker_width: int | None = None
    """Channels of the attacker's first layer, of a slim one half of them (64 gives the paper's);
    scale it with the classifier, as --fast does unless it is given."""
    normalize: Over = "sample"
    """Divide gradients by each image's maximum, or by the batch's, as in the authors' code."""
    gradient_skip: float | None = None
    """Let the attacker start near FGSM: tanh(net + s·sign ∇) from this s, which is learned. The
    paper has none; digits and fashion-mnist start from 2."""

    epsilon: Radius | None = None
    """Radius of the threat model in units of the pixel range, such as 8/255; 0.031 in the paper."""
    epochs: int | None = None
    """Passes over the training images."""
    milestones: tuple[float, ...] | None = None
    """When the learning rate is divided by 10, as shares of the run."""
    batch_size: int | None = None
    """Images per training step, over all processes."""
    lr: float | None = None
    """The classifier's learning rate (SGD)."""
    attacker_lr: float | None = None
    """The attacker's learning rate (Adam)."""
    weight_decay: float | None = None
    """Weight decay of classifier and attacker."""
    padding: int | None = None
    """Pixels that images are shifted by at most in training, at random; 0 is off."""
    flip: bool | None = None
    """Mirror images at random in training: False where left and right mean something, as in text.
    """
    ema: float | None = None
    """Decay of the averaged classifier that is validated, saved and attacked, such as 0.995; 0 is
    off, as in the paper."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """bf16 trains in bfloat16 (autocast), tf32 lets a GPU's matrix units round; weights stay
    float32, and evaluation is not affected. auto is bf16 on GPUs from Ampere on, on CPUs with AMX
    and on AMD's with AVX512_BF16, float32 elsewhere."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the networks, which takes a minute before the first step. auto does so on a GPU, but
    not for digits and fashion-mnist, --smoke, or --sync-batchnorm in many processes."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Replay each training step as one CUDA graph, so that the GPU does not wait for Python; takes
    the memory of a step for itself. auto does so on a GPU in one process from torch 2.10 on, but
    not for networks of your own, with --recompute, or with the schedules optimistic and lookahead.
    """
    recompute: bool = False
    """Activation checkpointing in the classifier: less memory, more time."""
    channels_last: bool = True
    """Use the NHWC (channels-last) memory layout, which is fastest for convolutions; a network of
    your own keeps the layout that its function gives it."""

    sync_batchnorm: bool = False
    """Normalise by the statistics of the whole batch under torchrun."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Results, checkpoints, weights, figure and TensorBoard logs; replaced without --resume."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds: at most 256 images and two epochs, small networks unless others
    are named."""
    resume: bool = False
    """Continue a stopped run with the same arguments."""

    def recipe(self) -> Recipe:
        """The dataset's recipe, with the arguments that were given on the command line.

        Returns:
            The recipe.

        Raises:
            BilevelError: If an argument is out of its range, or two contradict each other.
        """
        if self.fast and self.milestones is not None:
            raise BilevelError(
                "milestones are given with --fast, whose learning rate rises and falls in one "
                "cycle without any; leave out one of them"
            )
        given = {entry.name: getattr(self, entry.name, None) for entry in fields(Recipe)}
        known = {name: value for name, value in given.items() if value is not None}
        if self.smoke:
            known = {"model": "small-cnn", "attacker": "two-layer"} | known
            known["epochs"] = at_most(2, self.epochs)
        recipe = replace(RECIPES[self.dataset], **known)
        return replace(fast(recipe), **known) if self.fast else recipe

    def compiles(self, device: torch.device) -> bool:
        """Whether the networks are compiled.

        Args:
            device: The device they compute on.

        Returns:
            The choice of ``compile``; for ``"auto"``, whether compilation is likely to pay off.
        """
        if self.compile != "auto":
            return self.compile == "on"
        quick = self.smoke or RECIPES[self.dataset] is SMALL  # training takes less than compiling
        # Communication in batch normalisation would break the graph at each layer.
        shared = self.sync_batchnorm and distributed.world_size() > 1
        return device.type == "cuda" and not quick and not shared

    def captures(self, device: torch.device, schedule: Schedule) -> bool:
        """Whether training steps are captured in a CUDA graph.

        Args:
            device: The device that computes them.
            schedule: Under which they are taken.

        Returns:
            The choice of ``cuda_graphs``; for ``"auto"``, whether it is known to be possible.
        """
        if self.cuda_graphs != "auto":
            return self.cuda_graphs == "on"
        # A graph would not repeat what a network of one's own may do in Python.
        known = not (is_own(self.recipe().model) or isinstance(schedule, Optimistic | Lookahead))
        # Before torch 2.10 checkpointed layers, as the wide attacker has, could not be captured.
        able = torch.__version__ >= "2.10" and distributed.world_size() == 1
        return device.type == "cuda" and able and known and not self.recompute  # for less memory

    def load(self, device: torch.device) -> Splits:
        """The images.

        Args:
            device: The device to put them on.

        Returns:
            Training, validation and test images.

        Raises:
            BilevelError: If the images are not available or too few, or none are asked for.
        """
        held_out = {"validation_size": self.validation_size, "test_size": self.test_size}
        for name, size in held_out.items():
            if size is not None:
                count(name, size)
        data = load_together(
            self.dataset,
            self.data_dir,
            seed=self.seed,
            train_size=self.train_size,
            image_size=self.image_size,
            download=self.download,
        )
        if not all(map(len, data)):
            counts = ", ".join(f"{len(part)} {name}" for name, part in data._asdict().items())
            raise BilevelError(
                f"{self.dataset} images are too few ({counts} images): each split needs at least "
                "one; add images, 20 or more in all if there are no test and validation images"
            )
        sizes = [None, *held_out.values()]
        if self.smoke:
            sizes = [at_most(*pair) for pair in zip((256, 64, 64), sizes, strict=True)]
        parts = (sample(part, size).to(device) for part, size in zip(data, sizes, strict=True))
        return Splits(*parts)
