"""Adversarial training, by hand-designed and by learned followers, side by side in one table.

    python applications/adv_training.py                                     # digits, two minutes
    python applications/adv_training.py --dataset cifar10 --data-dir data --method pgm two-step-l2l
    python applications/adv_training.py --dataset folder --data-dir photos --model resnet18

For each method a classifier is trained against the method's follower (Algorithm 3 of Jiang et al.,
"Learning to Defend by Learning to Attack", AISTATS 2021), the epoch that validates best is kept,
and the test set is attacked with PGM-20, PGM-100 and the method's own attacker.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bilevel import Bilevel, BilevelError, commandline, experiment, frozen, pgm
from bilevel.robustness import (
    EVALUATION_STEP,
    RECIPES,
    Attacker,
    Batch,
    ImageSet,
    Linf,
    Recipe,
    Splits,
    Trainer,
    accuracy,
    attack,
    batches,
    build_model,
    check_method,
    draw_attacks,
    is_learned,
    load_images,
    make_game,
    make_solver,
    sample,
    save_weights,
)


@dataclass
class Args:
    """Train robust classifiers by several methods and compare them in one table.

    What is left out comes from the dataset's recipe: the paper's for CIFAR, a small one for digits.
    """

    method: tuple[str, ...] = ("plain", "pgm", "grad-l2l", "two-step-l2l")
    """plain, fgsm, pgm, naive-l2l, grad-l2l, two-step-l2l, grad-only-l2l, two-step-grad-only-l2l,
    or K-step-l2l for any K; several train one after the other."""
    dataset: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "folder"] = "digits"
    """digits come with scikit-learn; folder is any tree of images, one folder a class."""
    data_dir: Path = Path("data")
    """Where the images are, or are downloaded to."""
    download: bool = True
    """Fetch a missing torchvision dataset."""
    train_size: int | None = None
    """Train on this many images only."""
    validation_size: int = 1000
    """Choose the epoch on at most this many images, held out of the training images."""
    test_size: int | None = None
    """Attack this many test images only."""

    model: str | None = None
    """small-cnn, resnet18, or wrn-DEPTH-WIDTH such as wrn-34-10."""
    attacker: Literal["wide", "slim", "slim-no-skip", "two-layer", "conv-rnn"] | None = None
    """The attacker's network: wide is the paper's Table 1, slim its Table 5."""
    attacker_width: int | None = None
    """Channels of the attacker's first layer; keep it in proportion to the classifier."""
    normalize: Literal["sample", "batch"] = "sample"
    """Divide gradients by each image's maximum, or by the batch's as the authors' code does."""
    gradient_skip: float | None = None
    """Let the attacker start near FGSM: tanh(net + s·sign ∇) from this s, which is learned. The
    paper has none; digits and fashion-mnist start from 2."""
    schedule: Literal["simultaneous", "alternating"] = "simultaneous"
    """One pass for both networks, or one each as the authors' code runs."""

    epsilon: float | None = None
    """Radius of the L-infinity ball in units of the pixel range: 0.031 in the paper."""
    pgm_steps: int | None = None
    """Steps of the pgm method: 10 in the paper."""
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    """The classifier's learning rate (SGD)."""
    attacker_lr: float | None = None
    """The attacker's learning rate (Adam)."""
    weight_decay: float | None = None
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 computes the networks in bfloat16 (autocast); weights stay float32."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/adv_training")
    """Results, checkpoints, weights, figure and TensorBoard logs; replaced without --resume."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds: few images, two epochs, small networks unless others are named."""
    resume: bool = False
    """Go on where a stopped run with the same arguments ended."""

    def recipe(self) -> Recipe:
        """The dataset's recipe, with what was given on the command line in its place."""
        given = {entry.name: getattr(self, entry.name, None) for entry in fields(Recipe)}
        known = {name: value for name, value in given.items() if value is not None}
        if self.smoke:
            known = {"model": "small-cnn", "attacker": "two-layer"} | known | {"epochs": 2}
        return replace(RECIPES[self.dataset], **known)


def main(args: Args) -> None:
    """Trains and attacks every method, then prints the table and writes the results."""
    if not args.method:
        raise BilevelError("no method is given: there is nothing to train; name one or several")
    for method in args.method:
        check_method(method)
    recipe, device = args.recipe(), experiment.pick_device(args.device)
    if args.resume and not list(args.out.glob("*/checkpoint.pt")):
        raise BilevelError(
            f"there is no checkpoint in {args.out}: nothing to go on from; leave out --resume, or "
            "name the folder of the stopped run with --out"
        )
    data = load(args, device)
    records, attacked, said = [], {}, {}
    shown = next(batches(sample(data.test, 3), 3))
    for method in args.method:
        game, record = train(args, method, recipe, data)
        with Console().status(f"{method}: attacking {len(data.test)} test images"):
            record |= evaluate(args, method, recipe, game, data.test)
        records.append(record)
        attacked[method], said[method] = show(method, recipe, game, shown, data.test.classes)
    add_ratios(records)
    environment = experiment.environment(device)
    experiment.write_results(args.out, asdict(args), environment, records)
    truth = [data.test.classes[label] for label in shown.y.tolist()]
    draw_attacks(args.out / "attacks.png", shown.x, attacked, said, truth)
    print_table(args, recipe, len(data.test), records)


def load(args: Args, device: torch.device) -> Splits:
    """The images, on the device."""
    data = load_images(
        args.dataset,
        args.data_dir,
        seed=args.seed,
        train_size=args.train_size,
        download=args.download,
    )
    sizes = (256, 64, 64) if args.smoke else (None, args.validation_size, args.test_size)
    parts = (sample(part, size).to(device) for part, size in zip(data, sizes, strict=True))
    return Splits(*parts)


def train(args: Args, method: str, recipe: Recipe, data: Splits) -> tuple[Bilevel, dict[str, Any]]:
    """Trains a classifier by one method, or goes on with it; returns the game at its best epoch."""
    images, folder = data.train.images, args.out / method
    channels, classes = images.shape[1], len(data.train.classes)
    torch.manual_seed(args.seed)
    model = build_model(recipe.model, channels=channels, classes=classes)
    attacker = Attacker(
        recipe.attacker, recipe.attacker_width, args.normalize, recipe.gradient_skip
    )
    solver = make_solver(
        method,
        eps=recipe.epsilon,
        channels=channels,
        attacker=attacker,
        pgm_steps=recipe.pgm_steps,
    )
    for network in (model, solver):
        network.to(images.device, memory_format=torch.channels_last)  # convolutions' fastest layout
    game = make_game(model, Linf(recipe.epsilon), solver, recipe, args.schedule)
    sizes = {"images": len(images), "validation_images": len(data.validation)}
    config = {"method": method, "dataset": args.dataset, **sizes}
    with experiment.Journal(method, folder) as journal:
        trainer = Trainer(
            game,
            data,
            recipe,
            seed=args.seed,
            choose_by="validation_clean" if method == "plain" else "validation_pgm",
            precision=args.precision,
            path=folder / "checkpoint.pt",
            config=config | asdict(attacker) | {"schedule": args.schedule},
            report=journal.report,
        )
        journal.begin(recipe.epochs * trainer.steps_per_epoch)
        if args.resume and trainer.path.exists():
            trainer.resume()
        progress = trainer.fit()
    about = {"model": recipe.model, "channels": str(channels), "classes": str(classes)}
    save_weights(folder / "classifier.safetensors", model, about)
    if is_learned(method):
        save_weights(folder / "attacker.safetensors", solver, {"method": method})
    return game, {
        "method": method,
        "dataset": args.dataset,
        "model": recipe.model,
        "epsilon": recipe.epsilon,
        "seed": args.seed,
        "epochs": recipe.epochs,
        "best_epoch": progress.best_epoch,
        "seconds_per_epoch": sum(progress.seconds) / max(1, len(progress.seconds)),
        "classifier_parameters": sum(p.numel() for p in model.parameters()),
        "attacker_parameters": sum(p.numel() for p in solver.parameters()),
    }


def evaluate(
    args: Args, method: str, recipe: Recipe, game: Bilevel, test: ImageSet
) -> dict[str, float | None]:
    """Accuracy on the test set: clean, under PGM as the paper runs it, under the own attacker."""
    torch.manual_seed(args.seed)
    model, eps = game.leader.model, recipe.epsilon
    near, step = Linf(eps, start=1e-4), EVALUATION_STEP * eps
    own = accuracy(model, test, Linf(eps), game.solver) if is_learned(method) else None
    return {
        "clean": accuracy(model, test),
        "pgm20": accuracy(model, test, near, pgm(step, 20)),
        "pgm100": accuracy(model, test, near, pgm(step, 100)),
        "own_attacker": own,
    }


def show(
    method: str, recipe: Recipe, game: Bilevel, batch: Batch, classes: tuple[str, ...]
) -> tuple[Tensor, list[str]]:
    """The images as the method's attacker changes them, and what the classifier says to them.

    Plain training has no attacker; PGM-20 stands in for it.
    """
    eps = recipe.epsilon
    solver = pgm(EVALUATION_STEP * eps, 20) if method == "plain" else game.solver
    model = game.leader.model
    adversarial = attack(model, Linf(eps), solver, batch)
    with torch.no_grad(), frozen(model):
        said = model(adversarial.x).argmax(1).tolist()
    return adversarial.x, [classes[label] for label in said]


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Adds to each record its time an epoch divided by that of PGM, where PGM was run."""
    pgm_seconds = next((r["seconds_per_epoch"] for r in records if r["method"] == "pgm"), None)
    for record in records:
        ratio = record["seconds_per_epoch"] / pgm_seconds if pgm_seconds else None
        record["ratio_to_pgm"] = ratio


def print_table(
    args: Args, recipe: Recipe, test_images: int, records: list[dict[str, Any]]
) -> None:
    """The table that the run was made for."""
    columns = {
        "method": "method",
        "clean": "clean",
        "pgm20": "PGM-20",
        "pgm100": "PGM-100",
        "own_attacker": "own attacker",
        "seconds_per_epoch": "s/epoch",
        "ratio_to_pgm": "÷ PGM",
    }
    table = Table(
        title=f"{args.dataset}, {recipe.model}, ε = {recipe.epsilon:g}: accuracy on "
        f"{test_images} test images"
    )
    for key, title in columns.items():
        table.add_column(title, justify="left" if key == "method" else "right")
    for record in records:
        table.add_row(*(cell(record[key]) for key in columns))
    console = Console()
    console.print(table)
    console.print(f"results, figure and weights are in {args.out}")


def cell(value: str | float | None) -> str:
    """A table's cell: numbers with three decimals, nothing where nothing was measured."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3f}"


if __name__ == "__main__":
    commandline.run(main, Args)
