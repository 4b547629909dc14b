"""Faults to plant into a sound classifier, and one to plant them into."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Tensor]


def linear() -> nn.Module:
    """A sound classifier: three classes, for 4×4 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


class Faulty(nn.Module):
    """A classifier that computes in another way."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self.by = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.by(self.model, x)


def straight_through(x: Tensor, levels: int) -> Tensor:
    """Rounded, with the gradient of what is not rounded."""
    return x + (torch.round(x * levels) / levels - x).detach()


def normalised(mean: list[float], std: list[float]) -> Forward:
    """Trained on images that were normalised outside of it."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        channels = [torch.tensor(s).view(-1, 1, 1) for s in (mean, std)]
        return model(x * channels[1] + channels[0])

    return forward


def anti_adversary(model: nn.Module, x: Tensor) -> Tensor:
    """Steps away from the boundary first (Alfarra et al., 2022)."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        logits = model(at)
        loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, at)
    length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    return model(x - gradient / length.view(-1, 1, 1, 1))


FAULTS: dict[str, Forward] = {
    "huge logits": lambda model, x: 1e6 * model(x),
    "large logits": lambda model, x: 100 * model(x),
    "rounded logits": lambda model, x: model(x).round(),
    "rounded features": lambda model, x: model.head(straight_through(model.features(x), 2)),
    "rounded inputs": lambda model, x: model(straight_through(x, 15)),
    "anti-adversary": anti_adversary,
    "oscillation": lambda model, x: model(x + 0.01 * torch.sin(3000 * x)),
    "no gradient": lambda model, x: model(x.detach()),
    "random inputs": lambda model, x: model(x + 0.1 * torch.randn_like(x)),
    "random layer": lambda model, x: model.head(F.dropout(model.features(x), 0.2, training=True)),
    "probabilities": lambda model, x: model(x).softmax(1),
    "half-precision probabilities": lambda model, x: model(x).bfloat16().softmax(1).float(),
    "0 to 255": lambda model, x: model(x / 255),
    "-1 to 1": normalised([0.5], [0.5]),
    "batch statistics": lambda model, x: model.head(
        F.batch_norm(model.features(x), None, None, training=True)
    ),
    "batch brightness": lambda model, x: model(x - x.mean((0, 2, 3), keepdim=True) + 0.3),
}
