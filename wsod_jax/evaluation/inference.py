"""From views to results: all views of a group of images are predicted, merged and detected on the device.

A view is one (scale, flip) of an image. Views of a group follow each other; their boxes and scores are summed in the
pixels of the original images as they come, so memory holds one sum, however many views there are. Only detections,
their masks, maps and label maps reach the host, as `ImageResult`s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wsod_jax.errors import DataError
from wsod_jax.evaluation.decoding import Decoding, Merge, decode_segmentation
from wsod_jax.evaluation.maps import image_maps
from wsod_jax.ops.detect import detect, detect_again
from wsod_jax.ops.masks import cut_masks, paste_masks
from wsod_jax.ops.views import ClassMaps, to_original, to_view
from wsod_jax.types import Batch, Detections, ImageResult, Predictions


@dataclass(frozen=True)
class Model:
    """A method with its weights, and the programs that run it.

    Attributes:
      method: what predicts.
      params, extras: its state, on the devices.
      predict: (params, extras, batch, want) -> `Predictions`, jitted.
      predict_masks: (params, extras, batch, memo, detections) -> masks, jitted; `None` for methods without.
      put: from a batch of NumPy arrays to one on the devices.
    """

    method: Any
    params: Any
    extras: Any
    predict: Callable[..., Predictions]
    predict_masks: Callable[..., jax.Array] | None = None
    put: Callable[[Batch], Batch] = jax.device_put


@dataclass(frozen=True)
class Candidates:
    """The rows of one image before any selection, all views merged.

    Attributes:
      image_index: position in the image set.
      boxes: [r, 4] or [r, c, 4] float32, pixels of the original image.
      scores: [r, c] float32, 0 where masked.
      mask: [r] bool.
    """

    image_index: int
    boxes: np.ndarray
    scores: np.ndarray
    mask: np.ndarray


# -- programs that run on the device


@struct.dataclass
class Sums:
    """What the views of a group of images have added up to, in original pixels.

    Attributes:
      boxes: [b, m, 4] or [b, m, c, 4], `scores`: [b, m, c], summed over the views where a row is real.
      seen: [b, m] float32, number of these views.
      finite: [b] bool, nothing that was added is infinite or not a number.
    """

    boxes: jax.Array
    scores: jax.Array
    seen: jax.Array
    finite: jax.Array


def _rows(found: Predictions, batch: Batch, is_aligned: bool) -> Sums:
    """Return one view's candidates; rows merged into another one take its scores and boxes."""
    boxes, scores = found.boxes.astype(jnp.float32), found.scores.astype(jnp.float32)
    mask = found.mask & batch.image_mask[:, None]
    if is_aligned and batch.representative is not None:
        source = batch.representative  # [b, m]
        is_merged = source != jnp.arange(source.shape[1])[None, :]
        take = jax.vmap(lambda x, rows: x[rows])
        boxes, scores = take(boxes, source), take(scores, source)
        mask = jnp.where(is_merged, take(mask, source), mask)
    boxes = to_original(boxes, batch.views, batch.image_size[:, 1].astype(jnp.float32))
    wide = mask.reshape(*mask.shape, *(1,) * (boxes.ndim - 2))
    boxes, scores = jnp.where(wide, boxes, 0.0), jnp.where(mask[..., None], scores, 0.0)
    finite = [jnp.isfinite(x).all(axis=range(1, x.ndim)) for x in (boxes, scores)]
    return Sums(boxes, scores, mask.astype(jnp.float32), finite[0] & finite[1])


_first_view = jax.jit(_rows, static_argnums=2)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _add_view(sums: Sums, found: Predictions, batch: Batch, is_aligned: bool) -> Sums:
    new = _rows(found, batch, is_aligned)
    added = jax.tree.map(jnp.add, sums.replace(finite=None), new.replace(finite=None))
    return added.replace(finite=sums.finite & new.finite)


@functools.partial(jax.jit, static_argnums=1)
def _merged(sums: Sums, merge: Merge) -> Sums:
    """Return mean boxes, and mean or summed scores."""
    seen = jnp.maximum(sums.seen, 1.0)
    boxes = sums.boxes / seen.reshape(*seen.shape, *(1,) * (sums.boxes.ndim - 2))
    scores = sums.scores / seen[..., None] if merge == "mean" else sums.scores
    return sums.replace(boxes=boxes, scores=scores)


def _detect(sums: Sums, decoding: Decoding) -> Detections:
    limits = {"top_k": decoding.num_slots(sums.scores.shape[-1]), "class_top_k": decoding.top_k}
    thresholds = {"score_thr": decoding.score_thr, "iou_thr": decoding.nms_thr}
    return detect(sums.boxes, sums.scores, sums.seen > 0, **thresholds, **limits)


@functools.partial(jax.jit, static_argnums=2)
def _best_scores(scores: jax.Array, seen: jax.Array, top_k: int) -> jax.Array:
    """Return the `top_k` best scores of every class, [b, c, k], -inf in empty slots."""
    ranked = jnp.where(seen[..., None] > 0, scores, -jnp.inf)
    return jax.lax.top_k(jnp.swapaxes(ranked, 1, 2), min(top_k, scores.shape[1]))[0]


@jax.jit
def _in_view(found: Detections, batch: Batch) -> Detections:
    width = batch.image_size[:, 1].astype(jnp.float32)
    return found.replace(boxes=to_view(found.boxes, batch.views, width))


# -- a group of images after the other


@dataclass
class _Group:
    """What the device holds of a group of images when all their views are predicted."""

    batches: list[Batch]  # NumPy
    sums: Sums | None
    num_rows: int  # of a view
    found: Detections | None
    masks: jax.Array | None
    image_scores: list[jax.Array]
    maps: list[tuple[Any, Batch]]
    semantic: jax.Array | None
    class_maps: ClassMaps | None
    best_scores: jax.Array | None


def _predict_group(
    model: Model, batches: Sequence[Batch], wants: Sequence[frozenset[str]], decoding: Decoding
) -> _Group:
    """Dispatch all work of a group; nothing waits for the device."""
    is_aligned = model.method.aligned_rows and decoding.merge != "union"
    sums, per_view, image_scores, maps, labels = None, {}, [], [], []
    for_masks, num_rows = [], 0
    for view, (batch, want) in enumerate(zip(batches, wants, strict=True)):
        on_device = model.put(batch)
        found = model.predict(model.params, model.extras, on_device, want)
        rows = on_device.replace(image=None, features=None, pooled=None)
        if found.image_scores is not None:
            image_scores.append(found.image_scores)
        if found.maps is not None:
            maps.append((found.maps, batch))
        if found.semantic is not None:
            labels.append((found.semantic, rows if labels else on_device))
        if found.boxes is not None:
            candidates = Predictions(found.boxes, found.scores, found.mask)
            num_rows = max(num_rows, found.scores.shape[1])
            if decoding.merge == "union":
                per_view[view] = _first_view(candidates, rows, is_aligned)
            elif sums is None:
                sums = _first_view(candidates, rows, is_aligned)
            else:
                sums = _add_view(sums, candidates, rows, is_aligned)
        if "masks" in want and model.predict_masks is not None:
            for_masks.append((on_device, found.memo))
    found = best_scores = masks = semantic = None
    if per_view:
        found, sums = _detect_union(per_view, num_rows, decoding)
    elif sums is not None:
        sums = _merged(sums, decoding.merge)
        found = _detect(sums, decoding)
    if decoding.with_candidates and sums is not None:
        best_scores = _best_scores(sums.scores, sums.seen, decoding.top_k)
    if for_masks:
        masks = _mean_masks(model, for_masks, found)
    of_classes = None
    if labels:
        cuts_masks = any("masks" in want for want in wants) and model.predict_masks is None
        semantic, of_classes = decode_segmentation(labels, batches[0], decoding, cuts_masks)
    return _Group(
        list(batches),
        sums,
        num_rows,
        found,
        masks,
        image_scores,
        maps,
        semantic,
        of_classes,
        best_scores,
    )


def _detect_union(
    views: dict[int, Sums], num_rows: int, decoding: Decoding
) -> tuple[Detections, Sums]:
    """Detect in every view, then among all detections; row m of view v is now row v * `num_rows` + m."""
    parts = {number: _detect(view, decoding) for number, view in views.items()}
    parts = [part.replace(row=part.row + v * num_rows) for v, part in parts.items()]
    num_classes = next(iter(views.values())).scores.shape[-1]
    found = detect_again(
        _side_by_side(parts),
        iou_thr=decoding.nms_thr,
        top_k=decoding.num_slots(num_classes),
        num_classes=num_classes,
        class_top_k=decoding.top_k * len(views),
    )
    together = _side_by_side([view.replace(finite=None) for view in views.values()])
    finite = functools.reduce(jnp.logical_and, [view.finite for view in views.values()])
    return found, together.replace(finite=finite)


def _side_by_side(views: Sequence[Any]) -> Any:
    """Return the rows of several views as those of one."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *views)


@jax.jit
def _unmirrored(masks: jax.Array, flipped: jax.Array) -> jax.Array:
    return jnp.where(flipped[:, None, None, None], masks[..., ::-1], masks)


def _mean_masks(model: Model, views: Sequence[tuple[Batch, Any]], found: Detections) -> jax.Array:
    """Return the masks [b, n, p, p] of detections, each in the frame of its box, averaged over views."""
    total = 0.0
    for batch, memo in views:
        in_view = _in_view(found, batch.replace(image=None, features=None, pooled=None))
        masks = model.predict_masks(model.params, model.extras, batch, memo, in_view)
        total = total + _unmirrored(masks, batch.views.flipped)
    return total / len(views)


def _groups(batches: Iterable[Batch], num_views: int) -> Iterator[list[Batch]]:
    """Yield the batches of each group of images, `num_views` at a time."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == num_views:
            yield group
            group = []
        elif not np.array_equal(group[0].image_index, batch.image_index):
            break
    if group:
        raise DataError(
            f"the batches bring {len(group)} of {num_views} views of images {group[0].image_index.tolist()}; all views "
            "of a group of images must follow each other"
        )


def _in_flight(
    model: Model, batches: Iterable[Batch], wants: Sequence[frozenset[str]], decoding: Decoding
) -> Iterator[_Group]:
    """Yield groups, the next one dispatched already when one is handed out."""
    has_boxes = any("boxes" in want for want in wants)
    if decoding.merge != "union" and has_boxes and not model.method.aligned_rows:
        raise ValueError(
            f"merge is {decoding.merge!r}, but row m is another region in every view; allowed is 'union'"
        )
    groups = (_predict_group(model, g, wants, decoding) for g in _groups(batches, len(wants)))
    previous = next(groups, None)
    for current in groups:
        yield previous
        previous = current
    if previous is not None:
        yield previous


def infer(
    model: Model,
    batches: Iterable[Batch],
    wants: Sequence[frozenset[str]],
    decoding: Decoding,
    query: np.ndarray | None = None,
) -> Iterator[ImageResult]:
    """Predict every view of every image, merge the views of each, and detect.

    The device works on the next group of images while the host reads the last one.

    Args:
      model: what predicts, and where.
      batches: host batches (NumPy); all views of a group of images follow each other. Rows with `image_mask` False
        are skipped.
      wants: what is wanted of each view, in their order.
      decoding: how predictions become results.
      query: [n, c] bool, classes whose maps are read besides the predicted ones; `None` for no others.

    Yields:
      `ImageResult`, in the order of the batches.

    Raises:
      DataError: views of a group are missing, or what was predicted is not finite.

    Cost: device memory for each image of a group, m rows and c classes, of running sums: 4 m c bytes of scores and
      16 m (16 m c with boxes per class), twice while a view is added; 3.2 MB at 2000 x 80, whatever the number of
      views. "union" keeps every view's.
    """
    for group in _in_flight(model, batches, wants, decoding):
        yield from _results(group, decoding, query)


def candidates(
    model: Model, batches: Iterable[Batch], wants: Sequence[frozenset[str]], decoding: Decoding
) -> Iterator[Candidates]:
    """Yield what all rows of every image score, all views merged, before any selection; arguments as `infer`'s."""
    for group in _in_flight(model, batches, wants, decoding):
        sums = jax.device_get(group.sums)
        for row in np.flatnonzero(group.batches[0].image_mask):
            index = int(group.batches[0].image_index[row])
            yield Candidates(index, sums.boxes[row], sums.scores[row], sums.seen[row] > 0)


def detect_candidates(found: Candidates, decoding: Decoding) -> Detections:
    """Return the detections [n] of one image's candidates, as NumPy."""
    values = (found.boxes, found.scores, found.mask.astype(np.float32), np.ones((), bool))
    return jax.device_get(_detect(Sums(*values), decoding))


def _results(group: _Group, decoding: Decoding, query: np.ndarray | None) -> Iterator[ImageResult]:
    """Yield the results of a group's images, read off the device."""
    first = group.batches[0]
    finite = None if group.sums is None else group.sums.finite
    held = group.found, group.masks, group.image_scores, [maps for maps, _ in group.maps]
    held += group.semantic, group.class_maps, group.best_scores, finite
    found, masks, scores, maps, semantic, of_classes, best, finite = jax.device_get(held)
    for b in np.flatnonzero(first.image_mask):
        index = int(first.image_index[b])
        size = tuple(np.asarray(first.views.original_size[b]).tolist())
        image_scores = np.mean([s[b] for s in scores], axis=0, dtype=np.float32) if scores else None
        are_finite = image_scores is None or np.isfinite(image_scores).all()
        if not are_finite or (finite is not None and not finite[b]):
            raise DataError(
                f"boxes or scores of image {index} are not finite; the checkpoint may have diverged: look at its "
                "loss, or evaluate an earlier step"
            )
        values: dict[str, Any] = {}
        if found is not None:
            count, row = int(found.mask[b].sum()), found.row[b]
            values = {name: getattr(found, name)[b] for name in ("boxes", "scores", "classes")}
            values |= {"rows": row, "views": np.full_like(row, -1)}
            if decoding.merge == "union":
                values |= {"rows": row % group.num_rows, "views": row // group.num_rows}
            values = {name: column[:count] for name, column in values.items()}
            if masks is not None:
                cells, boxes = masks[b][:count], values["boxes"]
                values["masks"] = paste_masks(cells, boxes, size, threshold=decoding.mask_thr)
            elif of_classes is not None:
                height, width = of_classes.size[b].tolist()
                values["masks"] = cut_masks(
                    of_classes.maps[b, :height, :width],
                    float(of_classes.scale[b]),
                    values["boxes"],
                    values["classes"],
                    size,
                    threshold=decoding.mask_thr,
                )
        if maps:
            views = [(one, batch) for one, (_, batch) in zip(maps, group.maps, strict=True)]
            asked = None if query is None else query[index]
            read = image_maps(views, b, size, image_scores, asked, decoding.reading)
            boxes, box_scores, classes = read.detections()
            values |= {"maps": read, "boxes": boxes, "scores": box_scores, "classes": classes}
        yield ImageResult(
            image_index=index,
            size=size,
            image_scores=image_scores,
            semantic=None if semantic is None else semantic[b][: size[0], : size[1]],
            candidate_scores=None if best is None else best[b],
            **values,
        )
