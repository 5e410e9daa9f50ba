"""From a jitted predict step to candidate boxes: several views per image, and their merging.

A view is one (scale, flip) of an image. Views of an image reach the network in different batches and on
different canvases; their scores meet again on the host, in float32, in the pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.types import Batch, Predictions, ResponseMaps

Merge = Literal["mean", "sum", "union"]


@dataclass(frozen=True)
class ViewMaps:
    """One view's maps, valid cells only and turned back where the view was mirrored.

    Both are in units that do not depend on the number of cells, so that views of different sizes can be averaged and
    their boxes ranked together.

    Attributes:
      responses: [h, w, c] float32, h·w times R_c: its mean over cells is the class's logit without bias. h and w may
        be 0.
      proposal_map: [h', w'] float32, h'·w' times M: its mean is 1, and 1 everywhere if M is uniform.
      size_px: (height, width) of the view in network pixels.
      mirrored: the network saw the view mirrored left-right: its first column is the last one here.
    """

    responses: np.ndarray
    proposal_map: np.ndarray
    size_px: tuple[int, int]
    mirrored: bool = False


@dataclass(frozen=True)
class MergedImage:
    """One image's candidates, all views merged.

    Attributes:
      image_index: position in the image set.
      boxes: [r, 4] float32, pixels of the original image. `None` for methods without proposals, as the next two are.
      scores: [r, c] float32.
      mask: [r] bool.
      image_scores: [c] float32 mean of the views' image-level scores, where the method has them.
      maps: one per view, where the method has them; they are merged when they are read.
    """

    image_index: int
    boxes: np.ndarray | None
    scores: np.ndarray | None
    mask: np.ndarray | None
    image_scores: np.ndarray | None
    maps: tuple[ViewMaps, ...] = ()


def original_boxes(
    boxes: np.ndarray, *, scale: np.ndarray, flipped: bool, width_px: int
) -> np.ndarray:
    """Map a view's boxes back to the pixels of the original image.

    Args:
      boxes: [r, 4] `xyxy` network pixels.
      scale: [2] network pixels per original pixel, (x, y).
      flipped: the view is mirrored left-right.
      width_px: valid width of the view, the mirror's axis.
    Returns:
      [r, 4] float64.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).T
    if flipped:
        x1, x2 = width_px - x2, width_px - x1
    return np.stack([x1 / scale[0], y1 / scale[1], x2 / scale[0], y2 / scale[1]], axis=1)


@dataclass
class _Views:
    """The views of one image seen so far."""

    boxes: list[np.ndarray]
    scores: list[np.ndarray]
    masks: list[np.ndarray]
    image_scores: list[np.ndarray]
    maps: list[ViewMaps]
    count: int = 0

    def merge(self, image_index: int, how: Merge) -> MergedImage:
        """Return the image, with rows matched across views unless `how` is "union"."""
        image_scores = np.mean(self.image_scores, axis=0) if self.image_scores else None
        if not self.boxes:
            return MergedImage(image_index, None, None, None, image_scores, tuple(self.maps))
        if how == "union":
            boxes, scores = np.concatenate(self.boxes), np.concatenate(self.scores)
            mask = np.concatenate(self.masks)
        else:
            masks = np.stack(self.masks)  # [v, r]
            seen = np.maximum(masks.sum(axis=0), 1).astype(np.float32)[:, None]
            scores = np.sum(np.stack(self.scores) * masks[..., None], axis=0, dtype=np.float32)
            boxes = np.sum(np.stack(self.boxes) * masks[..., None], axis=0) / seen
            scores = scores / seen if how == "mean" else scores
            mask = masks.any(axis=0)
        scores = np.where(mask[:, None], scores, 0.0).astype(np.float32)
        return MergedImage(image_index, boxes.astype(np.float32), scores, mask, image_scores)


def _add_views(pending: dict[int, _Views], batch: Batch, output: Predictions) -> list[int]:
    """Put a batch's rows into `pending`; return the images it touched."""
    output = jax.tree.map(np.asarray, output)  # waits for the device
    touched = []
    for row in np.flatnonzero(np.asarray(batch.image_mask)):
        index = int(batch.image_index[row])
        views = pending.setdefault(index, _Views([], [], [], [], []))
        views.count += 1
        touched.append(index)
        if output.image_scores is not None:
            views.image_scores.append(output.image_scores[row].astype(np.float32))
        mirrored = bool(batch.views.flipped[row])
        if output.maps is not None:
            size_px = tuple(np.asarray(batch.image_size[row]).tolist())
            views.maps.append(_view_maps(output.maps, row, size_px, mirrored))
        if output.boxes is None:
            continue
        boxes, scores, mask = output.boxes[row], output.scores[row], output.mask[row]
        # rows of a method that does not keep them aligned are no proposals
        if batch.representative is not None and len(boxes) == batch.representative.shape[1]:
            source = np.asarray(batch.representative[row])
            shared = source != np.arange(len(source))
            scores, mask = scores[source], np.where(shared, mask[source], mask)
        views.boxes.append(
            original_boxes(
                boxes,
                scale=np.asarray(batch.views.scale[row]),
                flipped=mirrored,
                width_px=int(batch.image_size[row, 1]),
            )
        )
        views.scores.append(scores.astype(np.float32))
        views.masks.append(mask)
    return touched


def _view_maps(maps: ResponseMaps, row: int, size_px: tuple[int, int], mirrored: bool) -> ViewMaps:
    """Return the maps of one row of a batch."""
    step = -1 if mirrored else 1
    cut = [
        (size[row].prod() * values[row, : size[row, 0], : size[row, 1]][:, ::step]).astype(
            np.float32
        )
        for values, size in (
            (maps.responses, maps.size),
            (maps.proposal_map, maps.proposal_size),
        )
    ]
    return ViewMaps(*cut, size_px, mirrored)


def _overlapped(
    predict_step: Callable[[Batch], Predictions], batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Predictions]]:
    """Yield (batch, output), with the next batch already dispatched when an output is handed out."""
    previous = None
    for batch in batches:
        output = predict_step(batch)
        if previous is not None:
            yield previous
        previous = batch, output
    if previous is not None:
        yield previous


def infer(
    predict_step: Callable[[Batch], Predictions],
    batches: Iterable[Batch],
    *,
    num_views: int,
    merge: Merge = "mean",
) -> Iterator[MergedImage]:
    """Predict every view of every image and merge the views of each.

    The device works on the next batch while the host merges the last one. Memory holds the images whose views are not
    complete, so batches should bring the views of a group of images one after the other.

    Args:
      predict_step: batch -> Predictions, jitted by the caller. For methods whose row m is proposal m, masked rows
        that name another row in `batch.representative` take that row's scores.
      batches: host batches (NumPy) ; rows with `image_mask` False are skipped.
      num_views: views per image; an image is yielded as soon as so many have arrived.
      merge: "mean" averages each row's scores and boxes over the views where the row is real (the released OICR
        code's test), "sum" adds the scores, "union" keeps the rows of all views apart, for methods whose rows do not
        correspond across views.
    Yields:
      `MergedImage`, in the order of completion.
    Raises:
      DataError: an image has fewer views than `num_views` when the batches end.
    """
    if merge not in ("mean", "sum", "union"):
        raise ValueError(f"unknown merge {merge!r}; allowed: 'mean', 'sum', 'union'")
    pending: dict[int, _Views] = {}
    for batch, output in _overlapped(predict_step, batches):
        for index in _add_views(pending, batch, output):
            if pending[index].count == num_views:
                yield pending.pop(index).merge(index, merge)
    if pending:
        index, views = next(iter(pending.items()))
        raise DataError(
            f"{len(pending)} images are incomplete, e.g. image {index} has {views.count} of {num_views} views; "
            "the batches must hold every view of every image exactly once"
        )
