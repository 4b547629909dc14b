"""Networks on a GPU: their precision, compiled, attacked, and in how much memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel import Unrolled
from bilevel.experiment.memory import peak_mib
from bilevel.robustness import (
    Attacker,
    AttackSettings,
    Battery,
    ImageSet,
    build_model,
    compile_network,
    computing,
    default_precision,
    make_attacks,
)
from bilevel.robustness.networks.compilation import is_compiled
from bilevel.robustness.networks.precision import Precision
from tests.gpu.players import ridge_game, rows

# A warning of a driver or a compiler is shown, and fails no test.
pytestmark = pytest.mark.filterwarnings("default")


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def switches() -> list[Any]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.is_autocast_enabled("cuda")]


@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [("float32", 0.0, 1e-5), ("tf32", 1e-5, 1e-2), ("bf16", 1e-4, 1e-1)],
)
def test_networks_compute_in_the_precision_that_is_asked_for(
    precision: Precision, least: float, most: float, device: torch.device
) -> None:
    x = torch.randn(16, 128, 32, 32, device=device).to(memory_format=torch.channels_last)
    filters = torch.randn(128, 128, 3, 3, device=device).to(memory_format=torch.channels_last)
    matrix = torch.randn(512, 512, device=device)
    before = switches()
    with computing(precision, device):
        found = F.conv2d(x, filters, padding=1), matrix @ matrix
    assert switches() == before
    exact = F.conv2d(x.double(), filters.double(), padding=1), matrix.double() @ matrix.double()
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        assert least <= relative_error(ours, theirs) < most


def test_the_search_for_algorithms_ends_with_the_block(device: torch.device) -> None:
    before = switches()
    with computing("tf32", device, one_size=True):
        assert torch.backends.cudnn.benchmark
    assert switches() == before


def test_the_default_precision_is_bf16_from_ampere_on(device: torch.device) -> None:
    able = torch.cuda.get_device_capability(device) >= (8, 0)
    assert default_precision(device) == ("bf16" if able else "float32")


def slopes(network: nn.Module, *inputs: Any) -> list[Tensor]:
    """Output, and the gradients of a function of it with respect to inputs and weights."""
    given = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    out = network(*given)
    out = out if isinstance(out, Tensor) else out[0]
    wanted = [x for x in given if isinstance(x, Tensor)] + list(network.parameters())
    found = torch.autograd.grad(out.sin().sum(), wanted, allow_unused=True)
    return [out.detach(), *(slope for slope in found if slope is not None)]


@pytest.mark.parametrize("part", ["classifier", "attacker"])
def test_a_compiled_network_is_the_eager_one_but_for_rounding(
    part: str, device: torch.device
) -> None:
    x = torch.rand(8, 3, 16, 16, device=device)
    inputs: tuple[Any, ...] = (x,)
    network: nn.Module = build_model("wrn-10-1", channels=3, classes=10)
    if part == "attacker":
        attacker = Attacker("two-layer", width=8, gradient_skip=1.0)
        network = attacker.update(3, 0.1, ("context", "gradient"))
        inputs = (torch.zeros_like(x), torch.randn_like(x), x, None)
    network.to(device)
    compiled = copy.deepcopy(network)
    compile_network(compiled)
    with computing("float32", device):
        expected, found = slopes(network, *inputs), slopes(compiled, *inputs)
    assert is_compiled(compiled)
    assert len(found) == len(expected) > 3
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * max(1.0, b.abs().max().item())


def test_a_compiled_unrolled_solve_is_the_eager_one(device: torch.device) -> None:
    eager, compiled = (ridge_game(device, adjoint=Unrolled(compile=on)) for on in (False, True))
    for game in (eager, compiled):
        game.step(rows(device))
    torch.testing.assert_close(compiled.leader.decay, eager.leader.decay, rtol=1e-10, atol=1e-10)


def test_attacks_break_the_images_that_they_break_on_a_processor(device: torch.device) -> None:
    """Up to an image or two: random starts are drawn on the device."""
    images = ImageSet(
        torch.randint(256, (100, 1, 8, 8), dtype=torch.uint8), torch.arange(100) % 2, ("a", "b")
    )
    last = nn.Linear(144, 2)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), last).eval()
    with torch.no_grad():  # as many images in one class as in the other
        scores = model(images.images / 255)
        last.bias[1] += (scores[:, 0] - scores[:, 1]).mean()
    eps, found = 0.02, []
    for where in (torch.device("cpu"), device):
        attacks = make_attacks(["pgm-20", "apgd-ce"], AttackSettings(eps, 2, alone=("apgd-ce",)))
        with computing("float32", where):
            right, outcomes = Battery(attacks, eps=eps).run(model.to(where), images.to(where))
        assert not any(outcome.problem for outcome in outcomes)
        found.append([right, *(outcome.broken for outcome in outcomes)])
    for ours, theirs in zip(*found, strict=True):
        assert 5 < theirs.sum() < 95
        assert (ours != theirs).sum() <= 2


def test_the_peak_of_memory_is_that_of_known_tensors(device: torch.device) -> None:
    def run() -> Tensor:
        return torch.zeros(2**24, device=device) + torch.ones(2**24, device=device)

    run()
    torch.cuda.empty_cache()
    assert peak_mib(run, device) == pytest.approx(3 * 64, abs=1)
