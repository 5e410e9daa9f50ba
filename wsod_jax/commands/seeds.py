"""Numbers over several seeds: mean and standard deviation, and paired differences with their standard error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from wsod_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class SeedSummary:
    """A number over several runs.

    Attributes:
      mean: over the runs.
      std: sample standard deviation (n - 1); NaN for one run.
      count: runs.
    """

    mean: float
    std: float
    count: int

    @property
    def standard_error(self) -> float:
        """The standard error of the mean; NaN for one run."""
        return self.std / math.sqrt(self.count)

    def as_percent(self) -> str:
        """Return mean and standard deviation like "50.1 ± 0.4", or "50.1" for one run."""
        spread = "" if math.isnan(self.std) else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{spread}"

    def as_difference(self) -> str:
        """Return mean and standard error like "+5.1 ± 0.4", or "+5.1" for one run."""
        spread = "" if math.isnan(self.std) else f" ± {100 * self.standard_error:.1f}"
        return f"{100 * self.mean:+.1f}{spread}"


def summarize_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, SeedSummary]:
    """Return mean and standard deviation of every number that all runs have.

    Args:
      runs: one mapping name -> value per seed, such as the `summary` of their reports.
    Raises:
      DataError: there is no run, or a shared value is not a number.
    """
    if not runs:
        raise DataError("there are no runs to summarize")
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    summaries = {}
    for name in shared:
        try:
            values = np.array([float(run[name]) for run in runs])
        except (TypeError, ValueError):
            raise DataError(
                f"{name!r} is {[run[name] for run in runs]}; numbers are needed"
            ) from None
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        summaries[name] = SeedSummary(float(values.mean()), std, len(values))
    return summaries


def paired_differences(
    first: Mapping[int, Mapping[str, float]],
    second: Mapping[int, Mapping[str, float]],
    names: Sequence[str],
) -> dict[str, SeedSummary]:
    """Return what one method has more than another with the same seeds, name -> over the seeds that both have.

    What a seed does to both, such as its pretrained weights, drops out.

    Args:
      first: seed -> numbers, of the method that is subtracted.
      second: likewise, of the other one.
      names: which numbers; those that a run lacks, or has as `None`, are left out.
    """
    seeds = sorted(first.keys() & second.keys())
    found = {}
    for name in names:
        pairs = [(first[seed].get(name), second[seed].get(name)) for seed in seeds]
        if pairs and all(None not in pair for pair in pairs):
            runs = [{name: high - low} for low, high in pairs]
            found |= summarize_seeds(runs)
    return found
