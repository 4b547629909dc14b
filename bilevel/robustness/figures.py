"""Pictures of what attackers do to images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from bilevel.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_attacks(
    path: Path,
    clean: Tensor,
    attacked: Mapping[str, Tensor],
    labels: Mapping[str, list[str]],
    truth: list[str],
) -> None:
    """Clean image, perturbation and adversarial image for each method, as in the paper's Figure 4.

    Perturbations are stretched to the full range; a wrong answer of the classifier is red.

    Args:
        path: The PNG file.
        clean: ``(N, C, H, W)`` in [0, 1].
        attacked: For each method, the images as its attacker changes them.
        labels: For each method, what its classifier says to them.
        truth: The right labels.

    Raises:
        BilevelError: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = 3 * len(clean)
    figure = Figure(figsize=(1.25 * columns, 1.5 * len(attacked) + 0.3), layout="constrained")
    axes = figure.subplots(len(attacked), columns, squeeze=False)
    for row, (method, images) in zip(axes, attacked.items(), strict=True):
        row[0].set_ylabel(method)
        for i, (x, adversarial) in enumerate(zip(clean, images, strict=True)):
            delta = adversarial - x
            reach = float(delta.abs().max()) or 1.0
            said = labels[method][i]
            _draw(row[3 * i], x, truth[i])
            _draw(row[3 * i + 1], 0.5 + delta / (2 * reach), f"± {reach:.2g}", cmap="RdBu_r")
            _draw(row[3 * i + 2], adversarial, f"→ {said}", "black" if said == truth[i] else "red")
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format="png")


def _draw(axis: Axes, image: Tensor, title: str, color: str = "black", cmap: str = "gray") -> None:
    pixels = image.permute(1, 2, 0).squeeze(-1).cpu().numpy()
    axis.imshow(pixels, cmap=cmap, vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, color=color)
    axis.set_xticks([])
    axis.set_yticks([])
