"""Images in one file of arrays: every layout, and errors for bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bilevel.errors import BilevelError
from bilevel.robustness.data.npz import read_npz
from bilevel.robustness.data.sources import load_images
from bilevel.robustness.data.splits import Splits

Arrays = dict[str, npt.NDArray[Any]]
COUNTS = {"train": 20, "val": 4, "test": 6}


def load(path: Path, **options: Any) -> Splits:
    return load_images("npz", path, **{"seed": 0, **options})


def pixels(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


def photos(*parts: str, shape: tuple[int, ...] = (5, 4, 3)) -> Arrays:
    """Images of two classes."""
    arrays: Arrays = {}
    for part in parts or ("train", "test"):
        arrays[f"{part}_images"] = pixels(COUNTS[part], *shape)
        arrays[f"{part}_labels"] = np.arange(COUNTS[part], dtype=np.uint8) % 2
    return arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.npz"


@pytest.mark.parametrize(
    ("shape", "to_channels_first"),
    [
        ((5, 4), lambda images: images[:, None]),
        ((5, 4, 1), lambda images: images.transpose(0, 3, 1, 2)),
        ((5, 4, 3), lambda images: images.transpose(0, 3, 1, 2)),
        ((1, 5, 4), lambda images: images),
        ((3, 5, 4), lambda images: images),
    ],
    ids=["grey", "grey last", "rgb last", "grey first", "rgb first"],
)
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int64", ">i4"])
def test_every_layout_comes_back(
    path: Path, shape: tuple[int, ...], to_channels_first: Any, column: bool, dtype: str
) -> None:
    arrays = photos(shape=shape)
    for part in ("train", "test"):
        labels = arrays[f"{part}_labels"].astype(dtype)
        arrays[f"{part}_labels"] = labels[:, None] if column else labels
    np.savez_compressed(path, **arrays)
    for part, found in read_npz(path).items():
        assert np.array_equal(found.images, to_channels_first(arrays[f"{part}_images"]))
        assert found.images.is_contiguous()
        assert np.array_equal(found.labels, arrays[f"{part}_labels"].ravel())
        assert found.classes == ("0", "1")


def test_test_images_come_in_a_mixed_order(path: Path) -> None:
    arrays = photos()
    arrays["test_labels"].sort()
    np.savez(path, **arrays)
    test = load(path).test
    assert test.labels.tolist() not in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    found = [
        {(bytes(image.numpy()), int(y)) for image, y in zip(part.images, part.labels, strict=True)}
        for part in (test, read_npz(path)["test"])
    ]
    assert found[0] == found[1]


def test_images_for_validation_are_held_out_unless_the_file_has_them(path: Path) -> None:
    np.savez(path, **photos())
    splits = load(path, validation=0.1)
    assert [len(part) for part in splits] == [18, 2, 6]
    arrays = photos("train", "val", "test")
    np.savez(path, **arrays)
    splits = load(path, validation=0.1)
    assert [len(part) for part in splits] == [20, 4, 6]
    found = splits.validation.images.permute(0, 2, 3, 1)
    assert np.array_equal(found, arrays["val_images"])
    assert splits.validation.labels.tolist() == [0, 1, 0, 1]


def test_train_size_keeps_a_stratified_part_and_the_files_validation_set(path: Path) -> None:
    np.savez(path, **photos("train", "val", "test"))
    splits = load(path, train_size=6)
    assert splits.train.labels.bincount().tolist() == [3, 3]
    assert len(splits.validation) == 4
    with pytest.raises(BilevelError, match=r"train_size is 21: 20 training images .*to 20"):
        load(path, train_size=21)


def test_classes_have_the_names_that_the_file_gives(path: Path) -> None:
    np.savez(path, **photos(), classes=np.array(["cat", "dog", "a bird not seen in training"]))
    assert load(path).train.classes == ("cat", "dog", "a bird not seen in training")


def test_other_arrays_are_not_read(path: Path) -> None:
    np.savez(path, **photos(), notes=np.array([{"taken": 2021}], object))
    assert len(load(path).test) == 6


def without(name: str) -> Arrays:
    arrays = photos("train", "val", "test")
    del arrays[name]
    return arrays


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        (
            without("test_labels"),
            "has no array test_labels: it holds test_images, train_images, train_labels, "
            "val_images, val_labels; add test_labels",
        ),
        (without("train_images"), "has no array train_images: it holds"),
        (without("val_images"), "has no array val_images: it holds"),
        (without("val_labels"), "has no array val_labels: it holds"),
        ({"x": np.zeros(2)}, "has no array train_images: it holds x;"),
        ({}, "has no array train_images: it holds nothing;"),
        (
            photos() | {"train_images": np.zeros((20, 5, 4, 3))},
            "train_images .*are float64 of shape .20, 5, 4, 3.: .*give uint8",
        ),
        (
            photos() | {"test_images": pixels(6, 5, 4, 2)},
            "test_images .*are uint8 of shape .6, 5, 4, 2.: .*with C = 1 or 3",
        ),
        (photos() | {"test_images": pixels(6, 20)}, "test_images .*are uint8 of shape .6, 20.:"),
        (photos(shape=(5, 5, 5, 1)), "train_images .*are uint8 of shape .20, 5, 5, 5, 1.:"),
        *(
            (photos(shape=shape), "train_images .*which is .N, H, W, C. as well as .N, C, H, W.: ")
            for shape in ((1, 1, 3), (3, 4, 1), (3, 4, 3), (1, 5, 3))
        ),
        (
            photos() | {"test_images": pixels(0, 5, 4), "test_labels": np.arange(0)},
            "test_images .*are uint8 of shape .0, 5, 4.:",
        ),
        (
            photos() | {"train_labels": np.zeros(20)},
            "train_labels .*are float64 of shape .20,.: .*give integers",
        ),
        (
            photos() | {"train_labels": np.arange(19) % 2},
            "train_labels .*of shape .19,.: each of the 20 images .*give integers of shape .20,.",
        ),
        (
            photos() | {"test_labels": np.zeros((6, 14), np.uint8)},
            "test_labels .*have 14 columns, .*: an image has one class here; give its number",
        ),
        (
            photos() | {"train_labels": np.arange(20) % 2 + 1},
            "train_labels .*run from 1 to 2, but there are 2 classes, 0 to 1: number the classes",
        ),
        (photos() | {"train_labels": np.arange(20) % 2 - 1}, "train_labels .*run from -1 to 0"),
        (
            photos() | {"test_labels": np.arange(6) % 3},
            "test_labels .*run from 0 to 2, but there are 2 classes, 0 to 1: .*name all classes",
        ),
        (
            photos("train", "val", "test") | {"val_labels": np.arange(4)},
            "val_labels .*run from 0 to 3, but there are 2 classes",
        ),
        (photos() | {"train_labels": np.zeros(20, int)}, "holds 1 class: .*add images of another"),
        (photos() | {"classes": np.array(["cat"])}, "holds 1 class: "),
        (photos() | {"classes": np.arange(2)}, "classes .*are int64 of shape .2,.: .*give strings"),
        (photos() | {"classes": np.array("cat")}, r"classes .*are <U3 of shape \(\): "),
        (
            photos() | {"classes": np.array(["cat", "dog"], object)},
            "cannot be read .*Object arrays .*: it may .*hold Python objects; write .*numpy.savez",
        ),
        (
            photos() | {"test_images": pixels(6, 8, 7, 3)},
            "in train_images .*are 4x5x3 and those in test_images .*are 7x8x3 .width",
        ),
        (
            photos() | {"test_images": pixels(6, 5, 4)},
            "in train_images .*are 4x5x3 and those in test_images .*are 4x5x1 .width",
        ),
        (
            photos("train", "val", "test") | {"val_images": pixels(4, 6, 6, 3)},
            "those in val_images .*are 6x6x3 .*bring all images to one size",
        ),
    ],
)
def test_bad_arrays_are_told_in_one_line(path: Path, arrays: Arrays, told: str) -> None:
    np.savez(path, **arrays)
    with pytest.raises(BilevelError, match=told) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    for missing in (tmp_path / "photos.npz", tmp_path):
        with pytest.raises(BilevelError, match=f"there is no file {missing}: .*as the data_dir"):
            load(missing)


def test_a_file_of_another_kind_or_damaged(path: Path) -> None:
    np.savez(path, **photos())
    whole = path.read_bytes()
    np.save(path.with_suffix(".npy"), np.zeros(3))
    for content in (b"", b"hello", path.with_suffix(".npy").read_bytes(), whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(BilevelError, match=r"is no \.npz file, or is truncated: .*numpy"):
            load(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 4] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(BilevelError, match=r"cannot be read .*: it may be damaged"):
        load(path)


def test_torch_and_numpy_are_enough(path: Path) -> None:
    """In a new process where nothing else that the kit uses can be imported."""
    np.savez(path, **photos())
    code = (
        "import sys\n"
        "for name in 'PIL gymnasium higher matplotlib rich safetensors scipy sklearn tensorboard "
        "torchvision tyro'.split(): sys.modules[name] = None\n"
        "from bilevel.experiment import commandline\n"
        "from bilevel.robustness import load_images\n"
        f"print(*map(len, load_images('npz', {str(path)!r}, seed=0)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "18 2 6\n"
