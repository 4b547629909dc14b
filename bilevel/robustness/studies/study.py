"""A study: several methods trained and attacked in the same way, with one table of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bilevel import Bilevel, Solver, ZeroSum, distributed, experiment
from bilevel.cuda_graphs import check_cuda_graphs
from bilevel.distributed import SyncBatchNorm
from bilevel.errors import BilevelError
from bilevel.experiment.files import claim, remove
from bilevel.experiment.style import save_png
from bilevel.robustness.data.batches import batches
from bilevel.robustness.data.splits import sample
from bilevel.robustness.evaluation.accuracy import accuracy
from bilevel.robustness.evaluation.examples import Example, examples, plot_attacks
from bilevel.robustness.methods import EVALUATION_START, EVALUATION_STEP
from bilevel.robustness.networks.compilation import compile_network
from bilevel.robustness.networks.failures import explain_out_of_memory
from bilevel.robustness.networks.own import code_of, is_own
from bilevel.robustness.networks.precision import Precision, default_precision
from bilevel.robustness.networks.trunk import recompute_activations
from bilevel.robustness.recipe import make_game
from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.table import add_ratios, one_answer, print_one_answer, print_table
from bilevel.robustness.threats.norms import NORMS
from bilevel.robustness.trained import ATTACKER, CLASSIFIER, About, save_trained
from bilevel.robustness.training.progress import Progress
from bilevel.robustness.training.trainer import Trainer


class Study:
    """Trains classifiers on the same images, attacks them with the same attacks, and reports.

    Args:
        args: The application's arguments.
        names: The names of the runs; results, checkpoints, weights and logs of earlier runs of
            these names are removed unless they are resumed, as they are when the job is restarted
            (:func:`bilevel.distributed.restarted`).

    Raises:
        BilevelError: If the images are not available, there is nothing to resume, or the arguments
            of the processes differ.
    """

    def __init__(self, args: TrainingArguments, names: Sequence[str]) -> None:
        saved = any(args.out.glob("*/checkpoint.pt"))
        if args.resume and not saved:
            raise BilevelError(
                f"there is no checkpoint in {args.out}: nothing to go on from; leave out --resume, "
                "or name the folder of the stopped run with --out"
            )
        args = replace(args, resume=args.resume or (saved and distributed.restarted()))
        self.args = args
        self.names = names
        self.recipe = args.recipe()
        if distributed.world_size() > 1 and args.normalize == "batch":
            raise BilevelError(
                f"normalize is batch and there are {distributed.world_size()} processes: each "
                "would divide by the maximum of its own share; give --normalize sample"
            )
        codes = {"code": experiment.code(), "network": code_of(self.recipe.model)}
        distributed.check_consistent({**asdict(args), **codes})
        self.device = experiment.pick_device(args.device)
        if args.cuda_graphs == "on":
            check_cuda_graphs(self.device)
        self._precision: Precision = (
            default_precision(self.device) if args.precision == "auto" else args.precision
        )
        self._compiles = args.compiles(self.device)
        self.data = args.load(self.device)
        self._about = About.of(
            "plain",
            self.recipe,
            self.data.train,
            dataset=args.dataset,
            image_size=args.image_size,
            seed=args.seed,
            normalize=args.normalize,
        )
        self.records: list[dict[str, Any]] = []
        self._example_batch = next(batches(sample(self.data.test, 3), 3))
        self._examples: list[Example] = []

    def about(self, method: str, interpolation: dict[str, Any] | None = None) -> About:
        """The description of a method's networks.

        Args:
            method: The method whose solver is used.
            interpolation: The follower's settings if it interpolates.

        Returns:
            Their description.
        """
        return replace(self._about, method=method, interpolation=interpolation)

    def networks(self, about: About) -> tuple[nn.Module, Solver]:
        """The classifier and the method's solver, seeded and on the device.

        Args:
            about: Their description.

        Returns:
            Both, untrained.
        """
        torch.manual_seed(self.args.seed)
        model, solver = about.classifier(), about.solver()
        if self.args.recompute:
            recompute_activations(model)
        for network in (model, solver):
            network.to(self.device)
            # A layer of one's own may read the layout, as view() does after a convolution.
            if self.args.channels_last and not is_own(about.model):
                network.to(memory_format=torch.channels_last)
            if self.args.sync_batchnorm:
                SyncBatchNorm.convert_sync_batchnorm(network)
        if self._compiles:
            compile_network(model)
            for update in solver.children():
                compile_network(update)
        return model, solver

    def game(self, about: About, **options: Any) -> Bilevel:
        """The zero-sum game of the classifier and its attacker.

        Args:
            about: The description of the networks.
            **options: Schedule and adjoint, see :func:`~bilevel.robustness.make_game`.

        Returns:
            The game of new networks, see :meth:`networks`.
        """
        model, solver = self.networks(about)
        follower = about.follower()
        return make_game(ZeroSum(model, follower), follower, solver, self.recipe, **options)

    def run(
        self, name: str, about: About, game: Bilevel, config: dict[str, Any] | None = None
    ) -> None:
        """Trains or resumes a game, attacks its classifier and adds a record.

        Args:
            name: The name in the table, and of the folder of the weights.
            about: The description of the networks.
            game: The game of these networks.
            config: Further settings of the run, which a resumed run must share.

        Raises:
            BilevelError: If another process writes to the same folder.
        """
        if distributed.is_main() and not self.records:
            claim(self.args.out)
            if not self.args.resume:
                self._remove_earlier_runs()
        progress = self._train(name, about, game, config or {})
        model = game.leader.get_submodule("model")
        if distributed.is_main():
            save_trained(self.args.out / name, about, model, game.solver)
        with Console().status(f"{name}: attacking {len(self.data.test)} test images"):
            attacked = self._evaluate(about, model, game.solver)
        self.records.append(
            {
                "method": name,
                "dataset": about.dataset,
                "model": about.model,
                "norm": about.norm,
                "epsilon": about.epsilon,
                "seed": about.seed,
                "epochs": self.recipe.epochs,
                "best_epoch": progress.best_epoch,
                "seconds_per_epoch": median(progress.seconds),  # the first one compiles
                "classifier_parameters": sum(p.numel() for p in model.parameters()),
                "attacker_parameters": sum(p.numel() for p in game.solver.parameters()),
                **attacked,
                "one_answer": one_answer(self.data.test)[1],
            }
        )
        self._add_examples(name, about, model, game.solver)

    def close(self) -> None:
        """Writes results and figure, and prints the table."""
        if not distributed.is_main():
            return
        add_ratios(self.records)
        environment = experiment.environment(self.device)
        experiment.write_results(self.args.out, asdict(self.args), environment, self.records)
        save_png(self.args.out / "attacks.png", plot_attacks(self._examples))
        recipe = self.recipe
        radius = f"‖δ‖{NORMS[recipe.norm].index} ≤ {recipe.epsilon:g}"
        title = f"{self.args.dataset}, {recipe.model}, {radius}"
        print_table(f"{title}: accuracy on {len(self.data.test)} test images", self.records)
        print_one_answer(self.data.test, self.records)
        Console().print(f"results, figure and weights are in {self.args.out}")

    def _remove_earlier_runs(self) -> None:
        """Of all names at once: a stopped run leaves none of them to resume or evaluate."""
        remove(self.args.out / "results.json")
        for name in self.names:
            folder = self.args.out / name
            remove(*(folder / file for file in ("checkpoint.pt", CLASSIFIER, ATTACKER)))
            remove(*folder.glob("tensorboard/events.out.tfevents.*"))

    def _train(self, name: str, about: About, game: Bilevel, config: dict[str, Any]) -> Progress:
        folder, images = self.args.out / name, len(self.data.train)
        # Label smoothing, which has no attacker either, is the control of robust methods.
        undefended = about.method == "plain" and about.interpolation is None
        sizes = {"images": images, "validation_images": len(self.data.validation)}
        with experiment.Journal(name, folder) as journal:
            trainer = Trainer(
                game,
                self.data,
                self.recipe,
                seed=self.args.seed,
                monitor="validation_clean" if undefended else "validation_robust",
                precision=self._precision,
                cuda_graphs=self.args.captures(self.device, game.schedule),
                path=folder / "checkpoint.pt",
                config={"method": name, "dataset": about.dataset, **sizes, **config}
                | {"sync_batchnorm": self.args.sync_batchnorm, "normalize": self.args.normalize},
                report=journal.report,
            )
            note = "compiling, then the first steps" if self._compiles else "the first steps"
            journal.begin(self.recipe.epochs * trainer.steps_per_epoch, note)
            if self.args.resume and trainer.path.exists():
                trainer.resume()
            return trainer.fit()

    def _evaluate(self, about: About, model: nn.Module, solver: Solver) -> dict[str, float | None]:
        """Test accuracy: clean, under the paper's PGM, and under the method's own attacker."""
        torch.manual_seed(self.args.seed)
        eps, size = about.epsilon, self.recipe.evaluation_batch_size
        ball, step = NORMS[about.norm](eps, start=EVALUATION_START), EVALUATION_STEP * eps
        measure = partial(accuracy, model, self.data.test, batch_size=size)
        with explain_out_of_memory(size):
            own = measure(about.follower(), solver) if about.learned else None
            return {
                "clean": measure(),
                "pgm20": measure(ball, ball.pgm(step, 20)),
                "pgm100": measure(ball, ball.pgm(step, 100)),
                "own_attacker": own,
            }

    def _add_examples(self, name: str, about: About, model: nn.Module, solver: Solver) -> None:
        """Attacks a few images for the figure, with PGM-20 if the method has no attacker."""
        follower = about.follower()
        if about.method == "plain":
            follower = NORMS[about.norm](about.epsilon)
            solver = follower.pgm(EVALUATION_STEP * about.epsilon, 20)
        batch, classes = self._example_batch, self.data.test.classes
        self._examples += examples(name, model, follower, solver, batch, classes)
