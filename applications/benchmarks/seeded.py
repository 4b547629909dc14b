"""Studies over several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bilevel.experiment.files import claim
from bilevel.robustness.studies.arguments import TrainingArguments
from bilevel.robustness.studies.study import Study


def studies(args: TrainingArguments, names: Sequence[str], count: int) -> Iterator[Study]:
    """A study of each seed from ``--seed`` on, in a folder of its own.

    Of a run that is resumed, the seeds after the first may not have begun.
    """
    for seed in range(args.seed, args.seed + count):
        out = args.out / f"seed-{seed}"
        begun = seed == args.seed or any(out.glob("*/checkpoint.pt"))
        study = Study(replace(args, seed=seed, out=out, resume=args.resume and begun), names)
        claim(args.out)  # not before the first study has found the arguments right
        yield study
