"""Examples of attacked images, and the figure that shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bilevel import Solver, frozen
from bilevel.experiment.style import BAD, INK, MUTED, STYLE
from bilevel.robustness.attacks.attack import attack, for_evaluation
from bilevel.robustness.data.batches import Batch
from bilevel.robustness.threats.threat import Threat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Example:
    """One image before and after an attack.

    Args:
        title: The name of the attack or of the training method.
        clean: ``(C, H, W)`` in [0, 1].
        adversarial: The perturbed image.
        label: The name of its class.
        prediction: The name of the class predicted for the adversarial image.
    """

    title: str
    clean: Tensor
    adversarial: Tensor
    label: str
    prediction: str


def examples(
    title: str,
    model: nn.Module,
    follower: Threat,
    solver: Solver,
    batch: Batch,
    classes: Sequence[str],
) -> list[Example]:
    """Attacks a few images, and keeps them with the classifier's predictions.

    Args:
        title: The name of the attack or of the training method.
        model: The classifier, left as it was.
        follower: The threat model.
        solver: The attack.
        batch: The images.
        classes: The names of the classes.

    Returns:
        One example an image.
    """
    adversarial = attack(model, follower, for_evaluation(solver), batch).x
    with torch.no_grad(), frozen(model):
        predicted = model(adversarial.clone()).argmax(1)  # it may normalise them in place
    return [
        Example(title, clean.cpu(), moved.cpu(), classes[label], classes[prediction])
        for clean, moved, label, prediction in zip(
            batch.x, adversarial, batch.y.tolist(), predicted.tolist(), strict=True
        )
    ]


def plot_attacks(examples: Sequence[Example]) -> Figure:
    """Clean image, perturbation and adversarial image, as in the paper's Figures 4 and 5.

    Perturbations are scaled to the full range; a wrong prediction is marked with ✗. Images whose
    channels are not the three of colours are shown in grey, the mean over their channels.

    Args:
        examples: Images of one size; those of one title make a row.

    Returns:
        The figure.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows: dict[str, list[Example]] = {}
    for example in examples:
        rows.setdefault(example.title, []).append(example)
    height, width = examples[0].clean.shape[-2:]
    aspect = height / width  # of a panel, whose width is 1
    left, right = -1.1, 3.2 * max(map(len, rows.values())) - 0.1
    pitch = aspect + 0.26
    bottom = -pitch * len(rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.15 * (right - left), -1.15 * bottom))
        axis = figure.add_axes((0, 0, 1, 1))  # one for all panels: one for each takes seconds
        for row, (title, shown) in enumerate(rows.items()):
            base = -pitch * (row + 1) + 0.02
            label = textwrap.fill(title, 16)
            axis.text(-0.12, base + aspect / 2, label, ha="right", va="center")
            for i, example in enumerate(shown):
                _draw(axis, 3.2 * i, base, aspect, example)
        axis.set(xlim=(left, right), ylim=(bottom, 0))
        axis.set_axis_off()
    return figure


def _draw(axis: Axes, x: float, y: float, aspect: float, example: Example) -> None:
    """Three panels in a row, the first with its lower left corner at (x, y)."""
    delta = example.adversarial - example.clean
    norm = float(delta.abs().max())
    right = example.prediction == example.label
    panels = (
        (example.clean, _short(example.label), INK),
        (0.5 + delta / (2 * norm or 1.0), f"± {norm:.2g}", MUTED),
        (
            example.adversarial,
            f"→ {_short(example.prediction)}" + ("" if right else " ✗"),
            INK if right else BAD,
        ),
    )
    for i, (image, title, color) in enumerate(panels):
        at = x + 1.03 * i
        axis.imshow(
            _drawable(image).clamp(0, 1).cpu().numpy(),
            cmap="RdBu_r" if i == 1 else "gray",
            vmin=0,
            vmax=1,
            interpolation="none",
            extent=(at, at + 1, y, y + aspect),
        )
        axis.text(at + 0.5, y + aspect + 0.04, title, color=color, ha="center", va="baseline")


def _drawable(image: Tensor) -> Tensor:
    """Colours, ``(H, W, 3)``, or grey, ``(H, W)``."""
    return image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)


def _short(label: str) -> str:
    """A label, cut to fit above a panel."""
    return label if len(label) <= 12 else f"{label[:11]}…"
