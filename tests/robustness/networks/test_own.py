"""Networks of one's own by the name of a function, trained and read again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bilevel import BilevelError
from bilevel.robustness import (
    About,
    Classifier,
    build_classifier,
    build_own,
    is_own,
    load_trained,
    save_trained,
)
from bilevel.robustness.networks.own import code_of

MODULE = """
from torch import nn

def mlp(channels, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes))

def text(channels, classes):
    return "a network"

net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

pretrained = nn.Linear(64, 5)

def shared(channels, classes):
    return nn.Sequential(nn.Flatten(), pretrained, nn.Linear(5, classes))

def head(channels, classes):
    return nn.Sequential(nn.Flatten(), pretrained.requires_grad_(False), nn.Linear(5, classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of networks."""
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("a:b", True),
        ("a.b.c:d_1", True),
        ("wrn-34-10", False),
        ("small-cnn", False),
        ("runs/a:b", False),
        ("a:b:c", False),
        ("a:", False),
        (":b", False),
    ],
)
def test_what_names_a_function(name: str, own: bool) -> None:
    assert is_own(name) == own


@pytest.mark.usefixtures("folder")
def test_a_classifier_of_either_kind() -> None:
    own = build_classifier("own_networks:mlp", channels=3, classes=7)
    assert own(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    kit = build_classifier("small-cnn", channels=3, classes=7)
    assert isinstance(kit, Classifier)
    assert kit(torch.rand(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.usefixtures("folder")
def test_a_network_is_evaluated_and_not_trained() -> None:
    assert build_own("own_networks:net")(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(BilevelError, match=r"net is a network: .* give a function that returns"):
        build_classifier("own_networks:net", channels=1, classes=3)


@pytest.mark.usefixtures("folder")
def test_networks_do_not_share_what_is_trained() -> None:
    """Layers made outside of the function would go on from one method's weights to the next's."""
    with pytest.raises(BilevelError, match=r"shared returned .* last call: .* within the function"):
        build_classifier("own_networks:shared", channels=1, classes=3)
    first, second = (build_classifier("own_networks:head", channels=1, classes=3) for _ in range(2))
    assert second.get_submodule("1") is first.get_submodule("1")  # which does not move


@pytest.mark.usefixtures("folder")
def test_a_network_is_drawn_as_by_a_single_call() -> None:
    drawn = []
    for build in (build_own, build_own, build_classifier):  # the first one imports the module
        torch.manual_seed(3)
        network = build("own_networks:mlp", channels=1, classes=3)
        drawn.append(torch.cat([network.get_submodule("1").weight.flatten(), torch.rand(1)]))
    assert torch.equal(drawn[1], drawn[2])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks:cnn", r"cannot be imported \(AttributeError: .*name MODULE:FUNCTION"),
        ("nowhere.to_be:seen", r"cannot be imported \(ModuleNotFoundError: "),
        ("own_networks:text", "returned an object of type str: a classifier is a torch.nn.Module"),
    ],
)
def test_no_such_network(name: str, message: str) -> None:
    with pytest.raises(BilevelError, match=message):
        build_own(name, channels=1, classes=10)


def test_the_code_of_ones_own_network(folder: Path) -> None:
    """The same in every process that has the same module."""
    assert code_of("wrn-34-10") == ""
    first = code_of("own_networks:mlp")
    assert len(bytes.fromhex(first)) == 8
    assert code_of("own_networks:text") == first
    (folder / "own_networks.py").write_text(MODULE + "# changed")
    assert code_of("own_networks:mlp") != first


def test_weights_of_ones_own_network_run_its_module_only_if_allowed(folder: Path) -> None:
    about = About("pgm", "own_networks:mlp", 1, 10, "digits", 0.2)
    model = about.classifier()
    save_trained(folder / "run", about, model, about.solver())
    del sys.modules["own_networks"]
    with pytest.raises(BilevelError, match=r"weights of own_networks:mlp, .*allow_import=True"):
        load_trained(folder / "run")
    assert "own_networks" not in sys.modules
    trained = load_trained(folder / "run", allow_import=True)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(trained.model(x), model(x))
    assert isinstance(trained.model, nn.Sequential)
