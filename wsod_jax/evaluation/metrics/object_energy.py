"""Object Energy: which share of what a method spotlights in an image lies on objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.areas import checked_sizes, image_rows, object_area_ratios
from wsod_jax.evaluation.metrics.tables import TruthTable
from wsod_jax.viz.objectness import objectness_map

DEGREE = 3  # of the published fit


@dataclass(frozen=True)
class EnergyMetrics:
    """Object Energy of an image set.

    Attributes:
      energies: [n] float64 in [0, 1]; NaN for an image without objects or without energy.
    """

    energies: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the images that have one; NaN if none has."""
        real = self.energies[~np.isnan(self.energies)]
        return float(real.mean()) if real.size else float("nan")

    @property
    def num_images(self) -> int:
        """Images in the mean."""
        return int((~np.isnan(self.energies)).sum())

    @property
    def num_left_out(self) -> int:
        """Images that the mean leaves out."""
        return len(self.energies) - self.num_images


@dataclass(frozen=True)
class EnergyBySize:
    """How Object Energy depends on the size of the objects.

    Attributes:
      ratios: [n] float64 in [0, 1], share of the image that its objects cover together.
      energies: [n] float64 in [0, 1], NaN where the image is left out.
      coefficients: [4] float64 of the fitted cubic in ascending powers, so that the curve is
        `np.polynomial.polynomial.polyval(ratio, coefficients)`. NaN if there is no image to fit.
      degree: of the fit: 3, or one less than the number of different ratios if that is lower; -1 without an image.
    """

    ratios: np.ndarray
    energies: np.ndarray
    coefficients: np.ndarray
    degree: int


def object_energy(energy_map: np.ndarray, boxes: np.ndarray) -> float:
    """Return the share of an energy map that lies inside the boxes of objects.

    Energy = (sum of E over pixels in the union of the boxes) / (sum of E over all pixels). A pixel is in a box if its
    centre is: x1 <= x + 1/2 < x2, and likewise in y. Pixels in several boxes count once.

    Args:
      energy_map: [H, W] >= 0, finite, at the size of the original image; any scale.
      boxes: [n, 4] `xyxy` pixels, the objects of all classes; parts outside the image do not count.
    Returns:
      float in [0, 1]; NaN for a map of zeros and for an image without objects, which have no such share.
    Raises:
      DataError: the map is not [H, W], has negative values, or is not finite.
    Source: Zhu et al. 2017 (SPN), section 4.1.
    """
    energy_map, boxes = np.asarray(energy_map, np.float64), np.reshape(boxes, (-1, 4))
    if energy_map.ndim != 2 or not np.isfinite(energy_map).all() or (energy_map < 0).any():
        raise DataError(
            f"energy map has shape {energy_map.shape}, values {energy_map.min(initial=0)} to "
            f"{energy_map.max(initial=0)}; needed: [H, W], finite, none below 0"
        )
    total = energy_map.sum()
    if total == 0 or len(boxes) == 0:
        return float("nan")
    covered = objectness_map(
        boxes, np.ones(len(boxes)), height=energy_map.shape[0], width=energy_map.shape[1]
    )
    return min(float(energy_map[covered > 0].sum() / total), 1.0)


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
      the pixel's centre.
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
    energy = objectness_map(boxes, scores, height=height, width=width)
    reached = objectness_map(boxes, scores > 0, height=height, width=width) > 0.5
    return np.where(
        reached, np.maximum(energy, 0), np.float32(0)
    )  # sums of differences leave crumbs


def proposal_energies(
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None,
    truth: TruthTable,
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
    for image, rows in enumerate(image_rows(truth)):
        of_image = None if scores is None else scores[image]
        energy_map = boxes_energy_map(boxes[image], of_image, *sizes[image].tolist())
        energies[image] = object_energy(energy_map, truth.boxes[rows])
    return energies


def energy_by_size(
    energies: np.ndarray, truth: TruthTable, image_sizes: np.ndarray
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
    return EnergyBySize(ratios=ratios, energies=energies, coefficients=coefficients, degree=degree)
