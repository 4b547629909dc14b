"""Checkpoints and files: whole or not at all, and never code."""

from __future__ import annotations

import errno
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch

from bilevel import BilevelError, distributed
from bilevel.experiment import checkpoint
from bilevel.experiment.files import atomic_write, make_folder


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    state = {"weights": torch.randn(3), "epoch": 2, "names": ["a"], "nothing": None}
    folder = tmp_path / "new" / "run"
    checkpoint.save(folder / "run.pt", state)
    loaded = checkpoint.load(folder / "run.pt")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert [path.name for path in folder.iterdir()] == ["run.pt"]


def test_the_file_changes_at_once(tmp_path: Path) -> None:
    """A reader that opened the old file reads it to its end: nothing is written over it."""
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"epoch": 1})
    with path.open("rb") as old:
        checkpoint.save(path, {"epoch": 2})
        assert torch.load(old, weights_only=True) == {"epoch": 1}
    assert checkpoint.load(path) == {"epoch": 2}


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"epoch": 1})

    def full(state, file):
        Path(file).write_bytes(b"half of a check")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        BilevelError, match=r"cannot write .*No space left.*older file there is kept"
    ):
        checkpoint.save(path, {"epoch": 2})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_torchs_own_writer_on_a_full_device_is_told_in_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(BilevelError, match=r"cannot write .*free some space"),
        atomic_write(tmp_path / "run.pt"),
    ):
        torch.save({"weights": torch.zeros(10**6)}, "/dev/full")


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, {"weights": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(BilevelError, match=r"no readable checkpoint.*truncated"):
        checkpoint.load(path)


@pytest.mark.parametrize("text", [b"", b"abc", b"hhh", b"jjjj", b"not a checkpoint\n"])
def test_a_text_is_no_checkpoint(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.pt").write_bytes(text)
    with pytest.raises(BilevelError, match="no readable checkpoint"):
        checkpoint.load(tmp_path / "run.pt")


def test_a_file_with_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    for name, write in (("pickle", partial(pickle.dump, protocol=2)), ("torch", torch.save)):
        path = tmp_path / name
        with path.open("wb") as file:
            write({"weights": Evil()}, file)
        with pytest.raises(BilevelError, match="no readable checkpoint"):
            checkpoint.load(path)
    assert not (tmp_path / "owned").exists()


def test_something_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BilevelError, match="holds a list, not a checkpoint"):
        checkpoint.load(tmp_path / "list.pt")
    with pytest.raises(BilevelError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


def test_the_random_state_comes_back() -> None:
    state = checkpoint.random_state()
    first = torch.randn(3)
    checkpoint.set_random_state(state)
    assert torch.equal(torch.randn(3), first)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BilevelError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "inside")


def test_settings_that_differ_are_all_named(tmp_path: Path) -> None:
    saved, given = {"seed": 0, "lr": 0.1, "note": "x" * 90}, {"seed": 1, "lr": 0.1, "width": 8}
    checkpoint.check_settings(tmp_path, saved, dict(saved))
    with pytest.raises(checkpoint.OtherRunError) as told:
        checkpoint.check_settings(tmp_path / "run.pt", saved, given)
    theirs = f"seed = 0, width = None, note = {'x' * 40}…"
    assert f"{theirs}, this one has seed = 1, width = 8, note = None: " in str(told.value)


def test_settings_that_follow_from_others_are_named_only_if_no_other_differs(
    tmp_path: Path,
) -> None:
    saved = {"seed": 0, "images": "8 bytes", "lr": 0.1}
    for given, told in (
        ({"seed": 1, "images": "9 bytes", "lr": 0.1}, "seed = 0, this one has seed = 1: "),
        ({"seed": 0, "images": "9 bytes", "lr": 0.1}, "images = 8 bytes, this one has images = 9"),
    ):
        with pytest.raises(checkpoint.OtherRunError, match=f"is a run with {told}"):
            checkpoint.check_settings(tmp_path, saved, given, derived=("images",))


def test_of_a_long_setting_the_difference_is_shown(tmp_path: Path) -> None:
    layers = "Flatten(); " * 9
    saved, given = ({"network": f"{layers}Dropout(p=0.{digit}); {layers}"} for digit in (1, 9))
    told = r"network = …Dropout\(p=0.1\); .*…, this one has network = …Dropout\(p=0.9\); .*…: "
    with pytest.raises(checkpoint.OtherRunError, match=told):
        checkpoint.check_settings(tmp_path / "run.pt", saved, given)


@pytest.mark.parametrize(
    ("saved", "given", "shown"),
    [
        (f"{'a' * 38} 1", f"{'a' * 38} 2", f"{'a' * 38} 1"),  # a line holds it
        (f"{'a' * 40} 1", f"{'a' * 40} 2", "…1"),
        (f"/{'a' * 60}/one", f"/{'a' * 60}/two", f"…{'a' * 19}/one"),  # a path, without blanks
        (f"{'a' * 9} 1 {'b' * 39}", f"{'a' * 9} 2 {'b' * 39}", f"…1 {'b' * 38}…"),
        (f"{'a' * 9} 1 {'b' * 38}", f"{'a' * 9} 2 {'b' * 38}", f"…1 {'b' * 38}"),
    ],
)
def test_dots_tell_what_a_message_leaves_out(
    tmp_path: Path, saved: str, given: str, shown: str
) -> None:
    with pytest.raises(checkpoint.OtherRunError) as told:
        checkpoint.check_settings(tmp_path, {"note": saved}, {"note": given})
    assert f"with note = {shown}, this one" in str(told.value)


def test_the_first_process_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    checkpoint.save(tmp_path / "run.pt", {"epoch": 1})
    assert not list(tmp_path.iterdir())
