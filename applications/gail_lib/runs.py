"""One run of one method, which can be stopped and gone on with; and several side by side."""

from __future__ import annotations

import math
import multiprocessing
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bilevel import BilevelError
from bilevel.experiment import checkpoint
from bilevel.experiment.files import make_folder, writing
from bilevel.imitation import Apprentice, Policy, clone, demonstrate
from bilevel.robustness.networks.weights import save_weights
from gail_lib.games import Setting, make_apprentice

PART = 25
"""Iterations between checkpoints. The environments start anew at each, so that a run that was
stopped goes on as if it had not been: what happens inside an environment cannot be saved."""

EPISODES = 100
"""Of the final policy, as it acts: stochastically."""

Tell = Callable[[str, int], None]
"""Is told a run's name and its iteration."""


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Args:
        setting: Its setting.
        curves: By name, a number for each iteration; ``return`` is NaN where no episode ended.
        returns: Of the final policy, an episode each.
        seconds: Of an iteration in the mean; of the whole for behaviour cloning.
    """

    setting: Setting
    curves: dict[str, Tensor]
    returns: Tensor
    seconds: float


def play_all(
    settings: Sequence[Setting],
    iterations: int,
    shown: dict[str, tuple[Tensor, Tensor]],
    out: Path,
    *,
    resume: bool,
    jobs: int,
    tell: Tell,
) -> list[Run]:
    """Plays each setting, ``jobs`` at a time."""
    tasks = [(s, iterations, *shown[s.env], out, resume) for s in settings]
    if jobs == 1:
        return [play(*task, tell) for task in tasks]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(jobs, context) as pool:
        told = manager.Queue()
        futures = [pool.submit(play, *task, _Teller(told)) for task in tasks]
        while not all(future.done() for future in futures):
            try:
                tell(*told.get(timeout=0.2))
            except queue.Empty:
                continue
            if any(future.done() and future.exception() for future in futures):
                pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]


class _Teller:
    """Tells another process."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def __call__(self, name: str, iteration: int) -> None:
        self.told.put((name, iteration))


def play(
    setting: Setting,
    iterations: int,
    states: Tensor,
    actions: Tensor,
    out: Path,
    resume: bool,
    tell: Tell,
) -> Run:
    """Plays one setting; its folder keeps checkpoints, TensorBoard's curves and the policy."""
    torch.set_num_threads(1)  # the networks are too small for more
    apprentice = make_apprentice(setting, states, actions)
    folder = make_folder(out / setting.name)
    policy = apprentice.leader.policy
    if setting.method == "bc":
        begun = time.perf_counter()
        epochs = clone(policy, states, actions)
        seconds = time.perf_counter() - begun
        history = {"epochs": torch.tensor([float(epochs)])}
    else:
        history = _train(apprentice, setting, iterations, folder, resume, tell)
        seconds = history.pop("seconds").mean().item()
    save_weights(
        folder / "policy.safetensors", policy, {k: str(v) for k, v in asdict(setting).items()}
    )
    tell(setting.name, iterations)
    returns = judge(policy, setting.env)
    return Run(setting, history, returns, seconds)


def judge(policy: Policy, env: str) -> Tensor:
    """Returns of the policy, by the environment's own rewards."""
    torch.manual_seed(0)
    return demonstrate(env, policy, EPISODES, seed=10_000).returns


def _train(
    apprentice: Apprentice,
    setting: Setting,
    iterations: int,
    folder: Path,
    resume: bool,
    tell: Tell,
) -> dict[str, Tensor]:
    """The curves of all iterations, those before a stop too."""
    rows: list[dict[str, float]] = []
    path = folder / "checkpoint.pt"
    if resume and path.exists():
        rows = _take_up(apprentice, setting, iterations, path)
    with writing(folder):
        writer = SummaryWriter(folder / "tensorboard", purge_step=len(rows))
    while apprentice.iteration < iterations:
        if apprentice.iteration % PART == 0:
            apprentice.sampler.restart(setting.env_seed(apprentice.iteration))
        begun = time.perf_counter()
        row = apprentice.iterate()
        rows.append({**row, "seconds": time.perf_counter() - begun})
        with writing(folder):
            for name, value in row.items():
                if not math.isnan(value):
                    writer.add_scalar(name, value, apprentice.iteration)
        if apprentice.iteration % PART == 0:
            known = {"setting": asdict(setting), "expert": apprentice.expert, "rows": rows}
            checkpoint.save(path, known | apprentice.state_dict())
        tell(setting.name, apprentice.iteration)
    with writing(folder):
        writer.close()
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def _take_up(
    apprentice: Apprentice, setting: Setting, iterations: int, path: Path
) -> list[dict[str, float]]:
    state = checkpoint.load(path)
    changed = [name for name, value in asdict(setting).items() if state["setting"][name] != value]
    if changed:
        raise BilevelError(
            f"{path} was played with another {' and '.join(changed)}: it cannot be gone on with; "
            "give the same arguments, or another --out"
        )
    if "expert" not in state or not torch.equal(state["expert"], apprentice.expert):
        raise BilevelError(
            f"{path} was played with other demonstrations: it cannot be gone on with; give the "
            "same --expert, --demonstrations and --every, or another --out"
        )
    rows: list[dict[str, float]] = state["rows"]
    if len(rows) > iterations:
        raise BilevelError(
            f"{path} has played {len(rows)} iterations, and {iterations} are asked for: what was "
            f"learned is not unlearned; give --iterations {len(rows)} or more, or another --out"
        )
    apprentice.load_state_dict(state)
    return rows
