"""The sources of images, and their splits; folders and npz have files of their own."""

from __future__ import annotations

import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilevel.errors import BilevelError
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.data.sources import load_images
from bilevel.robustness.data.splits import Splits
from tests.images import counts, same


def load(dataset: Any, data_dir: Path, **options: Any) -> Splits:
    return load_images(dataset, data_dir, **{"seed": 0, **options})


def rows(images: ImageSet) -> set[bytes]:
    return {bytes(image.numpy()) for image in images.images}


def test_digits_are_the_grey_levels_of_scikit_learn_as_bytes(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    splits = load("digits", tmp_path, validation=0)
    expected = {
        (np.array([round(v * 255 / 16) for v in image.ravel()], np.uint8).tobytes(), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    }
    found = {
        (bytes(image.numpy()), int(label))
        for part in (splits.train, splits.test)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == expected
    assert splits.train.images.shape[1:] == (1, 8, 8)
    assert splits.train.images.is_contiguous()
    assert splits.train.classes == tuple("0123456789")
    assert len(splits.validation) == 0


def test_splits_are_disjoint_and_stratified(tmp_path: Path) -> None:
    splits = load("digits", tmp_path, validation=0.25)
    assert sum(map(len, splits)) == 1797
    assert len(set.union(*map(rows, splits))) == sum(len(rows(part)) for part in splits) == 1797
    whole = np.sum([counts(part) for part in splits], axis=0)
    for part in splits:
        assert np.abs(np.array(counts(part)) - whole * len(part) / 1797).max() < 1.5


def test_the_seed_moves_validation_but_never_the_test_set(tmp_path: Path) -> None:
    first, again, other = (load("digits", tmp_path, seed=seed) for seed in (0, 0, 1))
    assert same(first, again)
    assert not torch.equal(first.validation.images, other.validation.images)
    assert torch.equal(first.test.images, other.test.images)
    assert rows(first.train) | rows(first.validation) == rows(other.train) | rows(other.validation)


def test_train_size_keeps_a_stratified_part_of_what_is_left(tmp_path: Path) -> None:
    whole, small = load("digits", tmp_path), load("digits", tmp_path, train_size=105)
    assert len(small.train) == 105
    assert set(counts(small.train)) == {10, 11}
    assert rows(small.train) < rows(whole.train)
    assert torch.equal(small.validation.images, whole.validation.images)
    assert torch.equal(small.test.images, whole.test.images)


def test_the_seed_draws_the_part_that_is_kept(tmp_path: Path) -> None:
    few = {"validation": 0.0, "train_size": 105}
    first, again, other = (load("digits", tmp_path, seed=seed, **few).train for seed in (1, 1, 2))
    assert rows(first) == rows(again) != rows(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"train_size": 0}, "train_size is 0: 1294 training images remain"),
        ({"train_size": 1295}, "give 1 to 1294"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        load("digits", tmp_path, **options)


def test_unknown_dataset(tmp_path: Path) -> None:
    with pytest.raises(BilevelError, match=r"dataset is 'mnist'.*'digits', 'fashion-mnist'"):
        load("mnist", tmp_path)


def write_idx(path: Path, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """The file format of MNIST: magic number 0x08 + dimensions, sizes, bytes."""
    header = struct.pack(f">{1 + data.ndim}i", 0x800 + data.ndim, *data.shape)
    path.write_bytes(header + data.tobytes())


def write_fashion_mnist(root: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = {}
    for part, count in (("train", 40), ("t10k", 20)):
        images[part] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return images


def test_fashion_mnist_from_its_raw_files(tmp_path: Path) -> None:
    source = write_fashion_mnist(tmp_path)
    splits = load("fashion-mnist", tmp_path, validation=0.25, download=False)
    assert [len(part) for part in splits] == [30, 10, 20]
    assert torch.equal(splits.test.images, torch.from_numpy(source["t10k"]).unsqueeze(1))
    assert splits.test.labels.tolist() == list(range(10)) * 2
    assert splits.test.classes[9] == "Ankle boot"
    assert counts(splits.validation) == [1] * 10


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_becomes_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import torchvision

    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)

    class Cifar:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            self.data = pixels if train else pixels[:4]
            self.targets = [0, 1] * (10 if train else 2)
            self.classes = ["cat", "dog"]

    monkeypatch.setattr(torchvision.datasets, name, Cifar)
    splits = load(name.lower(), tmp_path, validation=0)
    assert splits.train.images.is_contiguous()
    assert torch.equal(splits.train.images.permute(0, 2, 3, 1), torch.from_numpy(pixels))
    assert splits.test.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("dataset", "place"),
    [
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
    ],
)
@pytest.mark.parametrize("download", [False, True])
def test_missing_files_and_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, place: str, download: bool
) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(BilevelError) as caught:
        load(dataset, tmp_path, download=download)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{dataset} is not available in {tmp_path / place}" in message
    assert ("no route to host" if download else "not found") in message
    assert "put its unpacked files there" in message
    assert ("allow the download" in message) is not download


def test_a_damaged_raw_file_is_told_in_one_line(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BilevelError, match=r"^fashion-mnist is not available .*$"):
        load("fashion-mnist", tmp_path, download=False)


def test_torchvision_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BilevelError, match="cifar10 is read by torchvision, which cannot be"):
        load("cifar10", tmp_path)
