"""The classifiers are the published ones: parameters, multiply-adds and outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bilevel.errors import BilevelError
from bilevel.robustness.networks.classifier import Normalize
from bilevel.robustness.networks.models import build_model, resnet18, small_cnn, wide_resnet

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
ON_CPU = [("cpu", name) for name in ("small-cnn", "resnet18", "wrn-10-1", "wrn-16-2")]
ON_META = [("meta", name) for name in ("small-cnn", "resnet18", "wrn-34-10")]


def parameters_of(name: str) -> int:
    with torch.device("meta"):
        model = build_model(name, channels=3, classes=10)
    return sum(parameter.numel() for parameter in model.parameters())


def scrambled(model: nn.Module) -> nn.Module:
    """Gives every BatchNorm weights, biases and statistics of its own, so that none is a no-op."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", 11_173_962), ("wrn-34-10", 46_160_474), ("wrn-28-10", 36_479_194)],
)
def test_sizes_are_the_published_ones(name: str, published: int) -> None:
    assert parameters_of(name) == published


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("wrn-40-1", 0.6),
        ("wrn-40-2", 2.2),
        ("wrn-40-4", 8.9),
        ("wrn-40-8", 35.7),
        ("wrn-28-12", 52.5),
        ("wrn-22-8", 17.2),
        ("wrn-16-8", 11.0),
    ],
)
def test_sizes_are_those_of_the_wide_resnet_paper(name: str, millions: float) -> None:
    assert parameters_of(name) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "giga"), [("resnet18", 0.555), ("wrn-28-10", 5.243), ("wrn-34-10", 6.659)]
)
def test_multiply_adds_of_one_image(name: str, giga: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_model(name, channels=3, classes=10)(torch.rand(1, 3, 32, 32))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("device", "name"), ON_CPU + ON_META)
def test_every_model_takes_every_shape(device: str, name: str, shape: tuple[int, ...]) -> None:
    with torch.device(device):
        model, images = build_model(name, channels=shape[0], classes=7), torch.rand(2, *shape)
        logits, features = model(images), model.features(images)
    assert logits.shape == (2, 7)
    assert features.shape == (2, model.head.in_features)


@pytest.mark.parametrize("name", ["small-cnn", "resnet18", "wrn-10-1"])
def test_forward_is_the_head_on_the_features(name: str) -> None:
    model = build_model(name, channels=1, classes=10).eval()
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(images), model.head(model.features(images)))


def test_resnet18_is_torchvisions_with_the_small_stem() -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    scrambled(theirs).eval()

    ours = resnet18(channels=3, classes=10).eval()
    values = list(theirs.state_dict().values())  # both list their layers in the order of use
    names = [name for name in ours.state_dict() if not name.startswith("normalize")]
    ours.load_state_dict(dict(zip(names, values, strict=True)), strict=False)

    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(2 * images - 1), rtol=1e-4, atol=1e-5)


def wide_resnet_by_hand(x: Tensor, weights: dict[str, Tensor], blocks: int) -> Tensor:
    """Zagoruyko & Komodakis 2016 written as mathematics, from a table of weights."""

    def bn_relu(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{what}"][:, None, None]
            for what in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()

    x = F.conv2d(2 * x - 1, weights["trunk.0.weight"], padding=1)
    for group in (1, 2, 3):
        for index in range(blocks):
            block = f"trunk.{group}.{index}"
            stride = 2 if group > 1 and index == 0 else 1
            active = bn_relu(x, f"{block}.bn1")
            if index == 0:
                x = F.conv2d(active, weights[f"{block}.shortcut.weight"], stride=stride)
            out = F.conv2d(active, weights[f"{block}.conv1.weight"], stride=stride, padding=1)
            out = bn_relu(out, f"{block}.bn2")
            x = x + F.conv2d(out, weights[f"{block}.conv2.weight"], padding=1)
    pooled = bn_relu(x, "trunk.4").mean(dim=(2, 3))
    return pooled @ weights["head.weight"].T + weights["head.bias"]


def test_wide_resnet_is_the_formula() -> None:
    model = scrambled(wide_resnet(16, 2, channels=3, classes=10)).eval()
    images = torch.rand(2, 3, 32, 32)
    by_hand = wide_resnet_by_hand(images, model.state_dict(), blocks=2)
    torch.testing.assert_close(model(images), by_hand, rtol=1e-4, atol=1e-5)


def test_convolutions_start_as_he_et_al() -> None:
    for name, parameter in wide_resnet(16, 4, channels=3, classes=10).named_parameters():
        if parameter.ndim == 4:
            outputs, _, height, width = parameter.shape
            he = (2 / (outputs * height * width)) ** 0.5
            assert parameter.std().item() == pytest.approx(he, rel=0.15), name
        assert name != "head.bias" or not parameter.any()


def test_normalises_inside() -> None:
    images = torch.rand(5, 3, 8, 8)
    mean, std = images.mean(dim=(0, 2, 3)).tolist(), images.std(dim=(0, 2, 3)).tolist()
    model = build_model("small-cnn", channels=3, classes=10, mean=mean, std=std).eval()
    normal = model.normalize(images)
    torch.testing.assert_close(normal.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(normal.std(dim=(0, 2, 3)), torch.ones(3), rtol=0, atol=1e-5)

    plain = build_model("small-cnn", channels=3, classes=10, mean=[0.0], std=[1.0]).eval()
    assert not torch.allclose(plain.normalize.mean, model.normalize.mean)
    plain.trunk, plain.head = model.trunk, model.head
    torch.testing.assert_close(model(images), plain(normal))


def test_the_statistics_are_saved_with_the_weights() -> None:
    model = build_model("small-cnn", channels=3, classes=10, mean=[0.1, 0.2, 0.3], std=[0.4])
    other = small_cnn(channels=3, classes=10)
    other.load_state_dict(model.state_dict())
    assert other.normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert other.normalize.std.flatten().tolist() == pytest.approx([0.4] * 3)


def test_small_cnn_learns_digits_in_seconds() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    torch.manual_seed(0)
    shuffled = torch.randperm(len(digits.target))
    images = torch.tensor(digits.images / 16).float()[shuffled, None]
    labels = torch.tensor(digits.target)[shuffled]
    model = small_cnn(channels=1, classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        for index in torch.randperm(1400).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    accuracy = (model.eval()(images[1400:]).argmax(dim=1) == labels[1400:]).float().mean()
    assert accuracy > 0.97


def test_bad_images_are_refused() -> None:
    model = build_model("small-cnn", channels=3, classes=10)
    with pytest.raises(BilevelError, match=r"\(2, 1, 8, 8\) but the model takes \(B, 3, H, W\)"):
        model(torch.rand(2, 1, 8, 8))
    with pytest.raises(BilevelError, match=r"\(4, 3, 8\)"):
        model(torch.rand(4, 3, 8))
    with pytest.raises(BilevelError, match=r"uint8.*/ 255"):
        model(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("statistics", "why"),
    [
        ({"mean": [0.1, 0.2]}, "mean has 2 numbers but the images have 3"),
        ({"std": [0.2, 0.0, 0.3]}, "positive"),
    ],
)
def test_bad_statistics_are_refused(statistics: dict[str, list[float]], why: str) -> None:
    with pytest.raises(BilevelError, match=why):
        Normalize(3, **statistics)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet-18", "did you mean resnet18"),
        ("wideresnet-34-10", "did you mean wrn-34-10"),
        ("smallcnn", "did you mean small-cnn"),
        ("wrn-33-10", "give wrn-34-10"),
        ("wrn-4-1", "give wrn-10-1"),
        ("wrn-16-0", "give wrn-16-1"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(BilevelError, match=nearest):
        build_model(name, channels=3, classes=10)
