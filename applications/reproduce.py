"""The tables and figures of the paper, from one command, at three scales.

    python applications/reproduce.py --scale smoke                     # digits, minutes
    python applications/reproduce.py --scale small --data-dir data     # CIFAR-10 on a CPU, hours
    python applications/reproduce.py --scale paper --data-dir data     # the paper's recipe, GPU

Trains the missing classifiers, attacks each with a battery of attacks, and prints the tables of
Jiang et al. (AISTATS 2021) with the paper's figures beside ours: Tables 2, 3, 4, 6, 7 and 8,
Figures 3, 4, 5, 7, 8 and 10. A stopped run continues where it stopped.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import ait
import limit_cycles
import robust_eval
import tyro
from reproduce_lib.figures import draw_curves
from reproduce_lib.plan import ALONE, BATTERY, CW_ROWS, ROWS, SCALES, Scale
from reproduce_lib.tables import Measured, starts, tables
from rich.console import Console

from bilevel import BilevelError, experiment
from bilevel.arguments import choices, count
from bilevel.experiment import commandline
from bilevel.experiment.checkpoint import OtherRunError, check_settings
from bilevel.experiment.files import claim, writing
from bilevel.experiment.results import read_results
from bilevel.experiment.tables import write_markdown


@dataclass
class Args:
    """Reproduce the paper's tables and figures: train, attack, compare."""

    scale: Literal["smoke", "small", "paper"] = "smoke"
    """smoke: digits, minutes. small: CIFAR-10 on a CPU, hours. paper: WRN-34-10 on a GPU."""
    dataset: Literal["digits", "cifar10", "cifar100", "folder", "npz"] | None = None
    """By default that of the scale; folder reads CIFAR-10 from a folder of images, npz from a file
    of arrays."""
    data_dir: Path = Path("data")
    """Where the images are, or are downloaded to; for npz the file."""
    row: tuple[str, ...] = tuple(ROWS)
    """The classifiers to train and attack."""
    figures: bool = True
    """Also measure the curves of Figures 3 and 10."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/reproduce")
    """Folder of results, with a subfolder per scale; existing results are kept."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu or cuda."""
    smoke: bool = False
    """Try everything in seconds: three classifiers (--row is ignored), few images, two epochs."""
    resume: bool = True
    """Keep the results of an earlier run; --no-resume deletes them and starts anew."""


def main(args: Args) -> None:
    """Trains, attacks, and prints the tables."""
    args.row = choices("row", args.row, ROWS)
    count("seed", args.seed, least=0)
    device = experiment.pick_device(args.device)
    if args.smoke:
        args.row = ("pgm", "ait-grad-l2l", "surrogate-fgsm")
    if all(ROWS[name].surrogate for name in args.row):
        raise BilevelError(
            f"--row is {' '.join(args.row)}: surrogates are sources of transferred attacks, and "
            "there is no classifier to attack; add one, such as pgm"
        )
    scale = SCALES[args.scale]
    out = args.out / (f"{args.scale}-trial" if args.smoke else args.scale)
    claim(out)
    if not args.resume:
        training(args, scale, args.row[0], out).load(device)  # no deletion for a misspelt folder
        clear(out)
    trained = train_missing(args, scale, out)
    Console().rule("attacking")
    evaluate(args, scale, out)
    evaluated = read(out / "evaluation")
    dataset = args.dataset or scale.dataset
    paper = dataset if dataset == "cifar100" else "cifar10"
    results = tables(Measured(evaluated, trained), paper)
    environment = experiment.environment(device)
    versions = ", ".join(environment[key] for key in ("date", "device", "torch"))
    title, about = f"## {dataset}, scale {args.scale}", f"`{environment['command']}`: {versions}"
    line = starts(scale.evaluation.get("restarts", robust_eval.Args.restarts))
    write_markdown(out / "tables.md", results, title, about, line)
    seconds = [{"record": "training", **record, "row": name} for name, record in trained.items()]
    experiment.write_results(out, asdict(args), environment, [*seconds, *evaluated])
    for table in results:
        table.print()
    print(line)
    figures(args, scale, out, evaluated)
    print(f"tables, figures and report are in {out}")


def clear(folder: Path) -> None:
    """Removes what a claimed folder holds, but not the lock that keeps others out."""
    with writing(folder):
        for path in folder.glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()


def train_missing(args: Args, scale: Scale, out: Path) -> dict[str, dict[str, Any]]:
    """Trains the rows that have not been trained; the training record of each row."""
    for number, name in enumerate(args.row, 1):
        if not is_trained(args, scale, name, out / name):
            Console().rule(f"{number} of {len(args.row)}: training {name}")
            ROWS[name].app.main(training(args, scale, name, out / name))
    return {name: read(out / name)[0] for name in args.row}


def is_trained(args: Args, scale: Scale, name: str, out: Path) -> bool:
    """Whether a row has been trained; raises if with other settings."""
    if not (out / "results.json").exists():
        return False
    kept = read_results(out)["config"]
    wanted = json.loads(json.dumps(asdict(training(args, scale, name, out)), default=str))
    for where in ("out", "data_dir", "device", "download", "resume"):
        kept.pop(where, None)
        wanted.pop(where, None)
    check_settings(out, kept, wanted)
    return True


def training(args: Args, scale: Scale, name: str, out: Path) -> Any:
    """The arguments that train a row, resuming from its checkpoint if there is one."""
    row = ROWS[name]
    settings = scale.training | (scale.ait if row.app is ait else {}) | row.settings
    if row.slim:
        settings |= {"attacker": "slim", "attacker_width": scale.slim_width}
    return row.app.Args(
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


def evaluate(args: Args, scale: Scale, out: Path) -> None:
    """Attacks every classifier but the surrogates with the whole battery."""
    folders = {name: f"{name}={out / name / ROWS[name].method}" for name in args.row}
    common = robust_eval.Args(
        checkpoint=tuple(folders[name] for name in args.row if not ROWS[name].surrogate),
        surrogate=tuple(folders[name] for name in args.row if ROWS[name].surrogate),
        attack=BATTERY,
        alone=ALONE,
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
        battery = replace(common, attack=(*BATTERY, *cw), alone=(*ALONE, *cw))
        given = target, surrogates, data[target.name]
        try:
            found = robust_eval.evaluate(battery, *given)
        except OtherRunError:  # a surrogate was added, or a row retrained
            found = robust_eval.evaluate(replace(battery, resume=False), *given)
        evaluations.append(found)
    robust_eval.report(common, targets, evaluations, data)


def figures(args: Args, scale: Scale, out: Path, evaluated: list[dict[str, Any]]) -> None:
    """Draws Figures 3, 10, 7 and 8; Figures 4 and 5 are in the report of the evaluation."""
    shown = [name for name in ("pgm", "grad-l2l", "two-step-l2l") if name in args.row]
    if args.figures and "pgm" in shown:
        draw_curves(out / "figures-3-10.png", evaluated, shown)
    if not (path := out / "figures-7-8.png").exists():
        step = SCALES["smoke"].step if args.smoke else scale.step  # 1e-4 takes minutes
        limit_cycles.draw_figures_7_8(path, step)


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of an application's ``results.json``."""
    records: list[dict[str, Any]] = read_results(folder)["results"]
    return records


if __name__ == "__main__":
    commandline.run(main, Args)
