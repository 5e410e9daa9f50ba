"""Object Energy: which share of what a method spotlights in an image lies on objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.ops.boxes import box_coverage


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


def object_energy(energy_map: np.ndarray, boxes: np.ndarray) -> float:
    """Return the share of an energy map that lies inside the boxes of objects.

    Energy = (sum of E over pixels in the union of the boxes) / (sum of E over all pixels). A pixel is in a box if its
    center is: x1 <= x + 1/2 < x2, and likewise in y. Pixels in several boxes count once.

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
    covered = box_coverage(
        boxes, np.ones(len(boxes)), height=energy_map.shape[0], width=energy_map.shape[1]
    )
    return min(float(energy_map[covered > 0].sum() / total), 1.0)
