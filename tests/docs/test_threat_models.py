"""docs/threat_models.md: it runs, and its threat models are what they are called."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilevel
from bilevel import Bilevel, Parametric, ZeroSum
from bilevel.robustness import Batch, Threat, accuracy, shuffled_batches
from tests.images import image_set

PAGE = (Path(__file__).parents[2] / "docs" / "threat_models.md").read_text()


def test_the_page_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    assert names["path"].exists()
    clean, *attacked = names["curve"].accuracy
    assert clean > 0.3
    assert attacked[-1] < attacked[0] <= clean
    assert names["robust"] == pytest.approx(attacked[2], abs=0.02)


def threat(name: str, *settings: float) -> Threat:
    """One of the page's, alone."""
    (code,) = re.findall(rf"^(class {name}\(.*?)\n\n\n", PAGE, re.M | re.S)
    names: dict[str, Any] = {"torch": torch, "F": F, "Threat": Threat}
    exec(code, names)
    made: Threat = names[name](*settings)
    return made


@pytest.mark.parametrize("angle", [-0.5, 0.3])
@pytest.mark.parametrize("size", [(16, 16), (12, 40), (40, 12)])
def test_a_rotation_of_an_image_that_is_not_square(size: tuple[int, int], angle: float) -> None:
    """A plane in the pixels turns into the plane of the turned slope, and is not sheared."""
    rows, columns = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    slope = 0.01, 0.004

    def plane(rows: Tensor, columns: Tensor) -> Tensor:
        return 0.5 + slope[0] * rows + slope[1] * columns

    y, (sine, cosine) = (
        torch.tensor([[angle / 0.5, 0, 0]]),
        (torch.tensor(angle).sin(), torch.tensor(angle).cos()),
    )
    found = threat("Rotation").perturbed(y, Batch(plane(rows, columns)[None, None], torch.zeros(1)))
    turned = sine * columns + cosine * rows, cosine * columns - sine * rows
    inside = [at.abs() <= (n - 1) / 2 for at, n in zip(turned, size, strict=True)]
    inside = inside[0] & inside[1]
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(found[0, 0][inside], plane(*turned)[inside], rtol=0, atol=1e-5)


def test_a_trained_universal_perturbation_is_the_same_for_every_batch_size() -> None:
    """Solved anew for each batch, its figure would depend on the size."""
    images, universal = image_set(64), threat("Universal", 0.1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
    y = Parametric(torch.zeros(1, 1, 4, 4))
    optimizer = torch.optim.Adam(y.parameters(), lr=0.01)
    leader = ZeroSum(model, universal)
    game = Bilevel(leader, universal, y, leader_opt=None, solver_opt=optimizer)
    for epoch in range(20):
        for batch in shuffled_batches(images, 32, seed=0, epoch=epoch):
            game.step(batch)
    moved = (images.images / 255 + y.y).clamp(0, 1)
    right = (model(moved).argmax(1) == images.labels).float().mean().item()
    figures = [accuracy(model, images, universal, y, batch_size=size) for size in (1, 9, 64)]
    assert figures == pytest.approx([right] * 3)
    loss = [F.cross_entropy(model(x), images.labels) for x in (images.images / 255, moved)]
    assert loss[1] > loss[0]


def test_a_segmenter_is_trained_and_attacked_as_by_hand() -> None:
    section = PAGE[PAGE.index("## Labels that are not one class") :]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = dict(vars(bilevel), **vars(bilevel.robustness), torch=torch, F=F)
    setup, step = code.split("segmentation.step(scenes)")
    exec(setup, names)
    scenes, twin = names["scenes"], copy.deepcopy(names["segmenter"])
    delta = torch.zeros_like(scenes.x, requires_grad=True)
    for _ in range(10):
        loss = F.cross_entropy(twin(scenes.x + delta), scenes.y)
        (gradient,) = torch.autograd.grad(loss, delta)
        moved = (delta + 0.01 * gradient.sign()).clamp(-0.03, 0.03)
        delta = ((scenes.x + moved).clamp(0, 1) - scenes.x).detach().requires_grad_()
    F.cross_entropy(twin(scenes.x + delta), scenes.y).backward()
    exec("segmentation.step(scenes)" + step, names)
    for trained, by_hand in zip(names["segmenter"].parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(trained, by_hand - 0.1 * by_hand.grad)
    assert (names["seen"] - scenes.x).abs().max() == pytest.approx(0.03)
    clean, attacked = (names["pixelwise"](twin(x), scenes) for x in (scenes.x, names["seen"]))
    assert (attacked > clean).all()
