"""From merged response maps to what is measured of a whole set: points, boxes and proposal maps, in original pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import MergedImage, ViewMaps
from wsod_jax.evaluation.metrics.tables import DetectionTable
from wsod_jax.evaluation.response import BoxMode, Resizing, map_boxes, resize_map, response_point


@dataclass(frozen=True)
class MapReading:
    """How maps are read.

    Attributes:
      upsampling: from cells to the pixels of the image, see `response.resize_map`.
      threshold: a pixel is foreground where R_c >= threshold · mean(R_c).
      connectivity: of the pixels of one component, 4 or 8.
    """

    upsampling: Resizing = "align_corners"
    threshold: float = 1.0
    connectivity: int = 4

    def response(self, maps: Sequence[ViewMaps], size: tuple[int, int], classes) -> np.ndarray:
        """Return the responses [H, W, k] to some classes, the mean over views."""
        resized = [resize_map(v.responses[..., classes], *size, self.upsampling) for v in maps]
        return np.mean(resized, axis=0)

    def objectness(self, maps: Sequence[ViewMaps], size: tuple[int, int]) -> np.ndarray:
        """Return the proposal map [H, W] at the size of the image, the mean over views."""
        resized = [resize_map(v.proposal_map, *size, self.upsampling) for v in maps]
        return np.mean(resized, axis=0)

    def boxes(self, response: np.ndarray, mode: BoxMode) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes [n, 4] and scores [n] of one class's response [H, W]."""
        return map_boxes(response, mode, factor=self.threshold, connectivity=self.connectivity)


@dataclass(frozen=True)
class Located:
    """What maps say of an image set. Only the classes that were `examined` have points and boxes.

    Attributes:
      image_scores: [n, c] float32; NaN for images that were not predicted.
      examined: [n, c] bool, the classes asked for, those predicted and the best-scored ones.
      claimed: [n, c] bool, the classes predicted to be present.
      points: [n, c, 2] float64 (x, y) of the strongest response; NaN where not examined.
      tightest: one box per image and examined class, around all of its foreground.
      components: one box per connected component of it; with several views, of every view.
      maps: per image, its views' maps; empty for images that were not predicted. Responses are kept of the first
        images only, as many as were asked for.
      predicted: [n] bool, False for images that never came, such as files that cannot be read.
      too_small: [n] bool, images smaller than one cell of the map: all that speaks of classes there is the bias, so
        none is claimed.
      counts: what the input met on the way, by name, see `data.assembling.COUNTS`.
    """

    image_scores: np.ndarray
    examined: np.ndarray
    claimed: np.ndarray
    points: np.ndarray
    tightest: DetectionTable
    components: DetectionTable
    maps: tuple[tuple[ViewMaps, ...], ...]
    predicted: np.ndarray
    too_small: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)

    def of_claimed(self, boxes: DetectionTable) -> DetectionTable:
        """Return the boxes of classes that were predicted to be present."""
        return boxes.take(self.claimed[boxes.image_index, boxes.classes])


class _Rows:
    """Rows of a `DetectionTable` in the making."""

    def __init__(self):
        self.images, self.classes, self.scores, self.boxes = [], [], [], []

    def add(self, image: int, class_index: int, boxes: np.ndarray, scores: np.ndarray) -> None:
        """Append the boxes [n, 4] of one class in one image, with their scores [n]."""
        self.images.append(np.full(len(boxes), image, np.int32))
        self.classes.append(np.full(len(boxes), class_index, np.int32))
        self.scores.append(scores)
        self.boxes.append(boxes)

    def table(self, num_images: int, num_classes: int) -> DetectionTable:
        """Return the rows, images ascending, then classes, in the order they came."""
        images = np.concatenate([np.zeros(0, np.int32), *self.images])
        classes = np.concatenate([np.zeros(0, np.int32), *self.classes])
        order = np.lexsort((classes, images))
        return DetectionTable(
            images[order],
            classes[order],
            np.concatenate([np.zeros(0, np.float32), *self.scores])[order],
            np.concatenate([np.zeros((0, 4), np.float32), *self.boxes])[order],
            num_images,
            num_classes,
        )


def locate(
    merged: Iterable[MergedImage],
    sizes: np.ndarray,
    *,
    num_classes: int,
    wanted: np.ndarray | None,
    claims: Callable[[np.ndarray], np.ndarray],
    reading: MapReading,
    num_best: int = 0,
    keep_responses: int = 0,
    separate_views: bool = False,
) -> Located:
    """Read points and boxes off the maps of a whole set.

    Args:
      merged: images with maps, in any order, each at most once.
      sizes: [n, 2] int, (height, width) of every image in original pixels.
      num_classes: c.
      wanted: [n, c] bool, classes to examine beside those predicted to be present; `None` for no others.
      claims: from an image's class scores [c] to the classes it is predicted to hold, [c] bool.
      reading: how maps are read.
      num_best: so many of an image's best-scored classes are examined in any case.
      keep_responses: keep the response maps of so many images, the first of the set, to draw them; proposal maps
        are kept of all.
      separate_views: `components` come from every view by itself instead of the mean over views.
    Returns:
      `Located`.
    Raises:
      DataError: class scores, or maps that are read, are not finite.
    Cost: interpolates one map per view, image and examined class.
    """
    shape = (len(sizes), num_classes)
    scores = np.full(shape, np.nan, np.float32)
    examined, claimed = np.zeros(shape, bool), np.zeros(shape, bool)
    predicted, too_small = np.zeros(len(sizes), bool), np.zeros(len(sizes), bool)
    points = np.full((*shape, 2), np.nan)
    tightest, components = _Rows(), _Rows()
    maps: list[tuple[ViewMaps, ...]] = [()] * len(sizes)
    for image in merged:
        i = image.image_index
        size = tuple(int(side) for side in sizes[i])
        if not np.isfinite(image.image_scores).all():
            raise DataError(
                "class scores of an image are not finite; the checkpoint may have diverged: look at its loss, or "
                "evaluate an earlier step"
            )
        scores[i], predicted[i] = image.image_scores, True
        maps[i] = image.maps if i < keep_responses else tuple(map(_without_responses, image.maps))
        too_small[i] = all(0 in view.responses.shape[:2] for view in image.maps)
        claimed[i] = claims(image.image_scores) & ~too_small[i]
        examined[i] = claimed[i] if wanted is None else claimed[i] | wanted[i]
        examined[i, np.argsort(-scores[i], kind="stable")[:num_best]] = True
        classes = np.flatnonzero(examined[i])
        if not len(classes):
            continue
        views = [(view,) for view in image.maps] if separate_views else [image.maps]
        parts = [reading.response(view, size, classes) for view in views]  # [H, W, k] each
        for k, c in enumerate(classes):
            each = [part[..., k] for part in parts]
            mean = np.mean(each, axis=0)
            points[i, c] = response_point(mean)
            tightest.add(i, c, *reading.boxes(mean, "tightest"))
            for response in each:
                components.add(i, c, *reading.boxes(response, "components"))
    return Located(
        image_scores=scores,
        examined=examined,
        claimed=claimed,
        points=points,
        tightest=tightest.table(*shape),
        components=components.table(*shape),
        maps=tuple(maps),
        predicted=predicted,
        too_small=too_small,
    )


def _without_responses(view: ViewMaps) -> ViewMaps:
    return dataclasses.replace(view, responses=np.zeros((0, 0, 0), np.float32))


def claims_above(threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the rule of multi-label classifiers: a class is present where its score exceeds `threshold`."""
    return lambda scores: scores > threshold


def claims_best(scores: np.ndarray) -> np.ndarray:
    """Return the rule of single-label classifiers: the class scored highest, the lowest index on ties."""
    return np.arange(len(scores)) == np.argmax(scores)
