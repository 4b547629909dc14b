"""The command line that every training application of the kit shares."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from bilevel import distributed
from bilevel.robustness.data import Splits, checksum, sample
from bilevel.robustness.recipe import RECIPES, Recipe, fast
from bilevel.robustness.sources import Dataset, load_images


@dataclass
class TrainingArguments:
    """What is trained, on what, and where it goes; what is left out is the dataset's recipe's."""

    dataset: Dataset = "digits"
    """digits come with scikit-learn; folder is any tree of images, one folder a class; npz is one
    file of arrays in the layout of MedMNIST."""
    data_dir: Path = Path("data")
    """Where the images are, or are downloaded to; for npz the file."""
    download: bool = True
    """Fetch a missing torchvision dataset."""
    train_size: int | None = None
    """Train on this many images only."""
    validation_size: int = 1000
    """Choose the epoch on at most this many images, held out of the training images."""
    test_size: int | None = None
    """Attack this many test images only."""

    fast: bool = False
    """Half of the recipe's epochs and 30 at most: one cycle of the learning rate, averaged weights,
    an attacker in proportion to the classifier."""
    model: str | None = None
    """small-cnn, resnet18, or wrn-DEPTH-WIDTH such as wrn-34-10."""
    attacker: Literal["wide", "slim", "slim-no-skip", "two-layer", "conv-rnn"] | None = None
    """The attacker's network: wide is the paper's Table 1, slim its Table 5."""
    attacker_width: int | None = None
    """Channels of the attacker's first layer; keep it in proportion to the classifier, as --fast
    does by itself."""
    normalize: Literal["sample", "batch"] = "sample"
    """Divide gradients by each image's maximum, or by the batch's as the authors' code does."""
    gradient_skip: float | None = None
    """Let the attacker start near FGSM: tanh(net + s·sign ∇) from this s, which is learned. The
    paper has none; digits and fashion-mnist start from 2."""

    epsilon: float | None = None
    """Radius of the L-infinity ball in units of the pixel range: 0.031 in the paper."""
    epochs: int | None = None
    milestones: tuple[float, ...] | None = None
    """When the learning rate falls to a tenth, as shares of the run."""
    batch_size: int | None = None
    lr: float | None = None
    """The classifier's learning rate (SGD)."""
    attacker_lr: float | None = None
    """The attacker's learning rate (Adam)."""
    weight_decay: float | None = None
    ema: float | None = None
    """Decay of the averaged classifier that is validated, saved and attacked, such as 0.995; 0 is
    off, as in the paper."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """bf16 trains in bfloat16 (autocast), tf32 lets a GPU's matrix units round; weights stay
    float32, and evaluation is not affected. auto is bf16 on a GPU that has it, else float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the networks; auto does on a GPU. Takes a minute before the first step."""
    recompute: bool = False
    """Compute the classifier's activations again in the backward pass: less memory, more time."""
    channels_last: bool = True
    """Keep the channels of a pixel side by side, which convolutions are fastest with."""

    sync_batchnorm: bool = False
    """Normalise by the statistics of the whole batch where many processes share it (torchrun)."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs")
    """Results, checkpoints, weights, figure and TensorBoard logs; replaced without --resume."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds: few images, two epochs, small networks unless others are named."""
    resume: bool = False
    """Go on where a stopped run with the same arguments ended."""

    def recipe(self) -> Recipe:
        """The dataset's recipe, with what was given on the command line in its place.

        Returns:
            The recipe.
        """
        given = {entry.name: getattr(self, entry.name, None) for entry in fields(Recipe)}
        known = {name: value for name, value in given.items() if value is not None}
        if self.smoke:
            known = {"model": "small-cnn", "attacker": "two-layer"} | known | {"epochs": 2}
        recipe = replace(RECIPES[self.dataset], **known)
        return replace(fast(recipe), **known) if self.fast else recipe

    def load(self, device: torch.device) -> Splits:
        """The images.

        Args:
            device: Where they shall lie.

        Returns:
            Training, validation and test images.
        """
        with distributed.one_first():  # to download, and to fill caches
            data = load_images(
                self.dataset,
                self.data_dir,
                seed=self.seed,
                train_size=self.train_size,
                download=self.download,
            )
        distributed.agree({"images": checksum(data)})
        sizes = (256, 64, 64) if self.smoke else (None, self.validation_size, self.test_size)
        parts = (sample(part, size).to(device) for part, size in zip(data, sizes, strict=True))
        return Splits(*parts)
