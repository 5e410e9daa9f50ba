"""Object Energy of proposal maps and proposals: against the size of the objects, and over training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.analysis.opened_run import OpenedRun
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.object_energy import EnergyMetrics, object_energy
from wsod_jax.evaluation.metrics.tables import GroundTruth, checked_sizes
from wsod_jax.ops.boxes import box_coverage, union_area
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.predictor import Predictor, bar, check_classes

DEGREE = 3  # of the published fit


@dataclasses.dataclass(frozen=True)
class EnergyBySize:
    """How Object Energy depends on the size of the objects.

    Attributes:
      ratios: [n] float64 in [0, 1], share of the image that its objects cover together.
      energies: [n] float64 in [0, 1], NaN where the image is left out.
      coefficients: [4] float64 of the fitted cubic in ascending powers, so that the curve is
        `np.polynomial.polynomial.polyval(ratio, coefficients)`. NaN if there is no image to fit.
    """

    ratios: np.ndarray
    energies: np.ndarray
    coefficients: np.ndarray


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
        """Return what the charts show as plain numbers for JSON; undefined values are `None`."""
        last = dict(zip(image_ids, map(_number, self.energies[-1]), strict=True))
        return {
            "name": self.name,
            "steps": list(self.steps),
            "mean": [_number(mean) for mean in self.means],
            "cubic": [_number(value) for value in self.by_size.coefficients],
            "images": last,
        }


def object_area_ratios(truth: GroundTruth, image_sizes: np.ndarray) -> np.ndarray:
    """Return per image the share of its area that its objects of all classes cover together.

    Args:
      truth: objects; difficult ones count.
      image_sizes: [n, 2] (height, width).
    Returns:
      [n] float64 in [0, 1]; 0 for an image without objects.
    Raises:
      DataError: sizes that do not fit the set.
    """
    sizes = checked_sizes(image_sizes, truth.num_images)
    areas = [
        union_area(truth.boxes[rows], *sizes[i]) for i, rows in enumerate(truth.rows_by_image())
    ]
    return np.array(areas, np.float64) / sizes.prod(axis=1)


def energy_by_size(
    energies: np.ndarray, truth: GroundTruth, image_sizes: np.ndarray
) -> EnergyBySize:
    """Fit a cubic polynomial to Object Energy over the share of the image that objects cover.

    Least squares over the images that have an energy; with fewer than four different ratios, a polynomial of as high a
    degree as they determine.

    Args:
      energies: [n] as `proposal_energies` or one `object_energy` per image; NaN is left out.
      truth: objects of these images; difficult ones count.
      image_sizes: [n, 2] (height, width).
    Returns:
      `EnergyBySize`.
    Raises:
      DataError: arrays of another set.
    Source: Zhu et al. 2017 (SPN), figure 6 (a).
    """
    energies = np.asarray(energies, np.float64)
    if energies.shape != (truth.num_images,):
        raise DataError(
            f"energies have shape {energies.shape}, ground truth {truth.num_images} images; needed: one per image"
        )
    ratios = object_area_ratios(truth, image_sizes)
    real = ~np.isnan(energies)
    degree = min(DEGREE, len(np.unique(ratios[real])) - 1)
    coefficients = np.full(DEGREE + 1, np.nan)
    if degree >= 0:
        powers = np.vander(ratios[real], degree + 1, increasing=True)
        fit = np.linalg.lstsq(powers, energies[real], rcond=None)[0]
        coefficients = np.pad(fit, (0, DEGREE - degree))
    return EnergyBySize(ratios=ratios, energies=energies, coefficients=coefficients)


def run_energies(
    run: OpenedRun, name: str, split: AnnotatedImages, steps: Sequence[int]
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


def boxes_energy_map(
    boxes: np.ndarray, scores: np.ndarray | None, height: int, width: int
) -> np.ndarray:
    """Return the energy map of scored proposals: per pixel the sum of the scores of the boxes that cover it.

    Args:
      boxes: [n, 4] `xyxy` pixels of the original image; parts outside do not count.
      scores: [n] >= 0, finite; `None` for proposals without scores, which count 1 each.
      height, width: of the image.
    Returns:
      [height, width] float32 >= 0, exactly 0 where no box has a positive score; a box covers a pixel if it contains
      the pixel's center.
    Raises:
      DataError: a score is negative or not finite, or there is not one per box.
    Cost: O(n + height * width).
    Source: Zhu et al. 2017 (SPN), section 4.1.
    """
    boxes = np.reshape(boxes, (-1, 4))
    scores = np.ones(len(boxes)) if scores is None else np.asarray(scores, np.float64)
    if scores.shape != (len(boxes),) or not np.isfinite(scores).all() or (scores < 0).any():
        raise DataError(
            f"scores of shape {scores.shape}, lowest {scores.min(initial=np.inf)}, for {len(boxes)} boxes; needed: one "
            "per box, finite, none below 0. Give `None` to count every box as 1"
        )
    energy = box_coverage(boxes, scores, height=height, width=width)
    reached = box_coverage(boxes, scores > 0, height=height, width=width) > 0.5
    return np.where(
        reached, np.maximum(energy, 0), np.float32(0)
    )  # summed-area differences leave rounding residue


def proposal_energies(
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None,
    truth: GroundTruth,
    image_sizes: np.ndarray,
) -> np.ndarray:
    """Return the Object Energy of every image's proposals.

    Args:
      boxes: per image [k, 4] `xyxy` pixels of the original image, in the order of the set.
      scores: per image [k] >= 0; `None` for proposals without scores.
      truth: objects of these images; difficult ones count.
      image_sizes: [n, 2] (height, width).
    Returns:
      [n] float64 for `EnergyMetrics`; NaN for an image without objects or without energy.
    Raises:
      DataError: lists of another length than the set, or what `boxes_energy_map` refuses.
    """
    sizes = checked_sizes(image_sizes, truth.num_images)
    for name, values in (("boxes", boxes), ("scores", scores)):
        if values is not None and len(values) != truth.num_images:
            raise DataError(
                f"{name} of {len(values)} images, ground truth of {truth.num_images}; needed: one array per "
                "image, in the order of the set"
            )
    energies = np.full(truth.num_images, np.nan)
    for image, rows in enumerate(truth.rows_by_image()):
        of_image = None if scores is None else scores[image]
        energy_map = boxes_energy_map(boxes[image], of_image, *sizes[image].tolist())
        energies[image] = object_energy(energy_map, truth.boxes[rows])
    return energies


def write_energy(
    folder: Path,
    split: AnnotatedImages,
    runs: Sequence[EnergyCurve],
    proposals: Sequence[EnergyCurve],
) -> None:
    """Write energy_by_size.png, where there are runs energy_over_training.png, and their numbers as energy.json.

    The charts also show a uniform map, whose energy in an image is the share that objects cover.

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
