"""Trained classifiers on disk: weights, attacker and a description."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bilevel import Solver
from bilevel.errors import BilevelError
from bilevel.experiment.weights import load_weights, read_about, save_weights
from bilevel.randomness import random_state_kept
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.methods import Attacker, fitting_width, is_learned, make_solver
from bilevel.robustness.networks.own import build_classifier, is_own
from bilevel.robustness.recipe import Recipe
from bilevel.robustness.threats.interpolation import Interpolation
from bilevel.robustness.threats.norms import NORMS, Norm
from bilevel.robustness.threats.perturbation import Perturbation
from bilevel.updates.normalize import Over

CLASSIFIER = "classifier.safetensors"
ATTACKER = "attacker.safetensors"


@dataclass(frozen=True)
class About:
    """The description of a trained classifier, saved with its weights.

    Args:
        method: The method that trained it, see
            :data:`~bilevel.robustness.methods.METHODS`.
        model: The name of its architecture, which may be a function, ``MODULE:FUNCTION``.
        channels: Channels of its images.
        classes: Number of classes.
        dataset: The dataset that it was trained on.
        epsilon: ε that it was trained for; 0 if that is not known.
        seed: Seed of the run.
        attacker: The settings of its attacker.
        interpolation: The follower's settings if it was trained by interpolation.
        class_names: The names of the classes, in the order of the logits; empty if not known.
        norm: The norm of ε.
        size: Height and width of its images; empty if not known.
        image_size: The height and width to which the images of its folder were scaled and cropped;
            None if they were not.
        warm_start: Whether its training attacked each image from where the last attack had ended.
    """

    method: str
    model: str
    channels: int
    classes: int
    dataset: str
    epsilon: float
    seed: int = 0
    attacker: Attacker = field(default_factory=Attacker)
    interpolation: dict[str, Any] | None = None
    class_names: tuple[str, ...] = ()
    norm: Norm = "linf"
    size: tuple[int, ...] = ()
    image_size: int | None = None
    warm_start: bool = False

    @classmethod
    def of(
        cls,
        method: str,
        recipe: Recipe,
        images: ImageSet,
        *,
        dataset: str,
        image_size: int | None = None,
        seed: int = 0,
        normalize: Over = "sample",
    ) -> About:
        """The description of the networks that a recipe trains on some images.

        Args:
            method: The method.
            recipe: Names the architectures; an attacker without a width is given the one that
                :func:`~bilevel.robustness.fitting_width` finds.
            images: The training images.
            dataset: Where they come from.
            image_size: See :func:`~bilevel.robustness.load_images`.
            seed: Seed of the run.
            normalize: What the attacker's gradients are divided by, see :class:`Attacker`.

        Returns:
            Their description.
        """
        _, channels, height, width = images.images.shape
        classes = len(images.classes)
        attacker = Attacker(
            recipe.attacker, normalize=normalize, gradient_skip=recipe.gradient_skip
        )
        fitting = recipe.attacker_width
        if fitting is None:
            with random_state_kept(torch.device("cpu")):  # it is only counted
                model = build_classifier(recipe.model, channels=channels, classes=classes)
            fitting = fitting_width(attacker, model, (channels, height, width))
        return cls(
            method=method,
            model=recipe.model,
            channels=channels,
            classes=classes,
            dataset=dataset,
            epsilon=recipe.epsilon,
            norm=recipe.norm,
            seed=seed,
            attacker=replace(attacker, width=fitting),
            class_names=images.classes,
            size=(height, width),
            image_size=image_size,
            warm_start=recipe.warm_start,
        )

    def follower(self, eps: float | None = None) -> Perturbation:
        """The follower that the attacker was trained to solve.

        Args:
            eps: ε; the one of training unless given.

        Returns:
            The threat model.
        """
        eps = self.epsilon if eps is None else eps
        if self.interpolation is None:
            return NORMS[self.norm](eps)
        return Interpolation(eps, **self.interpolation)

    def solver(self) -> Solver:
        """A new, untrained solver of the method.

        Returns:
            A new solver.
        """
        return make_solver(
            self.method,
            eps=self.epsilon,
            channels=self.channels,
            attacker=self.attacker,
            norm=self.norm,
            warm_start=self.warm_start,
        )

    def classifier(self) -> nn.Module:
        """A new, untrained classifier of that architecture.

        Returns:
            A new network.
        """
        return build_classifier(self.model, channels=self.channels, classes=self.classes)

    @property
    def learned(self) -> bool:
        """Whether an attacker was trained with the classifier.

        Returns:
            True if so.
        """
        return is_learned(self.method)


@dataclass(frozen=True)
class Trained:
    """A trained classifier with its attacker and description.

    Args:
        name: The name in reports.
        about: The description.
        model: The classifier.
        solver: The attacker that was trained with it; None if there is none.
    """

    name: str
    about: About
    model: nn.Module
    solver: Solver | None = None


def save_trained(
    folder: str | os.PathLike[str], about: About, model: nn.Module, solver: Solver
) -> None:
    """Writes a classifier, and its attacker if it has one.

    Args:
        folder: The folder; created if missing.
        about: The description.
        model: The classifier.
        solver: The method's solver.

    Raises:
        BilevelError: If they cannot be written.
    """
    metadata = {"about": json.dumps(asdict(about))}
    save_weights(Path(folder) / CLASSIFIER, model, metadata)
    if about.learned:
        save_weights(Path(folder) / ATTACKER, solver, metadata)


def load_trained(
    path: str | os.PathLike[str], name: str | None = None, *, allow_import: bool = False
) -> Trained:
    """Reads what :func:`save_trained` wrote.

    Args:
        path: The folder, or the classifier's file in it.
        name: The name in reports; the folder's name unless given.
        allow_import: Whether the module of a network of one's own, which the file names, may be
            imported: it runs code.

    Returns:
        The classifier, in evaluation mode; without its attacker if that file is missing.

    Raises:
        BilevelError: If there is no classifier, its file has no valid description, or it names a
            module that may not be imported.

    Example:
        >>> import tempfile
        >>> about = About("pgm", "small-cnn", 1, 10, dataset="digits", epsilon=0.2)
        >>> folder = Path(tempfile.mkdtemp()) / "pgm"
        >>> save_trained(folder, about, about.classifier(), about.solver())
        >>> load_trained(folder).about == about
        True
    """
    path = Path(os.path.abspath(path))  # so that "." has a name
    file = path / CLASSIFIER if path.is_dir() else path
    about = _read(file)
    if is_own(about.model) and not allow_import:
        raise BilevelError(
            f"{file} holds the weights of {about.model}, whose module would be imported and run: "
            "if you trust it, give allow_import=True (--allow-import)"
        )
    model = about.classifier()
    load_weights(file, model)
    solver, attacker = None, file.parent / ATTACKER
    if about.learned and attacker.exists():
        solver = about.solver()
        load_weights(attacker, solver)
    return Trained(name or file.parent.name, about, model.eval(), solver)


def _read(file: Path) -> About:
    metadata = read_about(file)
    try:
        values = json.loads(metadata["about"])
        tuples = {name: tuple(values.get(name, ())) for name in ("class_names", "size")}
        return About(**{**values, "attacker": Attacker(**values["attacker"]), **tuples})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BilevelError(
            f"{file} does not say what network it holds ({type(error).__name__}: {error}): name "
            f"a {CLASSIFIER} that a training application of this version wrote"
        ) from error
