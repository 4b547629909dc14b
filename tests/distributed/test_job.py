"""Many processes: they train as one, attack as one, and end as one."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bilevel import BilevelError
from bilevel.distributed import SyncBatchNorm
from bilevel.experiment import checkpoint
from tests import jobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job of two processes has left; it resumed one game from a checkpoint of one."""
    folder = tmp_path_factory.mktemp("job")
    half(folder, "alternating")
    ended = jobs.job("together", folder)
    assert [end.status for end in ended] == [0, 0], ended
    assert sorted(end.err for end in ended) == ["", "said by one\n"]
    return folder


def half(folder: Path, name: str) -> None:
    """Trains for an epoch in this process, and keeps the checkpoint."""
    trainer = jobs.build(name, folder)
    save = trainer.save

    def stop() -> None:
        save()
        raise KeyboardInterrupt

    trainer.save = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


def difference(a: Any, b: Any) -> float:
    """The largest between two states."""
    if isinstance(a, torch.Tensor):
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        return max(map(difference, a, b), default=0.0)
    return 0.0 if a == b else float("inf")


@pytest.mark.parametrize("name", [name for name in jobs.GAMES if name != "own statistics"])
def test_shares_of_a_batch_train_as_the_batch(folder: Path, tmp_path: Path, name: str) -> None:
    """Ten steps, the last one from a checkpoint of one process in one of the games."""
    alone = jobs.build(name, tmp_path)
    alone.fit()
    ended = torch.load(folder / f"{name} ended.pt")
    for state in ended["states"]:
        assert state["steps"] == 10
        expected = alone.game.state_dict()
        for part in {"leader", "solver", "follower"} & expected.keys():
            assert difference(state[part], expected[part]) <= 1e-6
    assert difference(*ended["states"]) == 0
    assert difference(*ended["reports"]) == 0
    kept = checkpoint.load(folder / f"{name}.pt")
    assert difference(kept["averaged"], alone.averaged.state_dict()) <= 1e-6
    assert kept["progress"]["history"] == alone.progress.history


def test_without_synchronisation_all_have_the_same_statistics_still(folder: Path) -> None:
    assert difference(*torch.load(folder / "own statistics ended.pt")["states"]) == 0


def test_processes_that_use_other_parameters_add_gradients_of_the_same(folder: Path) -> None:
    alone = jobs.two_heads().state_dict()
    for rank in (0, 1):
        assert difference(torch.load(folder / f"heads {rank}.pt"), alone) <= 1e-6


def test_a_y_that_is_shared_by_the_batch_is_refused_unless_all_find_the_same(folder: Path) -> None:
    for rank in (0, 1):
        told = (folder / f"one y {rank}").read_text().split("\n")
        for line in told[:2]:
            assert re.match(r"Centre.objective is a scalar.* train y with Parametric and", line)
        assert told[2:] == ["", ""]


def test_a_loss_that_is_not_finite_in_one_process_is_refused_by_all(folder: Path) -> None:
    """Else the others would sum this batch's gradients with those of the next one."""
    (told, first), (also, second) = (torch.load(folder / f"stumbled {n}.pt") for n in (0, 1))
    assert told == also == ["moved", "not finite", "moved"]
    assert difference(first, second) == 0


def test_a_checkpoint_of_two_processes_is_resumed_by_one(folder: Path, tmp_path: Path) -> None:
    state = checkpoint.load(folder / "pgm.pt")
    first, second = (random["cpu"] for random, *_ in state["processes"])
    assert not torch.equal(first, second)
    trainer = jobs.build("pgm", folder)
    trainer.resume()
    assert difference(trainer.game.state_dict(), state["game"]) == 0
    trainer.fit()


def test_each_process_resumes_the_answers_to_its_own_images(folder: Path) -> None:
    for rank, images in enumerate((2, 3)):
        ended, resumed = torch.load(folder / f"went on {rank}.pt")
        assert len(ended) == images
        assert torch.equal(ended, resumed)
    alone = jobs.warm(folder / "warm.pt")  # with other shares
    alone.resume()
    assert alone.game.solver.kept is None


def test_a_battery_finds_what_it_finds_alone(folder: Path) -> None:
    model, images = jobs.attacked()
    right, outcomes = jobs.battery(folder / "alone.pt").run(model, images)
    broken = [outcome.broken for outcome in outcomes]
    assert 0 < broken[0].sum() < 23
    for found, by in torch.load(folder / "attacked.pt"):
        assert torch.equal(found, right)
        assert all(map(torch.equal, by, broken))
    works, own = (checkpoint.load(folder / name)["works"] for name in ("battery.pt", "alone.pt"))
    assert [work["problem"] for work in works] == [work["problem"] for work in own]
    assert works[1]["problem"] == "RuntimeError: no more"


def test_batch_normalisation_counts_all_images_in_half_precision_too(folder: Path) -> None:
    images, found, _ = torch.load(folder / "normalised.pt")
    for number, options in enumerate(jobs.NORMS):
        alone = torch.nn.BatchNorm2d(3, **options)
        expected = alone(images.bfloat16().to(options.get("dtype", torch.float32))).float()
        out = torch.cat([process[number]["out"] for process in found])
        torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.01)
        for process in found:
            torch.testing.assert_close(process[number]["state"], dict(alone.state_dict()))


def test_batch_normalisation_has_the_second_derivatives_of_all_images(folder: Path) -> None:
    images, _, second = torch.load(folder / "normalised.pt")
    expected = jobs.curvature(torch.nn.BatchNorm2d(3).double(), images.double())
    torch.testing.assert_close(second, expected)


class Activated(torch.nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


def test_batch_normalisation_with_a_forward_of_its_own_is_refused() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), Activated(3))
    with pytest.raises(BilevelError, match="Activated has a forward of its own"):
        SyncBatchNorm.convert_sync_batchnorm(network)
    assert type(network[0]) is torch.nn.BatchNorm2d


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}])
def test_batch_normalisation_alone_is_torchs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    own, converted = torch.nn.BatchNorm2d(3, **options), torch.nn.BatchNorm2d(3, **options)
    assert SyncBatchNorm.convert_sync_batchnorm(converted) is converted
    for training in (True, True, False):
        x = torch.randn(4, 3, 2, 2)
        assert torch.equal(converted.train(training)(x), own.train(training)(x))
    assert difference(own.state_dict(), converted.state_dict()) == 0


def test_a_process_group_of_ones_own_is_the_job(tmp_path: Path) -> None:
    ended = jobs.job("grouped", tmp_path)
    assert [end.status for end in ended] == [0, 0], ended
    first, second = (end.out for end in ended)
    assert first.splitlines()[-1] == "said by the first"  # after what gloo says on torch 2.8
    assert "said" not in second
    assert sorted(end.err for end in ended) == ["", "said by one\n"]
    assert [(tmp_path / f"shares {rank}").read_text() for rank in (0, 1)] == ["[0.5, 0.5]"] * 2


@pytest.mark.parametrize("name", ["waiting", "missed"])
def test_a_process_that_waits_elsewhere_is_ended_in_words(tmp_path: Path, name: str) -> None:
    begun = time.monotonic()
    first, second = jobs.job(name, tmp_path)
    assert (first.status, second.status) == (0, 128 + signal.SIGTERM)
    assert re.fullmatch("error: another process was lost, .* --resume goes on .*\n", second.err)
    assert time.monotonic() - begun < 50


def test_what_differs_or_fails_is_told_by_all(folder: Path) -> None:
    for rank, other in ((0, 1), (1, 0)):
        seed, missing, failed, images = (folder / f"told {rank}").read_text().splitlines()
        for told, what in ((seed, "seed"), (missing, "seed"), (images, "images")):
            assert re.match(f"processes {rank} and {other} differ in {what}: .*one command", told)
        assert failed == "it is so: because; change it"


def test_a_killed_process_ends_the_others_with_a_line_and_a_checkpoint(tmp_path: Path) -> None:
    first, second = jobs.job("training", tmp_path)
    assert second.status == -signal.SIGKILL
    assert first.status == 2
    assert re.fullmatch(
        "error: contact with another process was lost .*--resume goes on from the last "
        "checkpoint\n",
        first.err,
    )
    trainer = jobs.build("two-step", tmp_path)
    trainer.resume()
    assert trainer.progress.position == 0


# The command line.


def test_a_folder_that_one_process_cannot_write_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--smoke", "--method", "plain", "--out", tmp_path / "file"]
    first, second = jobs.launch("applications/adv_training.py", *arguments)
    assert (first.status, second.status, second.err) == (2, 2, "")
    assert re.fullmatch("error: cannot make the folder .*: write to another folder\n", first.err)


def test_an_application_of_one_process_is_refused_in_one_line() -> None:
    ended = jobs.launch("applications/limit_cycles.py", "--smoke")
    assert [end.status for end in ended] == [2, 2]
    (line,) = [end.err for end in ended if end.err]
    assert re.fullmatch(r"error: this application runs in one process and 2 .* python\n", line)


def test_the_applications_of_many_processes() -> None:
    files = (jobs.ROOT / "applications").rglob("*.py")
    joining = {file.stem for file in files if "Args, joins=True)" in file.read_text()}
    assert joining == {"adv_training", "ait", "robust_eval"}
