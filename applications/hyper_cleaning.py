"""Data hyper-cleaning: find wrong labels by learning a weight for each training sample.

    python applications/hyper_cleaning.py                              # digits, a minute
    python applications/hyper_cleaning.py --adjoint all --model mlp
    python applications/hyper_cleaning.py --dataset fashion-mnist --data-dir data

A fraction of the training labels is wrong, and it is not known which. A network is trained on
weighted samples (the follower), and the loss on held-out images is differentiated through the
training with respect to the weights (the leader), by one adjoint or several. The weights of wrong
labels decrease.
Franceschi et al., "Forward and Reverse Gradient-Based Hyperparameter Optimization", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from hyper_cleaning_lib import metrics
from hyper_cleaning_lib.adjoints import ALL, NAMES, make
from hyper_cleaning_lib.data import Corrupted, Dataset, load
from hyper_cleaning_lib.figure import draw
from hyper_cleaning_lib.problem import Images, SampleWeights, Training
from hyper_cleaning_lib.trainer import WeightTrainer

from bilevel import Bilevel, BilevelError, experiment
from bilevel.arguments import choices, count, positive
from bilevel.experiment import commandline
from bilevel.experiment.files import claim, remove
from bilevel.experiment.tables import Table, cell
from bilevel.experiment.weights import save_weights

TEST_STEPS_FACTOR = 5
"""The final network is trained for this many times the steps of an inner solve."""

STEP_SIZES = {"digits": 1.0, "fashion-mnist": 0.1}
"""Default step sizes of the inner gradient descent."""

COLUMNS = {
    "weights": "weights",
    "accuracy": "accuracy",
    "found": "found",
    "false_alarms": "false alarms",
    "auc": "AUC",
    "seconds": "seconds",
    "peak_mib": "peak, MiB",
}


@dataclass
class Args:
    """Learn a weight for each training sample, where a fraction of the labels is wrong."""

    adjoint: tuple[str, ...] = ("unrolled", "implicit")
    """unrolled, recomputed, compiled, truncated, sampled, implicit, gmres, neumann, penalty; all
    stands for these; or forward, for at most a hundred samples."""
    dataset: Dataset = "digits"
    """digits are part of scikit-learn."""
    data_dir: Path = Path("data")
    """Where the images are, or are downloaded to."""
    download: bool = True
    """Fetch a missing dataset."""
    model: Literal["linear", "mlp"] = "linear"
    """The network to train; mlp has a hidden layer of 256 units."""
    corrupted: float = 0.4
    """Fraction of the training labels that are wrong."""
    train_size: int = 1000
    """Number of weighted training images."""
    validation_size: int = 1000
    """Maximum number of held-out images."""

    steps: int = 100
    """Inner steps of gradient descent per outer step; the final network is trained for five times
    as many."""
    step: float | None = None
    """Inner step size; by default 1 for digits and 0.1 for fashion-mnist, whose images have ten
    times the squared norm."""
    decay: float = 1e-2
    """Weight decay of the network."""
    iterations: int = 60
    """Outer steps."""
    lr: float = 0.1
    """Learning rate of the sample weights (Adam)."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/hyper_cleaning")
    """Results, checkpoints, weights, figure and TensorBoard logs; replaced without --resume."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds: at most 3 outer steps of 10 inner ones."""
    resume: bool = False
    """Continue a stopped run with the same arguments."""

    def __post_init__(self) -> None:
        """The default step size of the dataset, if none is given."""
        if self.step is None:
            self.step = STEP_SIZES[self.dataset]


def main(args: Args) -> None:
    """Learns the weights with each adjoint, then draws, prints the table and writes the results."""
    names = check(args)
    if args.smoke:
        args.iterations, args.steps = min(args.iterations, 3), min(args.steps, 10)
    device = experiment.pick_device(args.device)
    data = load(
        args.dataset,
        args.data_dir,
        seed=args.seed,
        share=args.corrupted,
        train_size=args.train_size,
        validation_size=args.validation_size,
        download=args.download,
    ).to(device)
    claim(args.out)
    if not args.resume:  # of all at once: --resume would continue the old run of a later one
        remove(*(args.out / name / "checkpoint.pt" for name in names))
    records, learned = [], {}
    for name in names:
        trainer = learn(args, name, data)
        learned[name] = trainer.leader.weights
        records.append(report(args, name, trainer, data))
    records = baselines(args, data) + records  # last, since --resume may refuse these arguments
    curves = {name: metrics.roc(weights, data.wrong) for name, weights in learned.items()}
    draw(args.out / "hyper_cleaning.png", curves, names[0], learned[names[0]], data)
    experiment.write_results(args.out, asdict(args), experiment.environment(device), records)
    print_table(args, records)


def check(args: Args) -> list[str]:
    """Checks the arguments.

    Returns:
        The names of the adjoints.
    """
    names = choices("adjoint", args.adjoint, (*NAMES, "all"))
    for name in ("step", "lr"):
        positive(name, getattr(args, name))
    if not 0 <= args.decay < float("inf"):
        raise BilevelError(
            f"decay is {args.decay}: it must not be negative; give a number from 0 on"
        )
    for name in ("steps", "iterations"):
        count(name, getattr(args, name))
    if args.resume and not list(args.out.glob("*/checkpoint.pt")):
        raise BilevelError(
            f"there is no checkpoint in {args.out}: leave out --resume, or name the folder of the "
            "stopped run with --out"
        )
    return list(ALL if "all" in names else names)


def make_leader(args: Args, data: Corrupted) -> SampleWeights:
    """A new leader with its follower; the same at each call."""
    torch.manual_seed(args.seed)
    device = data.wrong.device
    follower = Training(data.network(args.model).to(device), args.decay)
    return SampleWeights(follower, len(data.images.train.y)).to(device)


def learn(args: Args, name: str, data: Corrupted) -> WeightTrainer:
    """Learns the weights with one adjoint, from its checkpoint with --resume."""
    leader = make_leader(args, data)
    adjoint, solver = make(name, args.step, args.steps)
    optimizer = torch.optim.Adam(leader.parameters(), lr=args.lr)
    game = Bilevel(leader, leader.follower, solver, leader_opt=optimizer, adjoint=adjoint)
    same = ("dataset", "model", "corrupted", "train_size", "validation_size", "steps", "step")
    config = {key: getattr(args, key) for key in (*same, "decay", "lr", "seed")}
    folder = args.out / name
    trainer = WeightTrainer(game, data, folder / "checkpoint.pt", {"adjoint": name, **config})
    with experiment.Journal(name, folder) as journal:
        journal.begin(args.iterations)
        if args.resume and trainer.path.exists():
            trainer.resume()
        trainer.train(args.iterations, journal.report)
    return trainer


def report(args: Args, name: str, trainer: WeightTrainer, data: Corrupted) -> dict[str, Any]:
    """Saves and evaluates the learned weights.

    Returns:
        A record of ``results.json``.
    """
    record = evaluate(args, name, trainer.leader, data)
    weights = trainer.leader.weights
    return {
        **record,
        "iterations": trainer.game.steps,
        **metrics.found(weights, data.wrong),
        "auc": metrics.roc(weights, data.wrong).auc,
        "seconds": trainer.seconds,
        "peak_mib": trainer.peak_mib(),
    }


def baselines(args: Args, data: Corrupted) -> list[dict[str, Any]]:
    """Records of the labels as they are, of the correct ones only, and of held-out images only.

    What counts has weight 1, as in ordinary training: a smaller one would make the weight decay
    larger in proportion.
    """
    records = []
    for name, wrong in (("uniform", torch.inf), ("right only", -torch.inf)):
        leader = make_leader(args, data)
        leader.logits.data = torch.where(data.wrong, wrong, torch.inf)
        records.append(evaluate(args, name, leader, data))
    held_out = replace(data, images=Images(data.images.validation, data.images.validation))
    leader = make_leader(args, held_out)
    leader.logits.data.fill_(torch.inf)
    records.append(evaluate(args, "held out", leader, held_out))
    return records


def evaluate(args: Args, name: str, leader: SampleWeights, data: Corrupted) -> dict[str, Any]:
    """Trains a network on weighted samples, saves both, and tests it."""
    network = metrics.train(leader, data, args.step, TEST_STEPS_FACTOR * args.steps)
    about = {"dataset": args.dataset, "model": args.model, "weights": name, "seed": str(args.seed)}
    save_weights(args.out / name / "sample_weights.safetensors", leader, about)
    save_weights(args.out / name / "network.safetensors", network, about)
    return {
        "weights": name,
        "dataset": args.dataset,
        "model": args.model,
        "corrupted": args.corrupted,
        "seed": args.seed,
        "accuracy": metrics.accuracy(network, data),
    }


def print_table(args: Args, records: Sequence[dict[str, Any]]) -> None:
    """Prints a row for each set of weights."""
    title = f"{args.dataset}, {args.model}: {args.corrupted:.0%} of {args.train_size} labels wrong"
    rows = [[cell(record.get(key)) for key in COLUMNS] for record in records]
    Table(title, [*COLUMNS.values()], rows).print()
    print(f"results, figure and weights are in {args.out}")


if __name__ == "__main__":
    commandline.run(main, Args)
