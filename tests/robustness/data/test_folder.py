"""Image folders: the order of ``ImageFolder``, parts and classes, and errors for bad input."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel.errors import BilevelError
from bilevel.robustness.data import decoding, folder
from bilevel.robustness.data.sources import load_images
from bilevel.robustness.data.splits import Splits
from tests.images import counts, write_image, write_tree


def load(root: Path, **options: Any) -> Splits:
    return load_images("folder", root, **{"seed": 0, **options})


def test_a_folder_is_read_as_image_folder_reads_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import ImageFolder

    monkeypatch.setattr(decoding, "_CHUNK", 3)  # several tasks even for a few images
    write_image(tree / "test" / "cat" / "deeper" / "x.JPG", 9)
    write_image(tree / "test" / "dog" / "grey.png", 9, mode="L")
    (tree / "test" / "dog" / "notes.txt").write_text("no image")
    write_image(tree.parent / "elsewhere" / "y.png", 8000)
    (tree / "test" / "dog" / "link").symlink_to(tree.parent / "elsewhere")
    source = ImageFolder(str(tree / "test"))
    with pytest.warns(UserWarning, match=r"1 of 6 files in .* known type, such as dog/notes.txt"):
        test = folder.find_trees(tree)["test"]
    (tree / "test" / "dog" / "notes.txt").unlink()
    assert test.classes == tuple(source.classes)
    assert test.labels.tolist() == source.targets
    expected = np.stack([np.asarray(image) for image, _ in source]).transpose(0, 3, 1, 2)
    assert np.array_equal(test.read().images, expected)
    loaded = load(tree).test
    assert {bytes(image.numpy()) for image in loaded.images} == {*map(bytes, expected)}


def test_hidden_folders_are_no_classes_and_hidden_files_no_news(tree: Path) -> None:
    write_image(tree / "train" / ".checkpoints" / "x.png", 1)
    write_image(tree / "train" / "__MACOSX" / "x.png", 1)
    (tree / "train" / "cat" / ".DS_Store").write_text("")
    before = len(folder.find_trees(tree)["train"].files)
    write_image(tree / "train" / "cat" / ".thumbnails" / "x.png", 1)
    (tree / "train" / "cat" / "._x.png").write_text("what macOS keeps beside x.png")
    assert len(folder.find_trees(tree)["train"].files) == before
    assert folder.find_trees(tree)["train"].classes == ("cat", "dog")


def test_a_folder_is_read_without_a_bar_where_rich_is_missing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert len(load_images("folder", tree, seed=0).train) > 0


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_it_is(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While images are decoded; afterwards nothing of it is left on the screen."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    screens = Terminal(), io.StringIO()
    for screen in screens:
        monkeypatch.setattr(sys, "stderr", screen)
        folder.find_trees(tree)["train"].read()
        (tree / "train" / ".bilevel-cache.npz").unlink()
    shown, silent = (screen.getvalue() for screen in screens)
    assert "Decoding 20 images" in shown
    assert "100%" in shown
    assert shown.endswith("\x1b[2K")
    assert silent == ""


def test_a_folder_with_test_images_keeps_them_whole(tree: Path) -> None:
    splits = load(tree, validation=0.2)
    assert [counts(part) for part in splits] == [[8, 8], [2, 2], [3, 3]]
    assert splits.test.images.shape == (6, 3, 4, 5)


def test_a_folder_without_test_images_gives_a_fifth(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "pets")
    first, other = (load(root, validation=0.25, seed=seed) for seed in (0, 1))
    assert [counts(part) for part in first] == [[6, 6], [2, 2], [2, 2]]
    assert len({bytes(image.numpy()) for part in first for image in part.images}) == 20
    assert torch.equal(first.test.images, other.test.images)


def test_fewer_than_two_classes(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    with pytest.raises(BilevelError, match=f"there is no folder {root}"):
        load(root)
    root.mkdir()
    with pytest.raises(BilevelError, match="pets holds no class folders"):
        load(root)
    with pytest.raises(BilevelError, match=r"pets holds one class folder \(cat\)"):
        load(write_tree(root, classes=["cat"]))


def test_a_class_without_images(tree: Path) -> None:
    (tree / "train" / "cow").mkdir()
    with pytest.raises(BilevelError, match=f"class folder {tree}/train/cow holds no image"):
        load(tree)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_images_of_ones_own(tree: Path, name: str) -> None:
    root = write_tree(tree / name, count=2, seed=7000)
    splits = load(tree)
    assert [counts(part) for part in splits] == [[10, 10], [2, 2], [3, 3]]
    assert np.array_equal(splits.validation.images, folder.list_images(root).read().images)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing", "Validation")])
def test_parts_of_another_name_are_not_taken_for_classes(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        write_tree(tmp_path / "pets" / name)
    held = "/, ".join(sorted(names))
    with pytest.raises(BilevelError, match=f"pets holds {held}/: .* name parts train/, test/"):
        load(tmp_path / "pets")


def test_two_folders_of_validation_images(tree: Path) -> None:
    for name in ("val", "validation"):
        write_tree(tree / name, count=2)
    with pytest.raises(BilevelError, match=r"pets holds val/ and validation/: .*keep one"):
        load(tree)


@pytest.mark.parametrize(("part", "other"), [("train", "test"), ("test", "train")])
def test_train_or_test_alone(tmp_path: Path, part: str, other: str) -> None:
    root = tmp_path / "pets"
    write_tree(root / part)
    with pytest.raises(BilevelError, match=f"pets holds {part}/ but no {other}/: .*{other}/, or"):
        load(root)
    write_tree(root / "valid")
    told = f"pets holds {part}/ and valid/ but no {other}/: .*rename valid/, or give {root}/{part}"
    with pytest.raises(BilevelError, match=told):
        load(root)


def test_test_images_come_in_a_mixed_order_that_is_always_the_same(tmp_path: Path) -> None:
    """Class by class, a batch would have no partners of another class for its images."""
    write_tree(tmp_path / "test", count=8)
    write_tree(tmp_path / "train", count=2, seed=5000)
    first, again = load(tmp_path).test, load(tmp_path, seed=1).test
    assert torch.equal(first.images, again.images)
    assert counts(first) == [8, 8]
    for half in first.labels.chunk(2):
        assert 0 < half.sum() < 8


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_class_that_was_not_trained(tree: Path, part: str) -> None:
    write_image(tree / part / "cow" / "0.png", 0)
    told = f"cow is in {tree}/{part} but not among the training images: .*training images of it, or"
    with pytest.raises(BilevelError, match=told):
        load(tree)


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
def test_a_class_that_is_not_tested(tree: Path, empty: bool) -> None:
    """The others keep their labels."""
    write_image(tree / "train" / "ant" / "0.png", 0)
    write_image(tree / "val" / "cat" / "0.png", 1)
    if empty:
        for name in ("test/ant", "val/ant", "val/dog"):
            (tree / name).mkdir()
    splits = load(tree)
    assert [counts(part) for part in splits] == [[1, 10, 10], [0, 1, 0], [0, 3, 3]]
    assert {part.classes for part in splits} == {("ant", "cat", "dog")}


def test_a_part_without_any_image(tree: Path) -> None:
    (tree / "val").mkdir()
    with pytest.raises(BilevelError, match=f"folder {tree}/val holds no image of a class"):
        load(tree)


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_corrupt_image_is_named(tree: Path, damage: str) -> None:
    path = tree / "train" / "dog" / "004.png"
    path.write_bytes({"empty": b"", "cut": path.read_bytes()[:-30], "text": b"hello"}[damage])
    told = {"empty": "is empty", "cut": "cannot be decoded: .*", "text": "is no image of a type .*"}
    with pytest.raises(BilevelError, match=f"image {path} {told[damage]}[:;] repair it or remove"):
        load(tree)
    assert not (tree / "train" / ".bilevel-cache.npz").exists()


def test_all_corrupt_images_are_named_at_once(tree: Path) -> None:
    paths = [tree / "train" / "dog" / f"{number:03}.png" for number in range(1, 8)]
    for path in paths:
        path.write_bytes(b"")
    named = ", ".join(map(str, paths[1:6]))
    with pytest.raises(
        BilevelError, match=f"image {paths[0]} is empty: .*errors in {named} and 1 more too"
    ):
        load(tree)


def test_links_that_lead_nowhere_or_back(tree: Path) -> None:
    files = folder.find_trees(tree)["train"].files
    (tree / "train" / "cat" / "again").symlink_to(tree / "train" / "cat")
    assert folder.find_trees(tree)["train"].files == files
    (tree / "train" / "cat" / "up").symlink_to("..")  # where the other classes are
    assert folder.find_trees(tree)["train"].files == files
    link = tree / "train" / "cat" / "lost.png"
    link.symlink_to("nowhere.png")
    with pytest.raises(BilevelError, match=f"image {link} is a link to a missing file .*restore"):
        load(tree)


@pytest.mark.parametrize(
    ("kind", "name"), [(np.uint16, "003.png"), (np.int32, "a.tif"), (np.float32, "a.tif")]
)
def test_more_than_eight_bits_are_refused_rather_than_cut(
    tree: Path, kind: type, name: str
) -> None:
    path = tree / "train" / "cat" / name
    Image.fromarray(np.full((4, 5), 4096, kind)).save(path)
    with pytest.raises(BilevelError, match=f"image {path} has more than 8 bits"):
        load(tree)


def alpha(mode: str, lowest: int) -> Image.Image:
    """White, with one pixel whose opacity is ``lowest``, in a format that can hold that."""
    opacity = np.full((4, 5), 255, np.uint8)
    opacity[1, 2] = lowest
    white = Image.fromarray(np.full((4, 5), 255, np.uint8)).convert(mode.rstrip("A"))
    if "A" in mode:
        white.putalpha(Image.fromarray(opacity))
    elif lowest < 255:  # a colour that stands for transparent
        white.info["transparency"] = {"P": 255, "L": 255, "RGB": (255, 255, 255)}[mode]
    return white


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_a_transparent_image_is_named(tree: Path, mode: str) -> None:
    path = tree / "test" / "dog" / "001.png"
    alpha(mode, 255).save(path)
    assert len(load(tree).test) == 6
    alpha(mode, 254).save(path)
    with pytest.raises(BilevelError, match=f"image {path} is transparent in places: .*flatten it"):
        load(tree)


def test_images_of_different_sizes_are_named(tree: Path) -> None:
    for name in ("dog/007.png", "dog/003.png"):
        write_image(tree / "train" / name, 1, size=(6, 4))
    with pytest.raises(BilevelError, match=r"cat/000.png is 5x4 and .*dog/003.png is 6x4 pixels"):
        load(tree)


def test_train_and_test_of_different_sizes(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", count=2)
    for name in ("cat", "dog"):
        write_image(tmp_path / "test" / name / "0.png", 0, size=(7, 8))
    with pytest.raises(BilevelError, match=r"train are 5x4x3 and those in .*test are 7x8x3 "):
        load(tmp_path)
