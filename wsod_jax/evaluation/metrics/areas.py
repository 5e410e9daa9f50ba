"""How much of an image its objects cover, overlaps counted once."""

from __future__ import annotations

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.tables import TruthTable


def checked_sizes(image_sizes: np.ndarray, num_images: int) -> np.ndarray:
    """Return image sizes as [n, 2] int64 (height, width), raising `DataError` where they are none."""
    sizes = np.asarray(image_sizes, np.int64)
    if sizes.size == 0:
        sizes = sizes.reshape(-1, 2)
    if sizes.shape != (num_images, 2) or (sizes < 1).any():
        raise DataError(
            f"image sizes of shape {sizes.shape}, smallest side {sizes.min(initial=1)}; needed: "
            f"({num_images}, 2), (height, width) of every image of the set, in pixels"
        )
    return sizes


def union_area(boxes: np.ndarray, height: float, width: float) -> float:
    """Return the area that boxes cover together inside an image.

    Args:
      boxes: [n, 4] `xyxy` pixels, continuous edges; parts outside the image do not count.
      height, width: of the image.
    Returns:
      float in [0, height * width], exact for any edges, not only whole pixels.
    Cost: O(n^3), for the objects of an image.
    """
    boxes = np.clip(np.reshape(boxes, (-1, 4)).astype(np.float64), 0, [width, height] * 2)
    x, y = np.unique(boxes[:, 0::2]), np.unique(boxes[:, 1::2])  # edges cut the image into a grid
    covered = np.zeros((max(len(y) - 1, 0), max(len(x) - 1, 0)), bool)
    for x1, y1, x2, y2 in boxes:
        rows = slice(*np.searchsorted(y, (y1, y2)))
        covered[rows, slice(*np.searchsorted(x, (x1, x2)))] = True
    return float(np.diff(y) @ covered @ np.diff(x))


def object_area_ratios(truth: TruthTable, image_sizes: np.ndarray) -> np.ndarray:
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
    areas = [union_area(truth.boxes[rows], *sizes[i]) for i, rows in enumerate(image_rows(truth))]
    return np.array(areas, np.float64) / sizes.prod(axis=1)


def class_area_ratios(truth: TruthTable, image_sizes: np.ndarray) -> np.ndarray:
    """Return per image and class the share of the image that the objects of the class cover together.

    Args:
      truth: objects; difficult ones count.
      image_sizes: [n, 2] (height, width).
    Returns:
      [n, c] float64 in [0, 1]; 0 where the image has no object of the class.
    Raises:
      DataError: sizes that do not fit the set.
    """
    sizes = checked_sizes(image_sizes, truth.num_images)
    ratios = np.zeros((truth.num_images, truth.num_classes))
    for image, rows in enumerate(image_rows(truth)):
        for c in np.unique(truth.classes[rows]):
            of_class = truth.boxes[rows[truth.classes[rows] == c]]
            ratios[image, c] = union_area(of_class, *sizes[image]) / sizes[image].prod()
    return ratios


def image_rows(truth: TruthTable) -> list[np.ndarray]:
    """Return per image the rows of its objects, in table order."""
    order = np.argsort(truth.image_index, kind="stable")
    first = np.searchsorted(truth.image_index[order], np.arange(1, truth.num_images))
    return np.split(order, first) if truth.num_images else []
