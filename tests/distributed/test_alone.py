"""One process of a job, or the only one: seen from this one."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist

from bilevel import BilevelError, distributed, experiment
from bilevel.distributed import collectives, job


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for name in ("auto", "cuda"):
        with pytest.raises(BilevelError, match=r"2 processes share 1 GPU: .*--nproc-per-node 1"):
            experiment.pick_device(name)
    with pytest.raises(BilevelError, match=r"'cuda:1' is one GPU for 2 processes: .*--device cuda"):
        experiment.pick_device("cuda:1")
    assert experiment.pick_device("cpu") == torch.device("cpu")


def test_each_process_has_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    found = [distributed.local_gpu()]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    found += [distributed.local_gpu()]
    assert found == current == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_the_value_of_the_first_process_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "all_gather", lambda own: ["first", own])
    assert distributed.broadcast("second") == "first"


def test_contact_that_is_lost_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(*_: object) -> None:
        raise RuntimeError("Connection closed by peer\nat some line")

    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    told = r"lost \(Connection closed by peer\): .* --resume goes on"
    with pytest.raises(distributed.LostContactError, match=told):
        distributed.all_gather("mine")


@pytest.mark.parametrize(
    ("rank", "local", "expected"),
    [
        (0, None, ["block", "met", "met"]),
        (0, "0", ["block", "met", "met"]),
        (2, "0", ["met", "block", "met"]),
        (1, "1", ["met", "met", "block"]),
    ],
)
def test_one_process_comes_first_then_one_of_each_machine(
    monkeypatch: pytest.MonkeyPatch, rank: int, local: str | None, expected: list[str]
) -> None:
    monkeypatch.setattr(collectives, "is_main", lambda: rank == 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_RANK", local)
    done: list[str] = []
    monkeypatch.setattr(collectives, "all_gather", lambda _: done.append("met"))
    with distributed.main_first():
        done.append("block")
    assert done == expected
    done.clear()
    with pytest.raises(ZeroDivisionError), distributed.main_first():
        raise ZeroDivisionError
    assert done == ["met", "met"]  # also after a failure: the others wait


@pytest.mark.parametrize(
    ("count", "restarted"), [(None, False), ("", False), ("0", False), ("1", True), ("2", True)]
)
@pytest.mark.parametrize("launcher", ["TORCHELASTIC", "SLURM"])
def test_a_job_is_restarted_from_its_second_attempt_on(
    monkeypatch: pytest.MonkeyPatch, launcher: str, count: str | None, restarted: bool
) -> None:
    for name in ("TORCHELASTIC", "SLURM"):
        monkeypatch.delenv(f"{name}_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv(f"{launcher}_RESTART_COUNT", count)
    assert distributed.restarted() is restarted


@pytest.mark.parametrize(("here", "separate"), [("2", True), ("1", False)])
def test_a_restarted_job_does_not_meet_the_addresses_of_the_last_attempt(
    monkeypatch: pytest.MonkeyPatch, here: str, separate: bool
) -> None:
    """The store of torchrun keeps them; on two machines the attempts may be counted differently."""
    kept, met = dist.HashStore(), []
    given = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**given, "LOCAL_WORLD_SIZE": here}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(job, "rendezvous", lambda _: iter([(kept, 1, 2)]))
    monkeypatch.setattr(dist, "TCPStore", lambda *_, **__: kept)
    monkeypatch.setattr(job, "_enter", lambda _: None)

    def init(*_: object, store: dist.Store, **__: object) -> None:
        met.append(store.check(["address"]))
        store.set("address", "of this process")

    monkeypatch.setattr(dist, "init_process_group", init)
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        job._init_process_group()
    assert met == [False, not separate]


@pytest.mark.parametrize("lacking", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_process_that_cannot_find_the_others(
    monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    given = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for lack in (lambda: monkeypatch.setenv(lacking, ""), lambda: monkeypatch.delenv(lacking)):
        lack()
        with pytest.raises(BilevelError, match=f"WORLD_SIZE is 2 without {lacking}: .* torchrun"):
            distributed.join()


@pytest.mark.parametrize("size", ["", "1"])
def test_one_process_has_nobody_to_find(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    distributed.join()
    assert distributed.Pool().share == 1


def test_alone_it_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = sys.stdout
    distributed.join()
    assert sys.stdout is out
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.all_gather("me") == ["me"]
    distributed.check_consistent({"seed": 0, "start": float("nan")})
    with pytest.raises(ZeroDivisionError):
        distributed.gather_results(lambda: 1 / 0)
    distributed.print_once("hello")
    assert capsys.readouterr().err == "hello\n"


def test_a_line_is_printed_by_the_first_and_where_nobody_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    class Store:
        def add(self, name: str, count: int) -> int:
            if len(said) == 2:
                raise RuntimeError("the process that serves the store is gone")
            said.extend([name] * count)
            return len(said)

    monkeypatch.setattr(job, "_job", Store())
    for line in ("first", "second", "third"):
        distributed.print_once(line)
    assert capsys.readouterr().err == "first\nthird\n"


@pytest.mark.parametrize(
    "norm", [torch.nn.BatchNorm1d(2), torch.nn.InstanceNorm1d(2, track_running_stats=True)]
)
def test_statistics_count_by_the_images_of_each_process(norm: torch.nn.Module) -> None:
    """A quarter of the batch was here; the others' mean and variance were 5 and 4."""

    class Others:
        share = 0.25

        def all_reduce(self, tensors: list[torch.Tensor]) -> None:
            for own, other in zip(tensors, (5.0, 4.0), strict=True):
                own += 0.75 * other

    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(8.0)
    # Once, whoever holds it.
    distributed.average_statistics(Others(), [norm, torch.nn.Sequential(norm)])
    assert norm.running_mean.tolist() == [4.0, 4.0]
    assert norm.running_var.tolist() == [5.0, 5.0]
