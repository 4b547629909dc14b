"""What several processes do together in tests, and how they are started.

A job is a function of this file; ``launch`` runs it in processes of its own, as torchrun would.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from bilevel import (
    BilevelError,
    Iterative,
    ZeroSum,
    distributed,
    pgm,
)
from bilevel.alias import SCHEDULES
from bilevel.distributed import SyncBatchNorm
from bilevel.robustness import (
    Attacker,
    Battery,
    Linf,
    Recipe,
    SolverAttack,
    Splits,
    Trainer,
    correct,
    make_game,
    make_solver,
)
from bilevel.robustness.data.sources import load_together
from bilevel.updates import SignGradient
from tests.images import image_set
from tests.pooled_games import share_one_y, stumble, two_heads
from tests.problems import BatchNormNet

ROOT = Path(__file__).parents[1]

RECIPE = Recipe(epsilon=0.1, epochs=2, batch_size=5, padding=1, milestones=(0.5,), ema=0.9)
"""Two epochs of five steps on 22 images: shares of 2 and 3 images, at last of 1 and 1."""

GAMES = {
    "pgm": ("two-step-pgm", "simultaneous", "none"),
    "warm start": ("two-step-pgm", "simultaneous", "none"),
    "two-step": ("two-step-l2l", "simultaneous", "sync"),
    "alternating": ("grad-l2l", "alternating", "sync"),
    "extragradient": ("grad-l2l", "extragradient", "sync"),
    "own statistics": ("two-step-l2l", "simultaneous", "own"),
}
"""Method, schedule, and what becomes of batch normalisation."""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def launch(
    *command: object, processes: int = 2, machines: int = 1, timeout: float = 120
) -> list[Ended]:
    """Runs a command in processes that find each other; all have ended when it returns.

    Of several machines each has as many, and numbers its own from 0.
    """
    here = processes // machines
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "WORLD_SIZE": processes}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    shared |= {"LOCAL_WORLD_SIZE": here, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1}
    shared |= {"PYTHONUNBUFFERED": ""}  # what is not flushed at the end is lost
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={**os.environ, **{k: str(v) for k, v in {**shared, **own(rank, here)}.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        return [Ended(*_wait(process, timeout)) for process in started]
    finally:
        for process in started:
            process.kill()


def own(rank: int, here: int) -> dict[str, int]:
    return {"RANK": rank, "LOCAL_RANK": rank % here}


def _wait(process: subprocess.Popen[str], timeout: float) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def job(name: str, folder: Path, processes: int = 2) -> list[Ended]:
    """Runs a function of this file."""
    code = (
        # Ours, whatever package of that name is installed.
        "import sys, types; sys.modules['tests'] = tests = types.ModuleType('tests'); "
        "tests.__path__ = ['tests']; from tests import jobs; "
        f"jobs.{name}(jobs.Path({str(folder)!r}))"
    )
    return launch("-c", code, processes=processes)


def build(name: str, folder: Path, **options: Any) -> Trainer:
    """A trainer of one of the games, the same in all processes."""
    method, schedule, norm = GAMES[name]
    torch.manual_seed(0)
    data = Splits(image_set(22), image_set(7), image_set(6))
    attacker = Attacker("two-layer", width=4)
    solver = make_solver(method, eps=0.1, channels=1, attacker=attacker)
    model = BatchNormNet()
    if norm == "none":
        model.layers[1] = torch.nn.Identity()
    elif norm == "own":
        model.layers.append(torch.nn.BatchNorm1d(3))  # of one image there is no variance
    elif norm == "sync":
        SyncBatchNorm.convert_sync_batchnorm(model)
        SyncBatchNorm.convert_sync_batchnorm(solver)
    follower = Linf(0.1)
    recipe = replace(RECIPE, warm_start=name == "warm start")
    game = make_game(
        ZeroSum(model, follower), follower, solver, recipe, schedule=SCHEDULES[schedule]()
    )
    path = folder / f"{name}.pt"
    return Trainer(game, data, recipe, seed=0, path=path, config={"game": name}, **options)


def together(folder: Path) -> None:
    """All that does not end the job."""
    distributed.join()
    tell(folder)
    play(folder)
    attack(folder)
    normalise(folder)
    share_one_y(folder)
    stumble(folder)
    go_on(folder)
    torch.save(two_heads().state_dict(), folder / f"heads {distributed.rank()}.pt")
    distributed.leave()


def grouped(folder: Path) -> None:
    """The script makes the process group itself, then joins."""
    dist.init_process_group("gloo")
    shares = [distributed.Pool().share]
    distributed.join()
    distributed.join()
    print("said by the first")
    shares += [distributed.Pool().share]
    (folder / f"shares {distributed.rank()}").write_text(str(shares))
    distributed.all_gather(None)
    distributed.print_once("said by one")
    distributed.leave()


def play(folder: Path) -> None:
    """Every game, from its checkpoint where there is one."""
    reports: list[dict[str, float]] = []
    for name in GAMES:
        trainer = build(name, folder, report=lambda steps, metrics: reports.append(metrics))
        if trainer.path.exists():
            trainer.resume()
        trainer.fit()
        same = distributed.all_gather(trainer.game.state_dict())
        told = distributed.all_gather(reports)
        if distributed.is_main():
            torch.save({"states": same, "reports": told}, folder / f"{name} ended.pt")


def warm(path: Path) -> Trainer:
    """A trainer whose solver starts from its last answers, in shares of 2 and 3 images."""
    torch.manual_seed(0)
    follower, data = Linf(0.3), Splits(image_set(22), image_set(7), image_set(6))
    leader, solver = ZeroSum(BatchNormNet(), follower), Iterative(SignGradient(0.02), 1)
    solver.warm_start = True
    game = make_game(leader, follower, solver, RECIPE)
    return Trainer(game, data, replace(RECIPE, epochs=1), seed=0, path=path)


def go_on(folder: Path) -> None:
    """A run of a warm-started solver, and what each process resumes of it."""
    trainer = warm(folder / "warm.pt")
    trainer.fit()
    ended = trainer.game.solver.kept[0]
    distributed.all_gather(None)  # the checkpoint is written
    trainer = warm(trainer.path)
    trainer.resume()
    torch.save((ended, trainer.game.solver.kept[0]), folder / f"went on {distributed.rank()}.pt")


def attack(folder: Path) -> None:
    model, images = attacked()
    right = correct(model, images, batch_size=4)
    right, outcomes = battery(folder / "battery.pt").run(model, images)
    found = distributed.all_gather((right, [outcome.broken for outcome in outcomes]))
    if distributed.is_main():
        torch.save(found, folder / "attacked.pt")


NORMS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"track_running_stats": False},
    {"dtype": torch.bfloat16},
]
"""Settings of batch normalisation."""


def normalised(images: torch.Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """What synchronised normalisation makes of this process's images, and its statistics."""
    norm = SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm2d(3, **options))
    images = images[distributed.shard(len(images))]
    out = norm(images)
    assert out.dtype == images.dtype
    return {"out": out.detach(), "state": dict(norm.state_dict())}


def curvature(norm: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Second derivatives of a nonlinear function of normalised images."""
    images = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(norm(images).sin().sum(), images, create_graph=True)
    return torch.autograd.grad(slope.square().sum(), images)[0]


def normalise(folder: Path) -> None:
    """In bfloat16, which knows no whole numbers past 256: 600 numbers a channel."""
    torch.manual_seed(0)
    images = 5 + torch.randn(24, 3, 5, 5)
    found = distributed.all_gather([normalised(images.bfloat16(), norm) for norm in NORMS])
    synchronised = SyncBatchNorm.convert_sync_batchnorm(torch.nn.BatchNorm2d(3).double())
    own = images[distributed.shard(len(images))].double()
    second = torch.cat(distributed.all_gather(curvature(synchronised, own)))
    if distributed.is_main():
        torch.save((images, found, second), folder / "normalised.pt")


def waiting(folder: Path) -> None:
    """The second process waits in a library, out of Python's reach, and is told to stop."""
    distributed.join()
    number = distributed.all_gather(os.getpid())[1]
    if distributed.is_main():
        time.sleep(0.5)
        os.kill(number, signal.SIGTERM)
        time.sleep(3)  # contact is not lost meanwhile
        distributed.leave()
    while True:  # a signal wakes it
        ctypes.CDLL(None).sleep(60)


def missed(folder: Path) -> None:
    """The second process waits for the first one, which never joins, and is told to stop."""
    number = folder / "number"

    def tell_when_it_waits() -> None:
        while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            time.sleep(0.1)
        number.write_text(str(os.getpid()))

    if os.environ["RANK"] == "1":
        threading.Thread(target=tell_when_it_waits, daemon=True).start()
        distributed.join()
    while not (number.exists() and number.read_text()):
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(int(number.read_text()), signal.SIGTERM)


def attacked() -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    return BatchNormNet(), image_set(23)


class Broken(SolverAttack):
    """An attack that fails on the last batch, so in one process only."""

    def perturb(self, model: Any, batch: Any, attempt: int) -> Any:
        if len(batch.y) < 2:
            raise RuntimeError("no more")
        return super().perturb(model, batch, attempt)


def battery(path: Path) -> Battery:
    near = Linf(0.5, start=0.5)
    attacks = [
        SolverAttack("random", near, pgm(0.01, 0), alone=True),
        Broken("broken", near, pgm(0.01, 0), alone=True),
        SolverAttack("PGM-2", near, pgm(0.02, 2)),
    ]
    return Battery(attacks, eps=0.5, batch_size=2, path=path)


def tell(folder: Path) -> None:
    """What is told where processes differ, or one of them fails."""

    def fail() -> None:
        if distributed.rank() == 1:
            raise BilevelError("it is so: because; change it")

    told = []
    for attempt in (
        lambda: distributed.check_consistent({"seed": distributed.rank(), "epochs": 3}),
        lambda: distributed.check_consistent({"seed": 0} if distributed.rank() else {}),
        lambda: distributed.gather_results(fail),
        lambda: load_together("digits", ".", seed=0, train_size=100 + distributed.rank()),
    ):
        try:
            attempt()
        except BilevelError as error:
            told.append(str(error))
    (folder / f"told {distributed.rank()}").write_text("\n".join(told))
    distributed.print_once("said by one")


def training(folder: Path) -> None:
    """Training in which the second process is killed."""
    from bilevel.experiment import commandline
    from bilevel.robustness.studies.arguments import TrainingArguments

    def main(_: TrainingArguments) -> None:
        trainer = build("two-step", folder)
        step = trainer.game.step

        def killed(batch: Any) -> Any:
            if distributed.rank() == 1 and trainer.game.steps == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(batch)

        trainer.game.step = killed
        trainer.fit()

    commandline.run(main, TrainingArguments, joins=True)
