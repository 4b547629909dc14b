"""What has been measured so far, and when to stop: a long measurement in several short stages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilevel import experiment
from bilevel.experiment.checkpoint import check_settings
from bilevel.experiment.results import read_results

Record = dict[str, Any]


class StageOver(Exception):
    """The stage has used up its time; the next one goes on."""


class Clock:
    """How much of a stage is left.

    Args:
        minutes: A stage's length.
    """

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def leaves(self, minutes: float) -> bool:
        """Whether that much of the stage is left."""
        return time.monotonic() + 60 * minutes <= self.end

    def check(self, minutes: float = 0.0) -> None:
        """Ends the stage unless that much of it is left."""
        if not self.leaves(minutes):
            raise StageOver


@dataclass(frozen=True)
class Job:
    """A part of the measurement.

    Args:
        name: What the records are kept under.
        run: Gives its records; what it raises is noted, and the job tried again after all others.
        minutes: What must be left of a stage for it to begin.
    """

    name: str
    run: Callable[[], list[Record]]
    minutes: float


class Ledger:
    """The records of all stages, in ``out/results.json`` after each job.

    Args:
        out: The folder.
        config: The arguments; a ledger of others is refused.
        environment: See :func:`bilevel.experiment.environment`; so is one of another device.
    """

    def __init__(
        self, out: Path, config: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.out = out
        self.config = json.loads(json.dumps(config, default=str))
        self.environment = environment
        self.records: list[Record] = []
        if (path := out / "results.json").exists():
            found = read_results(out)
            kept = found["config"] | {n: found["environment"].get(n) for n in ("device", "torch")}
            here = self.config | {n: environment.get(n) for n in ("device", "torch")}
            check_settings(path, kept, here)
            self.records = found["results"]

    def done(self, job: Job) -> bool:
        """Whether a job's records are there, and none says that something failed."""
        return self.tried(job) and len(self.measured(job)) == len(self.of(job))

    def tried(self, job: Job) -> bool:
        """Whether a job is done or has failed, all of it or a part."""
        return bool(self.of(job))

    def of(self, job: Job) -> list[Record]:
        """A job's records."""
        return [one for one in self.records if one["job"] == job.name]

    def measured(self, job: Job) -> list[Record]:
        """A job's records, without what failed."""
        return [one for one in self.of(job) if "failed" not in one]

    def note(self, job: Job, records: Sequence[Record]) -> None:
        """Puts a job's records in place of those of its last attempt."""
        self.records = [one for one in self.records if one["job"] != job.name]
        self.records += [{"job": job.name, **record} for record in records]
        self.write()

    def write(self) -> None:
        """Puts the records into their file."""
        experiment.write_results(self.out, self.config, self.environment, self.records)


def work(jobs: Sequence[Job], ledger: Ledger, clock: Clock) -> None:
    """Does the jobs that are not done and fit into what is left of the stage.

    In their order, but those that have failed come last: one that never ends well, or in which a
    stage was killed, does not cost the others their figures.
    """
    for job in sorted((job for job in jobs if not ledger.done(job)), key=ledger.tried):
        if not clock.leaves(job.minutes):
            continue
        begun, before, kept = time.monotonic(), ledger.records, ledger.measured(job)
        print(f"{jobs.index(job) + 1} of {len(jobs)}: {job.name}", flush=True)
        ledger.note(job, [*kept, {"failed": "the stage ended in the middle of it"}])
        try:
            ledger.note(job, job.run())
        except StageOver:
            ledger.records = before
            ledger.write()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"  failed: {reason}", flush=True)
            ledger.note(job, [*kept, {"failed": reason}])
        print(f"  {time.monotonic() - begun:.0f} s", flush=True)
