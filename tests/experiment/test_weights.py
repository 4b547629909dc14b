"""Weights in safetensors files: they load unchanged, errors are one line, and no code is run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from bilevel import BilevelError
from bilevel.experiment.weights import load_weights, read_about, save_weights
from bilevel.robustness import Attacker, build_model, make_solver


def classifier(name: str = "small-cnn", classes: int = 3) -> nn.Module:
    return build_model(name, channels=1, classes=classes)


def attacker() -> nn.Module:
    return make_solver("grad-l2l", eps=0.1, channels=1, attacker=Attacker("two-layer", 4))


@pytest.mark.parametrize("build", [classifier, attacker])
def test_what_was_saved_is_loaded(tmp_path: Path, build: Callable[[], nn.Module]) -> None:
    saved, loaded = build(), build()
    saved.to(memory_format=torch.channels_last)  # as the application trains it
    for buffer in saved.buffers():
        buffer.add_(1)
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(path, saved, {"model": "a name"})
    state = torch.get_rng_state()
    load_weights(path, loaded)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b in zip(saved.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert a is b is None or torch.equal(a, b), name
    assert read_about(path) == {"model": "a name"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tied_weights_and_names_of_files(tmp_path: Path) -> None:
    saved, loaded = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    saved[1].weight = saved[0].weight
    path = str(tmp_path / "weights.safetensors")
    save_weights(path, saved, {"model": "tied"})
    load_weights(path, loaded)
    assert read_about(path) == {"model": "tied"}
    assert torch.equal(loaded[1].weight, saved[0].weight)


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """Those of safetensors have the metadata in another order each time."""
    path, network = tmp_path / "weights.safetensors", nn.Linear(2, 3)
    about = {'a quote"\n': "ε\x7f\\", **{name: name for name in "cabfed"}}
    files = set()
    for _ in range(20):
        save_weights(path, network, about)
        files.add(path.read_bytes())
    assert len(files) == 1
    assert read_about(path) == about
    theirs = save(network.state_dict(), metadata=about)
    assert sorted(files.pop()) == sorted(theirs)


class Renamed(nn.Linear):
    """Its state dict holds copies, as those of wrapped and sharded networks do."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_state_dict_post_hook(
            lambda module, state, prefix, metadata: state.update(
                {name: value.clone() for name, value in state.items()}
            )
        )


def test_a_state_dict_of_copies(tmp_path: Path) -> None:
    saved, loaded = Renamed(), Renamed()
    save_weights(tmp_path / "weights", saved, {})
    load_weights(tmp_path / "weights", loaded)
    assert torch.equal(loaded.weight, saved.weight)


def test_a_file_of_another_program_says_nothing_about_itself(tmp_path: Path) -> None:
    path, network = tmp_path / "weights.safetensors", nn.Linear(2, 2)
    save_file(network.state_dict(), path)
    assert read_about(path) == {}
    load_weights(path, network)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (classifier("small-cnn", 4), r"head.weight is of shape \(3, 128\) there and .*\(4, 128\)"),
        (classifier("wrn-10-1"), "trunk.* is (missing|of shape .*) there and of shape"),
        (attacker(), "update.* is missing there and of shape"),
    ],
    ids=["classes", "model", "attacker"],
)
def test_another_architecture_changes_nothing(tmp_path: Path, other: nn.Module, told: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, classifier(), {})
    before = [value.clone() for value in other.parameters()]
    with pytest.raises(
        BilevelError, match=f"weights.safetensors is of another architecture: .*{told}"
    ):
        load_weights(path, other)
    for value, old in zip(other.parameters(), before, strict=True):
        assert torch.equal(value, old)


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.proof,)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for name, write in (("pickle", pickle.dump), ("torch", torch.save)):
        with (tmp_path / name).open("wb") as file:
            write({"w": Evil(proof)}, file)
        with pytest.raises(BilevelError, match=f"cannot read weights from .*{name}"):
            load_weights(tmp_path / name, classifier())
    assert not proof.exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "a folder"])
@pytest.mark.parametrize("read", [lambda path: load_weights(path, classifier()), read_about])
def test_a_file_that_cannot_be_read(
    tmp_path: Path, damage: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "weights.safetensors"
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        save_weights(path, classifier(), {})
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -100])
    with pytest.raises(BilevelError, match=f"cannot read weights from {path}.*a file or its"):
        read(path)
