"""Where images come from: each source, its splits, its cache, and what it says of bad input."""

from __future__ import annotations

import os
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel.errors import BilevelError
from bilevel.robustness import folder
from bilevel.robustness.data import ImageSet, Splits, load_images


def load(dataset: Any, data_dir: Path, **options: Any) -> Splits:
    return load_images(dataset, data_dir, **{"seed": 0, **options})


def counts(images: ImageSet) -> list[int]:
    return torch.bincount(images.labels, minlength=len(images.classes)).tolist()


def rows(images: ImageSet) -> set[bytes]:
    return {bytes(image.numpy()) for image in images.images}


def same(a: Splits, b: Splits) -> bool:
    return all(
        torch.equal(p.images, q.images) and torch.equal(p.labels, q.labels)
        for p, q in zip(a, b, strict=True)
    )


def write_image(path: Path, seed: int, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> None:
    """A random image of ``size`` = (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_tree(
    root: Path, classes: Sequence[str] = ("cat", "dog"), count: int = 10, seed: int = 0
) -> Path:
    for label, name in enumerate(classes):
        for index in range(count):
            write_image(root / name / f"{index:03}.png", seed + 1000 * label + index)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "pets" / "train")
    write_tree(tmp_path / "pets" / "test", count=3, seed=5000)
    return tmp_path / "pets"


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the tests out of the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bilevel"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from now on."""
    seen: list[Path] = []
    pixels = folder._pixels
    monkeypatch.setattr(folder, "_pixels", lambda path: seen.append(path) or pixels(path))
    return seen


# --- splits ---------------------------------------------------------------------------------------


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
    with pytest.raises(BilevelError, match="'mnist' is unknown; give digits, fashion-mnist"):
        load("mnist", tmp_path)


def test_an_image_set_refuses_floats_and_missing_labels() -> None:
    pixels = torch.zeros(2, 1, 4, 4)
    with pytest.raises(BilevelError, match=r"images are torch.float32 of shape \(2, 1, 4, 4\)"):
        ImageSet(pixels, torch.zeros(2).long(), ("a",))
    with pytest.raises(BilevelError, match=r"give int64 of shape \(2,\)"):
        ImageSet(pixels.byte(), torch.zeros(3).long(), ("a",))


# --- torchvision ----------------------------------------------------------------------------------


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
    assert f"{dataset} is not to be had in {tmp_path / place}" in message
    assert ("no route to host" if download else "not found") in message
    assert "put its unpacked files there" in message


def test_a_damaged_raw_file_is_told_in_one_line(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BilevelError, match=r"^fashion-mnist is not to be had .*$"):
        load("fashion-mnist", tmp_path, download=False)


def test_torchvision_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(BilevelError, match="cifar10 is read by torchvision, which cannot be"):
        load("cifar10", tmp_path)


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_read_as_image_folder_reads_it(tree: Path) -> None:
    from torchvision.datasets import ImageFolder

    write_image(tree / "test" / "cat" / "deeper" / "x.JPG", 9)
    write_image(tree / "test" / "dog" / "grey.png", 9, mode="L")
    (tree / "test" / "dog" / "notes.txt").write_text("no image")
    source = ImageFolder(str(tree / "test"))
    test = load("folder", tree).test
    assert test.classes == tuple(source.classes)
    assert test.labels.tolist() == source.targets
    expected = np.stack([np.asarray(image) for image, _ in source]).transpose(0, 3, 1, 2)
    assert np.array_equal(test.images, expected)


def test_a_folder_with_test_images_keeps_them_whole(tree: Path) -> None:
    splits = load("folder", tree, validation=0.2)
    assert [counts(part) for part in splits] == [[8, 8], [2, 2], [3, 3]]
    assert splits.test.images.shape == (6, 3, 4, 5)


def test_a_folder_without_test_images_gives_a_fifth(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "pets")
    first, other = (load("folder", root, validation=0.25, seed=seed) for seed in (0, 1))
    assert [counts(part) for part in first] == [[6, 6], [2, 2], [2, 2]]
    assert len(set.union(*map(rows, first))) == 20
    assert torch.equal(first.test.images, other.test.images)


def test_the_cache_is_hit_and_gives_the_same_images(tree: Path, decoded: list[Path]) -> None:
    first = load("folder", tree)
    assert {path.parent.parent.name for path in decoded} == {"train", "test"}
    decoded.clear()
    assert same(load("folder", tree), first)
    assert not decoded
    assert (tree / "train" / folder.CACHE_NAME).is_file()
    assert not list(tree.rglob("*.partial"))


def test_a_changed_file_is_seen(tree: Path, decoded: list[Path]) -> None:
    load("folder", tree)
    decoded.clear()
    path = tree / "test" / "cat" / "001.png"
    status = path.stat()
    write_image(path, 77)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the clock may stand still
    test = load("folder", tree).test
    assert np.array_equal(test.images[1].permute(1, 2, 0), Image.open(path))
    assert {path.parent.parent.name for path in decoded} == {"test"}


def test_added_and_renamed_files_are_seen(tree: Path) -> None:
    load("folder", tree)
    write_image(tree / "test" / "cat" / "new.png", 78)
    assert counts(load("folder", tree).test) == [4, 3]
    (tree / "test" / "cat" / "new.png").rename(tree / "test" / "dog" / "new.png")
    assert counts(load("folder", tree).test) == [3, 4]


def test_a_damaged_cache_is_made_again(tree: Path) -> None:
    first = load("folder", tree)
    cache = tree / "train" / folder.CACHE_NAME
    whole = cache.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    pickled = np.array([{"a": 1}], dtype=object)
    for damage in (b"", b"junk", whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        cache.write_bytes(damage)
        assert same(load("folder", tree), first)
        assert len(cache.read_bytes()) == len(whole)
    np.savez(cache, fingerprint=pickled, images=pickled)
    assert same(load("folder", tree), first)
    np.savez(cache, other=np.zeros(1))
    assert same(load("folder", tree), first)


def test_a_read_only_folder_is_cached_for_the_user(
    tree: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Path]
) -> None:
    save = folder._save
    monkeypatch.setattr(
        folder, "_save", lambda path, *rest: tree not in path.parents and save(path, *rest)
    )
    first = load("folder", tree)
    assert len(list(user_cache.glob("*.npz"))) == 2
    decoded.clear()
    assert same(load("folder", tree), first)
    assert not decoded


def test_a_cache_that_cannot_be_written_is_a_warning(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="can be written: the images will be decoded again"):
        splits = load("folder", tree)
    assert len(splits.test) == 6
    assert not list(tree.rglob("*.partial"))


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(BilevelError, match=f"there is no folder {tmp_path}/nowhere"):
        load("folder", tmp_path / "nowhere")


def test_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BilevelError, match="empty holds no class folders"):
        load("folder", tmp_path / "empty")


def test_one_class_only(tmp_path: Path) -> None:
    with pytest.raises(BilevelError, match=r"holds one class folder \(cat\)"):
        load("folder", write_tree(tmp_path / "pets", classes=["cat"]))


def test_a_class_without_images(tree: Path) -> None:
    (tree / "train" / "cow").mkdir()
    with pytest.raises(BilevelError, match=f"class folder {tree}/train/cow holds no image"):
        load("folder", tree)


@pytest.mark.parametrize("part", ["train", "test"])
def test_train_or_test_alone(tmp_path: Path, part: str) -> None:
    write_tree(tmp_path / "pets" / part)
    write_tree(tmp_path / "pets" / "val")
    with pytest.raises(BilevelError, match=f"pets holds {part}/ but not both train/ and test/"):
        load("folder", tmp_path / "pets")


@pytest.mark.parametrize(("part", "other"), [("train", "test"), ("test", "train")])
def test_other_classes_in_test(tree: Path, part: str, other: str) -> None:
    write_image(tree / part / "cow" / "0.png", 0)
    with pytest.raises(BilevelError, match=f"cow is in {tree}/{part} but not in {tree}/{other}"):
        load("folder", tree)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_a_corrupt_image_is_named(tree: Path, damage: str) -> None:
    path = tree / "train" / "dog" / "004.png"
    good = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": good[:-30], "text": b"hello"}[damage])
    with pytest.raises(BilevelError, match=f"image {path} cannot be decoded: .*remove it"):
        load("folder", tree)
    assert not (tree / "train" / folder.CACHE_NAME).exists()


def test_sixteen_bits_are_refused_rather_than_cut(tree: Path) -> None:
    path = tree / "train" / "cat" / "003.png"
    Image.fromarray(np.full((4, 5), 4096, np.uint16)).save(path)
    with pytest.raises(BilevelError, match=f"image {path} has more than 8 bits"):
        load("folder", tree)


def test_images_of_different_sizes_are_named(tree: Path) -> None:
    for name in ("dog/007.png", "dog/003.png"):
        write_image(tree / "train" / name, 1, size=(6, 4))
    with pytest.raises(
        BilevelError, match=r"cat/000.png is 5x4 and .*dog/003.png is 6x4 pixels; bring all"
    ):
        load("folder", tree)


def test_train_and_test_of_different_sizes(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", count=2)
    for name in ("cat", "dog"):
        write_image(tmp_path / "test" / name / "0.png", 0, size=(7, 8))
    with pytest.raises(BilevelError, match=r"train are 5x4 and those in .*test are 7x8 pixels"):
        load("folder", tmp_path)
