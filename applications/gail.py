"""Imitation learning: a policy learns from an expert's episodes, without rewards.

    python applications/gail.py                                   # MountainCar, every method
    python applications/gail.py --env Pendulum-v1 --method l2l-gail --seeds 5
    python applications/gail.py --env MountainCar-v0 CartPole-v1 --method gail l2l-gail \
        --demonstrations 1 --iterations 700 --seeds 5             # Figure 6 of the paper

GAIL (Ho & Ermon, 2016) and GAIL with a learned update of the discriminator (Algorithm 5 of Jiang et
al., AISTATS 2021), with two controls: behaviour cloning, and a constant discriminator, which shows
what the sign of the reward alone achieves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from gail_lib.episodes import time_limit
from gail_lib.experts import RECORDED_EPISODES, expert_demonstrations, training_iterations
from gail_lib.figure import draw
from gail_lib.games import Setting, make_trainer, suited_reward, updater_bytes
from gail_lib.memory import check_memory
from gail_lib.runs import Run, run_all
from gail_lib.tables import record, tabulate, write_curves
from gail_lib.video import check_rendering, record_gif
from torch import Tensor

from bilevel import BilevelError, experiment
from bilevel.arguments import choices, count, positive
from bilevel.experiment import ProgressBar, commandline
from bilevel.experiment.files import claim
from bilevel.experiment.tables import write_markdown
from bilevel.experiment.weights import load_weights
from bilevel.imitation import Demonstrations, Discriminator, Task, make_envs

Method = Literal["gail", "l2l-gail", "bc", "constant"]
COUNTS = (
    "demonstrations", "every", "iterations", "steps", "environments", "follower_steps", "seeds",
    "jobs",
)  # fmt: skip


@dataclass
class Args:
    """Learn from an expert's episodes by GAIL and L2L-GAIL, with two controls."""

    env: tuple[str, ...] = ("MountainCar-v0",)
    """Gymnasium environments with vector observations and a time limit."""
    method: tuple[Method, ...] = ("gail", "l2l-gail", "bc", "constant")
    """gail, l2l-gail, and the controls: behaviour cloning (bc) and a constant discriminator."""
    updater: Literal["coordinate", "block", "dense"] = "coordinate"
    """Learned update of the discriminator in l2l-gail: one small network applied to each weight,
    one network for each block of 16 weights, or the paper's dense one, 2m → 8m → 4m → m: 341
    million parameters for CartPole."""
    reward: Literal["suited", "survive", "finish", "neutral"] = "suited"
    """The reward from D. survive, −log D ≥ 0, favours long episodes; finish, log(1−D) ≤ 0, favours
    short ones: even a constant D can then balance CartPole, or solve MountainCar. neutral,
    log(1−D) − log D, has either sign, and is 0 for a constant D. suited: survive for CartPole and
    finish for MountainCar, as in Ho & Ermon, neutral elsewhere. Compare with --method constant."""
    demonstrations: int = 10
    """Expert episodes to learn from; 1, 4, 7 or 10 in Ho & Ermon."""
    every: int = 1
    """Use every k-th state–action pair only; in Ho & Ermon 5 of MountainCar, 10 of CartPole."""
    expert: str | None = None
    """A .npz of demonstrations, or minari:NAME. By default MountainCar's expert is a script, and
    that of other environments is trained by TRPO first. Its episodes are kept in
    OUT/demonstrations: delete them there if the environment has changed."""
    iterations: int = 150
    """Iterations, of a rollout, a discriminator update and a policy update each."""
    steps: int = 5000
    """Environment steps per iteration, over all environments."""
    environments: int = 16
    """Parallel environments per run."""
    follower_lr: float | None = None
    """Adam's learning rate for the discriminator (1e-3; 0.01 in Ho & Ermon) or its updater
    (coordinate 1e-3, block 1e-4, dense 1e-6)."""
    follower_steps: int = 5
    """Adam steps of the discriminator per iteration, in gail, one in Ho & Ermon; a learned updater
    takes one."""
    gradient_skip: float | None = 0.1
    """Initial value of the updater's learned step along the gradient; None for none, as in the
    paper."""
    max_kl: float = 0.01
    """TRPO's trust region: mean KL divergence per state in an iteration, in nats."""
    damping: float = 0.01
    """Added to the diagonal of TRPO's Fisher matrix; 0.1 in Ho & Ermon."""
    discount: float = 0.99
    """The discount factor γ; 0.995 in Ho & Ermon."""
    gae_lambda: float = 0.98
    """λ of the advantages: 0 trusts the value function, 1 the sampled returns; 0.97 in Ho &
    Ermon."""
    max_norm: float | None = None
    """Upper bound on ‖θ_D‖, which is about 9 at the start; None for no bound."""
    seeds: int = 1
    """Runs of each method, with seeds from --seed on."""
    jobs: int = 4 * (os.cpu_count() or 1)
    """Parallel processes, one per run; more than there are cores, to keep all cores busy."""
    render: bool = False
    """Record an episode of each final policy of the first seed as a GIF."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/gail")
    """Results, figure, table, demonstrations, policies, checkpoints, TensorBoard logs."""
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    """Environments and networks this small are faster on the CPU."""
    smoke: bool = False
    """Try everything in seconds: small rollouts, few iterations."""
    resume: bool = False
    """Continue stopped runs, or extend finished ones."""


def main(args: Args) -> None:
    """Loads or trains the experts, runs every method, writes results, tables and the figure."""
    if args.smoke:  # minima: values that are out of range are still refused
        small = {"iterations": min(args.iterations, 2), "steps": min(args.steps, 3200)}
        args = replace(args, **small, jobs=min(args.jobs, 1))
    settings = plan_runs(args)
    check(args, settings)
    claim(args.out)
    with ProgressBar("gail") as bar:
        experts = {env: find_expert(args, env, bar) for env in dict.fromkeys(args.env)}
        pairs = {
            env: expert.first(args.demonstrations).subsample(args.every)
            for env, expert in experts.items()
        }
        runs = run_with_progress(bar, args, settings, pairs)
    write_curves(args.out / "curves.csv", runs)
    report(args, runs, experts)
    draw(args.out / "figure-6.png", runs, experts)
    if args.render:
        render(args, runs, pairs)


def plan_runs(args: Args) -> list[Setting]:
    """A setting for each seed, environment and method, in this order."""
    return [
        Setting(
            env=env,
            method=method,
            seed=seed,
            updater=args.updater,
            gradient_skip=args.gradient_skip,
            reward=suited_reward(env) if args.reward == "suited" else args.reward,
            follower_lr=args.follower_lr,
            follower_steps=args.follower_steps,
            max_kl=args.max_kl,
            damping=args.damping,
            discount=args.discount,
            gae_lambda=args.gae_lambda,
            max_norm=args.max_norm,
            steps=args.steps,
            environments=args.environments,
        )
        for seed in range(args.seed, args.seed + args.seeds)
        for env in dict.fromkeys(args.env)
        for method in dict.fromkeys(args.method)
    ]


def check(args: Args, settings: Sequence[Setting]) -> None:
    """Checks the arguments, the environments and the memory before anything runs."""
    for name in ("env", "method"):
        choices(name, getattr(args, name))
    check_numbers(args)
    if args.resume and not any((args.out / one.name).exists() for one in settings):
        raise BilevelError(f"there is no such run in {args.out} to resume: leave out --resume")
    tasks = {env: Task.of(make_envs(env, 1)) for env in dict.fromkeys(args.env)}
    for env, task in tasks.items():
        module, colon, name = env.rpartition(":")
        if task.env != name:
            raise BilevelError(
                f"{env} is {task.env} today and may be another version tomorrow: the run would "
                f"not be reproducible; give --env {module}{colon}{task.env}"
            )
        time_limit(env)
        if args.render:
            check_rendering(env)
    updaters = [
        updater_bytes(args.updater, Discriminator(tasks[one.env], reward=one.reward).size)
        for one in settings
        if one.method == "l2l-gail"
    ]
    check_memory(sum(sorted(updaters)[-args.jobs :]))


def check_numbers(args: Args) -> None:
    """Checks the range of each number."""
    for name in COUNTS:
        count(name, getattr(args, name))
    count("seed", args.seed, least=0)
    for name in ("follower_lr", "max_kl", "damping", "max_norm"):
        if (value := getattr(args, name)) is not None:
            positive(name, value)
    for name in ("discount", "gae_lambda"):
        if not 0 <= (value := getattr(args, name)) <= 1:
            raise BilevelError(f"{name} is {value}: it weights the steps to come; give 0 to 1")
    if args.expert is None and args.demonstrations > RECORDED_EPISODES:
        raise BilevelError(
            f"demonstrations is {args.demonstrations}: {RECORDED_EPISODES} episodes of an expert "
            "are recorded; give as many or fewer, or more with --expert FILE"
        )


def find_expert(args: Args, env: str, bar: ProgressBar) -> Demonstrations:
    """The expert's episodes; the bar shows the expert's training, if it has to be trained."""

    def progress(iteration: int, iterations: int) -> None:
        bar.show(f"an expert of {env}", iteration, iterations)

    return expert_demonstrations(
        env,
        args.expert,
        args.out / ("smoke-demonstrations" if args.smoke else "demonstrations"),
        progress,
        iterations=2 if args.smoke else training_iterations(env),
        episodes=args.demonstrations if args.smoke else RECORDED_EPISODES,
    )


def run_with_progress(
    bar: ProgressBar,
    args: Args,
    settings: Sequence[Setting],
    pairs: Mapping[str, tuple[Tensor, Tensor]],
) -> list[Run]:
    """Executes all runs; the bar counts iterations."""
    done = {one.name: 0 for one in settings}

    def progress(name: str, iteration: int) -> None:
        done[name] = iteration
        ended = sum(iterations == args.iterations for iterations in done.values())
        part = f"{ended} of {len(done)} runs"
        bar.show(part, sum(done.values()), args.iterations * len(done))

    return run_all(
        settings,
        args.iterations,
        pairs,
        args.out,
        resume=args.resume,
        jobs=args.jobs,
        progress=progress,
    )


def render(args: Args, runs: Sequence[Run], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Records an episode of each method's final policy of the first seed."""
    for run in runs:
        if run.setting.seed == args.seed:
            policy = make_trainer(run.setting, *pairs[run.setting.env]).leader.policy
            folder = args.out / run.setting.name
            load_weights(folder / "policy.safetensors", policy)
            record_gif(folder / "policy.gif", run.setting.env, policy)


def report(args: Args, runs: Sequence[Run], experts: Mapping[str, Demonstrations]) -> None:
    """Writes the results, and prints and writes the tables."""
    records = [record(run, experts[run.setting.env]) for run in runs]
    device = experiment.pick_device("cpu")
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    tables = [tabulate(env, [one for one in records if one["env"] == env]) for env in experts]
    write_markdown(args.out / "tables.md", tables)
    for table in tables:
        table.print()
    print(f"figures, tables and results are in {args.out}")


if __name__ == "__main__":
    commandline.run(main, Args)
