"""Every table and figure of the paper, from one command, at three scales.

    python applications/reproduce.py --scale smoke                     # digits, minutes
    python applications/reproduce.py --scale small --data-dir data     # CIFAR-10 on a CPU, hours
    python applications/reproduce.py --scale paper --data-dir data     # the paper's recipe, GPU

Trains what is missing, skips what is there, attacks every classifier with everything, and prints
each table of Jiang et al. (AISTATS 2021) with the paper's figure beside its own: Tables 2, 3, 4, 6,
7 and 8, Figures 3, 4, 5, 7, 8 and 10. A stopped run goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import adv_training
import ait
import limit_cycles
import robust_eval
import tyro
from reproduction.figures import draw_curves
from reproduction.paper import TABLE_2, TABLE_6
from reproduction.tables import Measured, Table, tables
from rich.console import Console
from rich.table import Table as Grid

from bilevel import BilevelError, commandline, experiment
from bilevel.files import replacing


@dataclass(frozen=True)
class Row:
    """A classifier that the tables need.

    Args:
        app: The application that trains it.
        method: Its method there.
        settings: Further arguments.
        slim: Whether its attacker is the slim one.
        surrogate: Whether it is only a source of adversarial images: another seed, not evaluated.
    """

    app: ModuleType
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    slim: bool = False
    surrogate: bool = False


ROWS = {
    "plain": Row(adv_training, "plain"),
    "fgsm": Row(adv_training, "fgsm"),
    "pgm": Row(adv_training, "pgm"),
    "naive-l2l": Row(adv_training, "naive-l2l"),
    "grad-only-l2l": Row(adv_training, "grad-only-l2l"),
    "two-step-grad-only-l2l": Row(adv_training, "two-step-grad-only-l2l"),
    "grad-l2l": Row(adv_training, "grad-l2l"),
    "two-step-l2l": Row(adv_training, "two-step-l2l"),
    "slim-grad-l2l": Row(adv_training, "grad-l2l", slim=True),
    "slim-two-step-l2l": Row(adv_training, "two-step-l2l", slim=True),
    "label-smoothing": Row(ait, "label-smoothing"),
    "ait": Row(ait, "ait"),
    "ait-printed-sign": Row(ait, "ait", {"sense": "max"}),
    "ait-grad-l2l": Row(ait, "grad-l2l"),
    "ait-two-step-l2l": Row(ait, "two-step-l2l"),
    "surrogate-plain": Row(adv_training, "plain", surrogate=True),
    "surrogate-fgsm": Row(adv_training, "fgsm", surrogate=True),
    "surrogate-pgm": Row(adv_training, "pgm", surrogate=True),
}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        dataset: What the classifiers are trained on.
        training: Arguments of the training applications.
        ait: Further ones of ``ait.py``.
        slim_width: Channels of the slim attacker's first layer.
        evaluation: Arguments of ``robust_eval.py``.
        step: Of the limit cycle.
    """

    dataset: str
    training: dict[str, Any]
    evaluation: dict[str, Any]
    slim_width: int
    ait: dict[str, Any] = field(default_factory=dict)
    step: float = 1e-4


BATTERY = ("fgsm", "pgm-20", "own", "transfer", "pgm-100", "pgm-20-margin", "pgm-100-margin")
BATTERY += ("apgd-ce", "apgd-t", "random")
CW_ROWS = {
    cell.row
    for table in (TABLE_2, TABLE_6)
    for cells in table.values()
    for cell in cells
    if cell.attack == "CW"
}
"""The rows that a table asks for CW's figure; it takes as long as the longest attack."""

SCALES = {
    "smoke": Scale(
        "digits",
        training={"epochs": 10, "test_size": 100},
        evaluation={"test_size": 100, "curve_size": 50, "points": 100},
        slim_width=16,
        step=1e-2,
    ),
    "small": Scale(
        "cifar10",
        training={
            "model": "wrn-10-1",
            "attacker": "wide",
            "attacker_width": 3,
            "gradient_skip": 2.0,
            "epochs": 5,
            "milestones": (0.6, 0.8),
            "train_size": 12000,
            "validation_size": 500,
            "test_size": 256,
        },
        evaluation={"test_size": 200, "curve_size": 64, "points": 1000},
        slim_width=8,
    ),
    "paper": Scale(
        "cifar10",
        training={},
        ait={"epochs": 200, "milestones": (0.3, 0.45)},
        evaluation={"test_size": None, "curve_size": 1000, "points": 100_000, "restarts": 5},
        slim_width=128,
    ),
}


@dataclass
class Args:
    """Reproduce the paper's tables and figures: train, attack, compare."""

    scale: Literal["smoke", "small", "paper"] = "smoke"
    """smoke: digits, minutes. small: CIFAR-10 on a CPU, hours. paper: WRN-34-10 on a GPU."""
    dataset: Literal["digits", "cifar10", "cifar100", "folder", "npz"] | None = None
    """The scale's dataset unless given; folder reads CIFAR-10 from a tree of images, npz from a
    file of arrays."""
    data_dir: Path = Path("data")
    row: tuple[str, ...] = tuple(ROWS)
    """The classifiers to train and attack."""
    figures: bool = True
    """Measure the curves of Figures 3 and 10 too."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/reproduce")
    """A folder a scale; what is there is not made again."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds: four classifiers, few images, two epochs."""
    resume: bool = True
    """Keep what a former run left; --no-resume begins anew."""


def main(args: Args) -> None:
    """Trains, attacks, and prints the tables."""
    unknown = [name for name in args.row if name not in ROWS]
    if unknown:
        raise BilevelError(f"there is no row {unknown[0]!r}: choose from {', '.join(ROWS)}")
    if args.smoke:
        args.row = ("pgm", "grad-l2l", "ait", "surrogate-fgsm")
    scale = SCALES[args.scale]
    out = args.out / args.scale
    if not args.resume:
        shutil.rmtree(out, ignore_errors=True)
    console = Console()
    for number, name in enumerate(args.row, 1):
        if not (out / name / "results.json").exists():
            console.rule(f"{number} of {len(args.row)}: training {name}")
            train(args, scale, name, out / name)
    trained = {name: read(out / name)[0] for name in args.row}
    console.rule("attacking")
    evaluate(args, scale, out)
    evaluated = read(out / "evaluation")
    figures(args, scale, out, evaluated)
    dataset = args.dataset or scale.dataset
    paper = dataset if dataset == "cifar100" else "cifar10"
    results = tables(Measured(evaluated, trained), paper)
    environment = experiment.environment(experiment.pick_device(args.device))
    write(out, results, f"{dataset}, scale {args.scale}", environment)
    seconds = [{"record": "training", **record, "row": name} for name, record in trained.items()]
    experiment.write_results(out, asdict(args), environment, [*seconds, *evaluated])
    for table in results:
        grid = Grid(*table.header, title=table.title)
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
    console.print(f"tables, figures and report are in {out}")


def train(args: Args, scale: Scale, name: str, out: Path) -> None:
    """One classifier, from where a stopped run left it."""
    row = ROWS[name]
    settings = scale.training | (scale.ait if row.app is ait else {}) | row.settings
    if row.slim:
        settings |= {"attacker": "slim", "attacker_width": scale.slim_width}
    row.app.main(
        row.app.Args(
            method=(row.method,),
            dataset=args.dataset or scale.dataset,
            data_dir=args.data_dir,
            out=out,
            seed=args.seed + row.surrogate,
            device=args.device,
            smoke=args.smoke,
            resume=(out / row.method / "checkpoint.pt").exists(),
            **settings,
        )
    )


def evaluate(args: Args, scale: Scale, out: Path) -> None:
    """Every classifier under the whole battery, surrogates apart."""
    folders = {name: f"{name}={out / name / ROWS[name].method}" for name in args.row}
    common = robust_eval.Args(
        checkpoint=tuple(folders[name] for name in args.row if not ROWS[name].surrogate),
        surrogate=tuple(folders[name] for name in args.row if ROWS[name].surrogate),
        attack=BATTERY,
        alone=("pgm-20-margin", "pgm-100-margin", "cw", "random"),
        curves=args.figures,
        dataset=args.dataset or scale.dataset,
        data_dir=args.data_dir,
        out=out / "evaluation",
        seed=args.seed,
        device=args.device,
        smoke=args.smoke,
        resume=True,
        **scale.evaluation,
    )
    targets, surrogates, data = robust_eval.prepare(common)
    evaluations = []
    for target in targets:
        cw = ("cw",) if target.name in CW_ROWS else ()
        battery = replace(common, attack=(*BATTERY, *cw))
        evaluations.append(robust_eval.evaluate(battery, target, surrogates, data[target.name]))
    robust_eval.report(common, targets, evaluations, data)


def figures(args: Args, scale: Scale, out: Path, evaluated: list[dict[str, Any]]) -> None:
    """Figures 3 and 10, 7 and 8; 4 and 5 are in the evaluation's report."""
    shown = [name for name in ("pgm", "grad-l2l", "two-step-l2l") if name in args.row]
    if args.figures and "pgm" in shown:
        draw_curves(out / "figures-3-10.png", evaluated, shown)
    if not (path := out / "figures-7-8.png").exists():
        limit_cycles.draw_turn(path, scale.step)


def read(folder: Path) -> list[dict[str, Any]]:
    """The records that an application wrote."""
    records: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["results"]
    return records


def write(out: Path, results: list[Table], title: str, environment: dict[str, str]) -> None:
    """The tables as Markdown."""
    told = (environment[key] for key in ("date", "device", "torch"))
    about = f"`{environment['command']}`: {', '.join(told)}"
    text = "\n\n".join([f"## {title}", about, *(table.markdown() for table in results)])
    with replacing(out / "tables.md") as part:
        part.write_text(text + "\n")


if __name__ == "__main__":
    commandline.run(main, Args)
