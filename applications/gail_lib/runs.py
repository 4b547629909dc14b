"""Resumable runs, one or several in parallel processes."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bilevel import BilevelError
from bilevel.experiment import checkpoint, commandline
from bilevel.experiment.files import make_folder, remove, writing
from bilevel.experiment.weights import read_about, save_weights
from bilevel.fingerprint import fingerprint
from bilevel.imitation import Policy, Trainer, clone
from gail_lib.episodes import EVALUATION_SEED, play
from gail_lib.games import Setting, make_trainer

CHECKPOINT_EVERY = 25
"""Iterations between checkpoints. The state of an environment cannot be saved, so environments are
reset at each checkpoint: a resumed run then equals one that was never stopped."""

EVALUATION_EPISODES = 100
"""Episodes on which the final, stochastic policy is evaluated."""

Progress = Callable[[str, int], None]
"""Called with a run's name and its completed iterations."""


@dataclass(frozen=True)
class Run:
    """The results of a run.

    Args:
        setting: Its setting.
        curves: Metrics by name, one value per iteration; ``return`` is NaN if no episode ended.
            Empty for behaviour cloning.
        returns: Of the final policy, one per episode.
        seconds: Mean per iteration; total for behaviour cloning.
    """

    setting: Setting
    curves: dict[str, Tensor]
    returns: Tensor
    seconds: float


def run_all(
    settings: Sequence[Setting],
    iterations: int,
    pairs: dict[str, tuple[Tensor, Tensor]],
    out: Path,
    *,
    resume: bool,
    jobs: int,
    progress: Progress,
) -> list[Run]:
    """Runs each setting on its environment's pairs, ``jobs`` at a time; one alone runs here."""
    for one in settings:
        if one.method == "bc" and len(pairs[one.env][0]) < 2:
            raise BilevelError(
                f"there is one pair of {one.env}: bc fits some and holds out others; give more "
                "--demonstrations, a smaller --every, or a --method without bc"
            )
    if not resume:  # of all at once: --resume would continue the old run of a later one
        files = "checkpoint.pt", "policy.safetensors"
        remove(*(out / one.name / file for one in settings for file in files))
    torch.set_num_threads(1)  # the networks are too small for more
    tasks = [(s, iterations, *pairs[s.env], out, resume) for s in settings]
    if 1 in (jobs, len(tasks)):
        return [run_one(*task, progress) for task in tasks]
    with _workers(jobs) as (pool, messages):
        futures = [pool.submit(run_one, *task, _ProgressQueue(messages)) for task in tasks]
        while not all(future.done() for future in futures):
            try:
                progress(*messages.get(timeout=0.2))
            except queue.Empty:
                continue
            if any(future.done() and future.exception() for future in futures):
                pool.shutdown(cancel_futures=True)
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise BilevelError(
                "a process of the runs was killed, as by a system that has no memory left: the "
                "others ended; give fewer --jobs, and --resume to continue"
            ) from error


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Processes for the runs, and the queue of their progress; they end with this process."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()  # Windows has none
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:  # imported once, and shared; each process would take seconds for them
        context.set_forkserver_preload(["bilevel.imitation", "torch.utils.tensorboard"])
    manager = SyncManager(ctx=context)
    manager.start(_end_with_parent)
    with manager, ProcessPoolExecutor(jobs, context, _begin_worker) as pool:
        try:
            yield pool, manager.Queue()
        except KeyboardInterrupt:  # else they would go on, and this process wait for them
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _begin_worker() -> None:
    """Makes a process for runs as this one is: its threads, and what is told of failed ones."""
    _end_with_parent()
    torch.set_num_threads(1)
    threading.excepthook = commandline.thread_failed


def _end_with_parent() -> None:
    """Ends this process when its parent is killed: it would train on, beside a resumed run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _ProgressQueue:
    """Reports progress to the parent process."""

    def __init__(self, messages: Any) -> None:
        self.messages = messages

    def __call__(self, name: str, iteration: int) -> None:
        self.messages.put((name, iteration))


def run_one(
    setting: Setting,
    iterations: int,
    states: Tensor,
    actions: Tensor,
    out: Path,
    resume: bool,
    progress: Progress,
) -> Run:
    """Runs one setting; its folder gets checkpoints, TensorBoard logs and the policy."""
    trainer = make_trainer(setting, states, actions)
    folder = make_folder(out / setting.name)
    policy = trainer.leader.policy
    about = {name: str(value) for name, value in asdict(setting).items()}
    about["demonstrations"] = fingerprint(states, actions)
    rows = _resume(trainer, folder, about, iterations) if resume else []
    if setting.method == "bc":
        begun = time.perf_counter()
        clone(policy, states, actions)
        curves, seconds = {}, time.perf_counter() - begun
    else:
        curves = _train(trainer, setting, about, iterations, folder, rows, progress)
        seconds = curves.pop("seconds").mean().item()
        about = {**about, "iterations": str(iterations)}
    save_weights(folder / "policy.safetensors", policy, about)
    progress(setting.name, iterations)
    returns = evaluate(policy, setting.env)
    return Run(setting, curves, returns, seconds)


def evaluate(policy: Policy, env: str) -> Tensor:
    """Returns of the policy under the environment's own rewards."""
    torch.manual_seed(0)
    return play(env, policy, EVALUATION_EPISODES, seed=EVALUATION_SEED).returns


def _train(
    trainer: Trainer,
    setting: Setting,
    about: dict[str, str],
    iterations: int,
    folder: Path,
    rows: list[dict[str, float]],
    progress: Progress,
) -> dict[str, Tensor]:
    """The curves of all iterations, including those before a resume, whose rows are given."""
    with writing(folder):
        writer = SummaryWriter(folder / "tensorboard", purge_step=len(rows) + 1)
    while trainer.iteration < iterations:
        if trainer.iteration % CHECKPOINT_EVERY == 0:
            trainer.sampler.restart(setting.env_seed(trainer.iteration))
        begun = time.perf_counter()
        row = trainer.iterate()
        rows.append({**row, "seconds": time.perf_counter() - begun})
        with writing(folder):
            for name, value in row.items():
                if not math.isnan(value):
                    writer.add_scalar(name, value, trainer.iteration)
        if trainer.iteration % CHECKPOINT_EVERY == 0:
            state = {"about": about, "rows": rows, **trainer.state_dict()}
            checkpoint.save(folder / "checkpoint.pt", state)
        progress(setting.name, trainer.iteration)
    with writing(folder):
        writer.close()
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def _resume(
    trainer: Trainer, folder: Path, about: dict[str, str], iterations: int
) -> list[dict[str, float]]:
    """Loads the checkpoint of the same run, and returns its rows; none if it has no checkpoint."""
    path, rows = folder / "checkpoint.pt", []
    if path.exists():
        state = checkpoint.load(path)
        saved, rows = state.get("about", {}), state.get("rows", [])
        done = len(rows)
    elif (path := folder / "policy.safetensors").exists():  # it was short, and is run anew
        saved = read_about(path)
        done = int(saved.pop("iterations", 0))
    else:
        return rows
    checkpoint.check_settings(path, saved, about)
    checkpoint.check_iterations(path, done, iterations)
    if rows:
        trainer.load_state_dict(state)
    return rows
