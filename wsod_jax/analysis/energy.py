"""Object Energy of proposal maps and proposals: against the size of the objects, and over training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.analysis.proposal_maps import MapRun
from wsod_jax.evaluation.metrics.object_energy import (
    EnergyBySize,
    EnergyMetrics,
    energy_by_size,
    object_energy,
)
from wsod_jax.predictor import Predictor, bar, check_classes
from wsod_jax.scoring import AnnotatedImages


@dataclasses.dataclass(frozen=True)
class EnergyCurve:
    """Object Energy of one method in the images of a set.

    Attributes:
      name: of the run or the proposals file.
      steps: of the checkpoints, ascending; empty for proposals.
      energies: [s, n] float64 in [0, 1], a row per checkpoint, or one; NaN for images without objects.
      by_size: of the last row.
    """

    name: str
    steps: tuple[int, ...]
    energies: np.ndarray
    by_size: EnergyBySize

    @classmethod
    def of(
        cls, name: str, steps: Sequence[int], energies: Sequence[np.ndarray], split: AnnotatedImages
    ) -> EnergyCurve:
        """Fit the curve over sizes to the last of a method's energies."""
        fitted = energy_by_size(energies[-1], split.truth, split.sizes)
        return cls(name, tuple(steps), np.stack(energies), fitted)

    @property
    def means(self) -> np.ndarray:
        """[s] the mean over the images that have an energy."""
        return np.array([EnergyMetrics(row).mean for row in self.energies])

    def numbers(self, image_ids: Sequence[str]) -> dict:
        """Return what the charts show as plain numbers for JSON; what is not defined is `None`."""
        last = dict(zip(image_ids, map(_number, self.energies[-1]), strict=True))
        return {
            "name": self.name,
            "steps": list(self.steps),
            "mean": [_number(mean) for mean in self.means],
            "cubic": [_number(value) for value in self.by_size.coefficients],
            "images": last,
        }


def run_energies(
    run: MapRun, name: str, split: AnnotatedImages, steps: Sequence[int]
) -> EnergyCurve:
    """Measure checkpoints of a run.

    Args:
      run: of the classes of the split.
      name: of the curve.
      split: with annotated objects.
      steps: of the checkpoints, in any order.

    Raises:
      DataError: for other classes, or a step without checkpoint.
    """
    check_classes(split.images, run.predictor.class_names)
    steps = sorted(set(steps))
    energies = []
    for step in steps:
        energies.append(_energies(run.at(step), split))
        print(f"{name}, step {step}: Object Energy {100 * EnergyMetrics(energies[-1]).mean:.1f} %")
    return EnergyCurve.of(name, steps, energies, split)


def _energies(predictor: Predictor, split: AnnotatedImages) -> np.ndarray:
    """Return [n] the energy of every image's proposal map, without reading points and boxes off any other map."""
    energies = np.full(len(split.images), np.nan)
    for result in predictor.results(bar(predictor.views(split.images))):
        boxes = split.objects[result.image_index].boxes
        energies[result.image_index] = object_energy(result.maps.objectness(), boxes)
    return energies


def write_energy(
    folder: Path,
    split: AnnotatedImages,
    runs: Sequence[EnergyCurve],
    proposals: Sequence[EnergyCurve],
) -> None:
    """Write energy_by_size.png, where there are runs energy_over_training.png, and their numbers as energy.json.

    The charts also show the map that prefers no place: its energy in an image is the share that objects cover.

    Args:
      folder: to write into.
      split: what was measured.
      runs: a line each over training; the last checkpoint of each over sizes.
      proposals: methods that do not train, horizontal lines over training. At least one of these or one run.

    Source: Zhu et al. 2017 (SPN), figure 6.
    """
    curves = [*runs, *proposals]
    shares = curves[0].by_size.ratios
    uniform = float(shares[shares > 0].mean()) if (shares > 0).any() else float("nan")
    by_size = {
        curve.name + (f", step {curve.steps[-1]}" if curve.steps else ""): (
            curve.by_size.ratios,
            curve.by_size.energies,
            curve.by_size.coefficients,
        )
        for curve in curves
    }
    charts = {
        "energy_by_size": viz.plot_energy_by_size(by_size, title=split.images.name),
    }
    if runs:
        charts["energy_over_training"] = viz.plot_energy_over_training(
            {run.name: (np.array(run.steps), run.means) for run in runs},
            {curve.name: float(curve.means[-1]) for curve in proposals},
            uniform=uniform,
            title=split.images.name,
        )
    ids = split.images.image_ids
    numbers = {
        "images": split.images.name,
        "object_area": dict(zip(ids, map(float, shares), strict=True)),
        "uniform_map": _number(uniform),
        "runs": [run.numbers(ids) for run in runs],
        "proposals": [curve.numbers(ids) for curve in proposals],
    }
    written = [viz.save_image(folder / f"{name}.png", chart) for name, chart in charts.items()]
    written.append(folder / "energy.json")
    written[-1].write_text(json.dumps(numbers, indent=1, allow_nan=False), encoding="utf-8")
    print(f"Wrote {', '.join(map(str, written))}")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
