"""The cache of decoded images: what it is valid for, and where it lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bilevel.robustness.data import cache, folder
from bilevel.robustness.data.sources import load_images
from bilevel.robustness.data.splits import Splits
from tests.images import same, write_image, write_tree


def load(root: Path, **options: Any) -> Splits:
    return load_images("folder", root, **{"seed": 0, **options})


def test_the_cache_is_hit_and_gives_the_same_images(tree: Path, decoded: list[Path]) -> None:
    first = load(tree)
    assert {path.parent.parent.name for path in decoded} == {"train", "test"}
    decoded.clear()
    assert same(load(tree), first)
    assert not decoded
    assert (tree / "train" / ".bilevel-cache.npz").is_file()
    assert not list(tree.rglob("*.part"))


def test_a_changed_file_is_seen(tree: Path, decoded: list[Path]) -> None:
    load(tree)
    decoded.clear()
    path = tree / "test" / "cat" / "001.png"
    status = path.stat()
    write_image(path, 77)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the clock may stand still
    load(tree)
    test = folder.find_trees(tree)["test"].read().images
    assert np.array_equal(test[1].transpose(1, 2, 0), np.asarray(Image.open(path)))
    assert {path.parent.parent.name for path in decoded} == {"test"}


def test_a_file_of_another_size_is_seen(tree: Path, decoded: list[Path]) -> None:
    """Also where an archive or a copy has kept the time."""
    load(tree)
    decoded.clear()
    path = tree / "test" / "cat" / "001.png"
    status = path.stat()
    with Image.open(path) as image:
        Image.new("RGB", image.size).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size != status.st_size
    load(tree)
    assert path in decoded


def test_a_renamed_file_is_seen(tmp_path: Path) -> None:
    """Bitmaps of one archive may share their size and time: the names alone tell them apart."""
    for index in range(4):
        path = tmp_path / "ab"[index % 2] / f"{index}.bmp"
        write_image(path, index)
        os.utime(path, ns=(0, 0))
    before = folder.find_trees(tmp_path)["all"].read().images
    (tmp_path / "a" / "0.bmp").rename(tmp_path / "a" / "9.bmp")
    after = folder.find_trees(tmp_path)["all"].read().images
    assert np.array_equal(after, before[[1, 0, 2, 3]])


def test_names_need_not_be_utf_8(tmp_path: Path, decoded: list[Path]) -> None:
    """As those of an archive that was packed in Latin-1."""
    odd = os.fsdecode(b"caf\xe9")
    root = write_tree(tmp_path / odd, count=4)
    try:
        (root / "cat" / "000.png").rename(root / "cat" / f"{odd}.png")
        (root / "dog").rename(root / odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    first = load(root)
    assert len(decoded) == 8 + 1  # the first one twice, for its size
    assert same(load(root), first)
    assert len(decoded) == 9
    assert first.train.classes == ("caf\\xe9", "cat")  # which figures and reports can write


def test_a_damaged_cache_is_made_again(tree: Path) -> None:
    first = load(tree)
    kept = tree / "train" / ".bilevel-cache.npz"
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damage in (b"", b"junk", whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        kept.write_bytes(damage)
        assert same(load(tree), first)
        assert len(kept.read_bytes()) == len(whole)
    pickled = np.array([{}], dtype=object)
    np.savez(kept, fingerprint=pickled, images=pickled)
    assert same(load(tree), first)
    np.savez(kept, other=np.zeros(1))
    assert same(load(tree), first)


def test_a_read_only_folder_is_cached_for_the_user(
    tree: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Path]
) -> None:
    save = cache.save
    monkeypatch.setattr(
        cache, "save", lambda path, *rest: tree not in path.parents and save(path, *rest)
    )
    first = load(tree)
    assert len(list(user_cache.glob("*.npz"))) == 2
    decoded.clear()
    assert same(load(tree), first)
    assert not decoded


def test_a_cache_that_cannot_be_written_is_a_warning(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="no cache of the images can be written .* decoded again"):
        splits = load(tree)
    assert len(splits.test) == 6
    assert not list(tree.rglob("*.part"))


def test_a_user_without_a_home(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose user the system does not know: only the folder itself has a cache."""
    monkeypatch.delenv("XDG_CACHE_HOME")

    def unknown(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", unknown)
    first = load(tree)
    assert same(load(tree), first)
    monkeypatch.setattr(cache, "load", lambda *_: None)
    monkeypatch.setattr(cache, "save", lambda *_: False)
    with pytest.warns(UserWarning, match=r"no cache of the images .*npz\): they will be decoded"):
        assert same(load(tree), first)
