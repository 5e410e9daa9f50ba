"""Planned micro-batch -> arrays: decode, place, add proposals, pad. A pure function of the plan.

There is no argument for boxes: image sets hold labels per image only.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Literal

import jax
import numpy as np

from wsod_jax.data.plan import FILLER, PlannedBatch
from wsod_jax.data.proposals import ProposalSet, check_proposals
from wsod_jax.data.records import ImageSet
from wsod_jax.data.transforms import (
    Canvases,
    ProposalRules,
    View,
    clean_proposals,
    place_image,
    place_proposals,
    view_factors,
)
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.types import Batch, Views

logger = logging.getLogger(__name__)

COUNTS = (
    "images",  # rows with an image
    "shrunk",  # of them, smaller than the scale asks for
    "bad_images",  # unreadable, masked
    "without_proposals",  # no usable proposal; masked in training
    "proposals",  # rows left after merging
    "merged",  # proposals merged into another one
    "clipped",  # proposals that reached outside their image
    "dropped",  # proposals that are too small, or without area inside their image
    "capped",  # proposals beyond max_proposals
)
SkipPixels = Callable[[int, View], bool]


class Assembler:
    """Makes the arrays of planned micro-batches. Safe to call from several threads.

    Args:
      image_set: the images.
      proposals: their proposals, or `None` for methods without.
      canvases: the static image shapes.
      rules: which proposals are used; ignored without proposals.
      mask_empty: mask an image that has no usable proposal, as training does.
      on_bad_image: what to do about an image that cannot be read: "skip" masks its row, counts it, and
        logs its name once; "error" raises.
      skip_pixels: says for (image index, view) whether pixels are not needed (a cache has the features);
        the image is then not decoded and stays zero.
      keep_decoded: number of decoded images kept for their next view.

    Raises:
      DataError: if an image has no entry in the proposals, or one for another image size.
    """

    def __init__(
        self,
        image_set: ImageSet,
        proposals: ProposalSet | None,
        canvases: Canvases,
        rules: ProposalRules,
        *,
        mask_empty: bool,
        on_bad_image: Literal["skip", "error"] = "skip",
        skip_pixels: SkipPixels | None = None,
        keep_decoded: int = 0,
    ):
        if on_bad_image not in ("skip", "error"):
            raise ConfigError(f'on_bad_image={on_bad_image!r}; allowed are "skip" and "error".')
        if proposals is not None:
            check_proposals(proposals, image_set)
        self._image_set = image_set
        self._proposals = proposals
        self._canvases = canvases
        self._rules = rules
        self._mask_empty = mask_empty
        self._on_bad_image = on_bad_image
        self._skip_pixels = skip_pixels
        self._has_scores = proposals is not None and proposals.scores is not None
        self._decoded = _KeepRecent(self._decode, keep_decoded)
        self._named: set[int] = set()
        self._naming = Lock()

    def __call__(self, planned: PlannedBatch) -> tuple[Batch, np.ndarray]:
        """Return the micro-batch, and counts [len(COUNTS)] int64 of what was met."""
        counts = Counter()
        crops = planned.crops or [None] * len(planned.rows)
        rows = [
            self._row(index, flipped, crop, planned, counts)
            for index, flipped, crop in zip(planned.rows, planned.flipped, crops, strict=True)
        ]
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        return batch, np.array([counts[name] for name in COUNTS], np.int64)

    def _row(
        self,
        index: int,
        flipped: bool,
        crop: tuple[float, float] | None,
        planned: PlannedBatch,
        counts: Counter,
    ) -> Batch:
        """Return one image's share of the batch: a `Batch` whose arrays lack the leading axis."""
        row = self._filler(index, planned)
        if index == FILLER:
            return row
        counts["images"] += 1
        record = self._image_set.records[index]
        image_size = (record.height, record.width)
        view = self._canvases.view(*image_size, planned.scale, flipped, crop)
        if self._skip_pixels is None or not self._skip_pixels(index, view):
            image = self._pixels(index)
            if image is None:
                counts["bad_images"] += 1
                return row
            row = row.replace(image=place_image(image, view))
        counts["shrunk"] += view.shrunk
        row, has_boxes = self._with_proposals(row, index, view, counts)
        return row.replace(
            image_size=np.array(view.size, np.int32),
            image_mask=np.array(has_boxes or not self._mask_empty),
            labels=np.array(record.labels, np.int32),
            views=Views(
                scale=np.array(view_factors(image_size, view), np.float32),
                offset=np.array(view.offset[::-1], np.int32),
                flipped=np.array(flipped),
                original_size=np.array(image_size, np.int32),
            ),
        )

    def _filler(self, index: int, planned: PlannedBatch) -> Batch:
        """Return a masked row: one black pixel and no proposals."""
        canvas = self._canvases.shape(planned.scale, planned.portrait)
        row = Batch(
            image=np.zeros((*canvas, 3), np.uint8),
            image_size=np.ones(2, np.int32),
            image_mask=np.array(False),
            image_index=np.array(index, np.int32),
            views=Views(
                scale=np.ones(2, np.float32),
                offset=np.zeros(2, np.int32),
                flipped=np.array(False),
                original_size=np.ones(2, np.int32),
            ),
            labels=np.zeros(len(self._image_set.class_names), np.int32),
        )
        if self._proposals is None:
            return row
        count = self._rules.max_proposals
        return row.replace(
            proposals=np.zeros((count, 4), np.float32),
            proposal_mask=np.zeros(count, bool),
            representative=np.arange(count, dtype=np.int32),
            proposal_scores=np.zeros(count, np.float32) if self._has_scores else None,
        )

    def _with_proposals(
        self, row: Batch, index: int, view: View, counts: Counter
    ) -> tuple[Batch, bool]:
        """Return the row with an image's proposals, and whether it has any, or needs none."""
        if self._proposals is None:
            return row, True
        record = self._image_set.records[index]
        image_size = (record.height, record.width)
        boxes = self._proposals.get(record.image_id)
        scores = self._proposals.get_scores(record.image_id)
        clean = clean_proposals(boxes, scores, image_size, self._rules)
        placed = place_proposals(clean, image_size, view, self._rules)
        row = row.replace(
            proposals=placed.boxes,
            proposal_mask=placed.mask,
            representative=placed.representative,
            proposal_scores=placed.scores,
        )
        kept = int(placed.mask.sum())
        counts["without_proposals"] += kept == 0
        counts["proposals"] += kept
        counts["merged"] += len(clean.boxes) - kept
        counts["clipped"] += clean.clipped
        counts["dropped"] += clean.dropped
        counts["capped"] += clean.capped
        return row, kept > 0

    def _pixels(self, index: int) -> np.ndarray | None:
        """Return the decoded image, or `None` for one that cannot be read and is to be skipped."""
        try:
            return self._decoded(index)
        except DataError as error:
            if self._on_bad_image == "error":
                raise
            with self._naming:
                if index not in self._named:
                    self._named.add(index)
                    logger.warning("skipped: %s", error)
            return None

    def _decode(self, index: int) -> np.ndarray:
        return self._image_set.records[index].load()


class _KeepRecent:
    """A function of one index whose last few results are kept; threads that ask for one wait for it."""

    def __init__(self, function: Callable[[int], np.ndarray], keep: int):
        self._function, self._keep = function, keep
        self._entries: OrderedDict[int, tuple[Lock, list[np.ndarray]]] = OrderedDict()
        self._lock = Lock()

    def __call__(self, index: int) -> np.ndarray:
        if self._keep == 0:
            return self._function(index)
        with self._lock:
            lock, result = self._entries.setdefault(index, (Lock(), []))
            self._entries.move_to_end(index)
            while len(self._entries) > self._keep:
                self._entries.popitem(last=False)
        with lock:
            if not result:
                result.append(self._function(index))
            return result[0]
