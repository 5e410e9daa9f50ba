"""Planned micro-batch -> arrays: decode, place, add proposals and boxes, pad. A pure function of the plan.

The assembler handles images and labels. Parts add further fields to a row: `ProposalRows`, and `TargetRows`, which
needs a `BoxSet`. Nothing else fills `Batch.targets`.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Protocol

import jax
import numpy as np

from wsod_jax.data.input.loading import Loading
from wsod_jax.data.input.plan import FILLER, Jitter, PlannedBatch
from wsod_jax.data.input.proposal_rows import ProposalRules, clean_proposals, place_proposals
from wsod_jax.data.input.transforms import Canvases, View, place_boxes, place_image, view_factors
from wsod_jax.data.proposals.proposal_set import ProposalSet, check_proposals
from wsod_jax.data.records import BoxSet, ImageSet
from wsod_jax.errors import DataError
from wsod_jax.ops.boxes import box_area
from wsod_jax.types import Batch, Photometric, Targets, Views

logger = logging.getLogger(__name__)

COUNTS = (
    "images",  # rows with an image
    "shrunk",  # of them, smaller than the scale, to fit the canvas
    "bad_images",  # unreadable, masked
    "without_proposals",  # no usable proposal; masked in training
    "proposals",  # rows left after merging, inside the view
    "merged",  # proposals merged into another one
    "clipped",  # proposals that extended outside their image
    "dropped",  # proposals that are too small, or without area inside their image
    "capped",  # proposals beyond max_proposals
    "hidden_proposals",  # proposals outside the view
    "targets",  # boxes to learn from inside the view, ignored ones included
    "hidden_targets",  # boxes to learn from outside the view
)


class RowPart(Protocol):
    """Adds fields to the row of an image."""

    def empty(self) -> dict[str, Any]:
        """Return the fields of a masked row, by name in `Batch`, without the leading axis."""

    def fields(self, index: int, view: View, counts: Counter) -> tuple[dict[str, Any], bool]:
        """Return the fields of an image's row, and whether the image can be used.

        Args:
          index: of the image in its set.
          view: of the image.
          counts: incremented, by the names in `COUNTS`.
        """


class ProposalRows:
    """The proposals of every row.

    Args:
      proposals: of all images.
      images: the images.
      rules: which proposals are used.
      mask_empty: mask images without a usable proposal, as in training.

    Raises:
      DataError: if an image has no entry in the proposals, or one for another image size.
    """

    def __init__(
        self, proposals: ProposalSet, images: ImageSet, rules: ProposalRules, *, mask_empty: bool
    ):
        check_proposals(proposals, images)
        self._proposals, self._images, self._rules = proposals, images, rules
        self._mask_empty = mask_empty

    def empty(self) -> dict[str, Any]:
        """Return masked proposals."""
        count = self._rules.max_proposals
        has_scores = self._proposals.scores is not None
        return dict(
            proposals=np.zeros((count, 4), np.float32),
            proposal_mask=np.zeros(count, bool),
            representative=np.arange(count, dtype=np.int32),
            proposal_scores=np.zeros(count, np.float32) if has_scores else None,
        )

    def fields(self, index: int, view: View, counts: Counter) -> tuple[dict[str, Any], bool]:
        """Return an image's proposals on a view, and whether it can be used: has any, or needs none."""
        record = self._images.records[index]
        image_size = (record.height, record.width)
        boxes = self._proposals.get(record.image_id)
        scores = self._proposals.get_scores(record.image_id)
        clean = clean_proposals(boxes, scores, image_size, self._rules)
        placed = place_proposals(clean, image_size, view, self._rules)
        kept = int(placed.mask.sum())
        counts["without_proposals"] += kept == 0
        counts["proposals"] += kept
        counts["merged"] += len(clean.boxes) - placed.hidden - kept
        counts["hidden_proposals"] += placed.hidden
        counts["clipped"] += clean.clipped
        counts["dropped"] += clean.dropped
        counts["capped"] += clean.capped
        fields = dict(
            proposals=placed.boxes,
            proposal_mask=placed.mask,
            representative=placed.representative,
            proposal_scores=placed.scores,
        )
        return fields, kept > 0 or not self._mask_empty


class TargetRows:
    """The boxes to learn from, padded to `max_targets` of the set.

    Args:
      box_set: the images and their boxes.
    """

    def __init__(self, box_set: BoxSet):
        self._box_set = box_set
        self._max_targets = box_set.max_targets

    def empty(self) -> dict[str, Any]:
        """Return masked targets."""
        count = self._max_targets
        targets = Targets(
            boxes=np.zeros((count, 4), np.float32),
            classes=np.zeros(count, np.int32),
            weights=np.zeros(count, np.float32),
            ignore=np.zeros(count, bool),
            mask=np.zeros(count, bool),
        )
        return {"targets": targets}

    def fields(self, index: int, view: View, counts: Counter) -> tuple[dict[str, Any], bool]:
        """Return an image's boxes on a view; an image without any can be used, as background."""
        record, annotated = self._box_set.images.records[index], self._box_set.boxes[index]
        boxes = place_boxes(annotated.boxes, (record.height, record.width), view)
        shown = box_area(boxes) > 0
        counts["targets"] += int(shown.sum())
        counts["hidden_targets"] += int((~shown).sum())
        targets, count = self.empty()["targets"], len(annotated)
        targets.boxes[:count] = boxes
        targets.classes[:count] = annotated.classes
        targets.weights[:count] = 1.0 if annotated.weights is None else annotated.weights
        targets.ignore[:count] = annotated.ignore
        targets.mask[:count] = shown
        return {"targets": targets}, True


class Assembler:
    """Makes the arrays of planned micro-batches. Safe to call from several threads.

    Args:
      images: the images.
      canvases: the static image shapes.
      parts: add fields to rows, in addition to the image and its labels.
      loading: handling of unreadable images, and the cache that replaces decoding.
      keep_decoded: number of decoded images kept for their next view.
    """

    def __init__(
        self,
        images: ImageSet,
        canvases: Canvases,
        parts: Sequence[RowPart],
        loading: Loading,
        *,
        keep_decoded: int = 0,
    ):
        self._images = images
        self._canvases = canvases
        self._parts = tuple(parts)
        self._loading = loading
        self._decoded = _KeepRecent(self._decode, keep_decoded)
        self._named: set[int] = set()
        self._naming = Lock()

    def __call__(self, planned: PlannedBatch) -> tuple[Batch, np.ndarray]:
        """Return the micro-batch, and its counts [len(COUNTS)] int64."""
        counts = Counter()
        rows = [self._row(number, planned, counts) for number in range(len(planned.rows))]
        batch = jax.tree.map(_stacked, *rows)
        return batch, np.array([counts[name] for name in COUNTS], np.int64)

    def _row(self, number: int, planned: PlannedBatch, counts: Counter) -> Batch:
        """Return row `number` of a micro-batch: a `Batch` whose arrays lack the leading axis."""
        index, flipped = planned.rows[number], planned.flipped[number]
        row = filler = self._filler(index, planned)
        if index == FILLER:
            return filler
        counts["images"] += 1
        record = self._images.records[index]
        image_size = (record.height, record.width)
        crop = planned.crops and planned.crops[number]
        share = planned.shares and planned.shares[number]
        view = self._canvases.view(*image_size, planned.scale, flipped, crop, share)
        row_counts, usable = Counter(shrunk=view.shrunk), True
        for part in self._parts:
            fields, part_usable = part.fields(index, view, row_counts)
            row, usable = row.replace(**fields), usable and part_usable
        factors = planned.factors and planned.factors[number]
        row = row.replace(
            image_size=np.array(view.size, np.int32),
            image_mask=np.array(usable),
            labels=np.array(record.labels, np.int32),
            views=Views(
                scale=np.array(view_factors(image_size, view), np.float32),
                offset=np.array(view.offset[::-1], np.int32),
                flipped=np.array(flipped),
                original_size=np.array(image_size, np.int32),
                photometric=_photometric(factors, planned.jitter),
            ),
        )
        cache = self._loading.cache
        if cache is None or not cache.has(index, view, row):
            image = self._pixels(index)
            if image is None:
                counts["bad_images"] += 1
                return filler
            row = row.replace(image=place_image(image, view))
        counts.update(row_counts)
        return row

    def _filler(self, index: int, planned: PlannedBatch) -> Batch:
        """Return a masked row: one black pixel, no proposals and no targets."""
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
                photometric=_photometric(planned.factors and (1.0, 1.0), planned.jitter),
            ),
            labels=np.zeros(len(self._images.class_names), np.int32),
        )
        for part in self._parts:
            row = row.replace(**part.empty())
        return row

    def _pixels(self, index: int) -> np.ndarray | None:
        """Return the decoded image, or `None` for an unreadable one that is skipped."""
        try:
            return self._decoded(index)
        except DataError as error:
            if self._loading.on_bad_image == "error":
                raise
            with self._naming:
                if index not in self._named:
                    self._named.add(index)
                    logger.warning("skipped: %s", error)
            return None

    def _decode(self, index: int) -> np.ndarray:
        return self._images.records[index].load()


def _photometric(factors: tuple[float, float] | None, jitter: Jitter) -> Photometric | None:
    return None if factors is None else Photometric(np.array(factors, np.float32), jitter)


def _stacked(*leaves: np.ndarray) -> np.ndarray:
    return np.stack(leaves) if len(leaves) > 1 else leaves[0][None]


class _KeepRecent:
    """A function of one index with a cache of recent results; threads that need the same one compute it once."""

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
