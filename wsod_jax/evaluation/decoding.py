"""How merged predictions become results: thresholds of one image, and those of a whole set."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.evaluation.maps import MapReading
from wsod_jax.ops.crf import CrfOptions
from wsod_jax.ops.views import ClassMaps, class_maps, label_map
from wsod_jax.types import Batch, FeatureMap, ImageResult

Merge = Literal["mean", "sum", "union"]
LABEL_CANVAS = 256  # sides of the canvases of label maps are multiples of this, in original pixels
CLASS_MAP_SIDE = 500  # longest side of class maps, whose canvases have sides of 256 or 512


@dataclass(frozen=True)
class Decoding:
    """How merged predictions become results.

    Attributes:
      merge: "mean" averages each row's scores and boxes over the views where the row is real (the released OICR code's
        test), "sum" adds the scores, "union" detects in every view and then among all detections, for methods whose
        rows are other regions in every view.
      top_k: candidates of a class before NMS.
      max_per_image: detections of an image over all classes, after NMS; `None` keeps all.
      score_thr: scores > this are kept.
      nms_thr: a box is removed by a better one of its class with IoU > this.
      mask_thr: a pixel belongs to an object from this probability on.
      semantic_thr: a pixel is background where no class's probability exceeds this.
      crf: refines the probabilities of classes at pixels; `None` leaves them.
      reading: how maps are read.
      with_candidates: results also tell the `top_k` best scores of every class before NMS.
    """

    merge: Merge = "mean"
    top_k: int = 100
    max_per_image: int | None = None
    score_thr: float = -np.inf
    nms_thr: float = 0.3
    mask_thr: float = 0.5
    semantic_thr: float = 0.5
    crf: CrfOptions | None = None
    reading: MapReading = MapReading()
    with_candidates: bool = False

    def num_slots(self, num_classes: int) -> int:
        """Return how many detections of an image there can be."""
        count = self.top_k * num_classes
        return count if self.max_per_image is None else min(count, self.max_per_image)


def decode_segmentation(
    labels: Sequence[tuple[FeatureMap, Batch]], first: Batch, decoding: Decoding, cuts_masks: bool
) -> tuple[jax.Array, ClassMaps | None]:
    """Return the label maps of a group of images, and its class maps as uint8 if masks are cut from them.

    Args:
      labels: probabilities of the views that have some, and their batches, the first one's with pixels.
      first: a batch of the group (NumPy).
      decoding: CRF and threshold.
      cuts_masks: whether masks are cut from class maps.
    """
    original = np.concatenate([first.views.original_size, [[1, 1]]])
    canvas = tuple((-(-original.max(axis=0) // LABEL_CANVAS) * LABEL_CANVAS).tolist())
    maps, views = zip(*labels, strict=True)
    found = None
    if cuts_masks or decoding.crf is not None:
        longest = original.max(axis=1, keepdims=True)
        smaller = np.ceil(original * np.minimum(1.0, CLASS_MAP_SIDE / longest)).max(axis=0)
        side = tuple((-(-smaller.astype(int) // LABEL_CANVAS) * LABEL_CANVAS).tolist())
        found = class_maps(maps, views, side, CLASS_MAP_SIDE, decoding.crf)
        if decoding.crf is not None:
            maps, views = zip(found.as_view(views[0]), strict=True)
    views = [view.replace(image=None, features=None, pooled=None) for view in views]
    semantic = label_map(maps, views, canvas, decoding.semantic_thr)
    if not cuts_masks:
        return semantic, None
    return semantic, found._replace(maps=jnp.round(255.0 * found.maps).astype(jnp.uint8))


def score_thresholds(results: Iterable[ImageResult], limit: int) -> np.ndarray | None:
    """Return per class the score that fewer than `limit` candidates of a set exceed, counted before NMS.

    Args:
      results: of the whole set, `with_candidates`.
      limit: candidates to collect per class, usually 40 times the number of images.

    Returns:
      [c] float32: the `limit`-th highest score of a class that has more than `limit`, else -inf; `None` without
      results. Detections must be higher, so ties with it fall. A box's fate depends on higher boxes only, so a
      threshold after NMS leaves the same detections as one before it.

    Source: released Fast R-CNN and OICR code, whose running heap ends at this value.
    """
    parts = [result.candidate_scores for result in results]
    if not parts:
        return None
    scores = np.concatenate(parts, axis=1)  # [c, n]
    thrs = np.full(len(scores), -np.inf, np.float32)
    for c, of_class in enumerate(scores):
        real = of_class[of_class > -np.inf]
        if len(real) > limit:
            thrs[c] = np.partition(real, len(real) - limit)[len(real) - limit]
    return thrs


class Selected:
    """Results as they count: above the score thresholds of their set, then the best of each image.

    Without a limit they are what they were. Iterated as often as needed; the thresholds are found the first time.
    """

    def __init__(
        self, results: Iterable[ImageResult], limit: int | None, max_per_image: int | None
    ):
        """Wrap results.

        Args:
          results: of the whole set, to be iterated several times; `with_candidates` if there is a limit.
          limit: candidates to keep per class, see `score_thresholds`; `None` keeps all.
          max_per_image: detections to keep of an image above the thresholds.
        """
        self._results, self._limit, self._max_per_image = results, limit, max_per_image

    def __iter__(self) -> Iterator[ImageResult]:
        thresholds = None if self._limit is None else self._thresholds
        for result in self._results:
            if thresholds is None or result.candidate_scores is None:
                yield result
            else:
                yield result.above(thresholds, self._max_per_image)

    @functools.cached_property
    def _thresholds(self) -> np.ndarray | None:
        known = (result for result in self._results if result.candidate_scores is not None)
        return score_thresholds(known, self._limit)
