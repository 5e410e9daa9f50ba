"""Merging and detecting the views of an image on the device, against NumPy on the host; and pasting masks."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.commands.benchmarks.kernels import random_boxes
from wsod_jax.commands.benchmarks.timing import Measure, seconds, working_mib
from wsod_jax.evaluation import inference
from wsod_jax.ops.detect import detect
from wsod_jax.ops.masks import paste_masks
from wsod_jax.ops.nms import greedy_nms
from wsod_jax.types import Batch, Predictions, Views

TOP_K, NMS_THR = 100, 0.3


@dataclasses.dataclass(frozen=True)
class AlignedRows:
    """What inference asks a method whose rows are proposals."""

    aligned_rows: bool = True


def views_of_an_image(
    num_rows: int, num_classes: int, num_views: int, per_class: bool
) -> list[tuple[Predictions, Batch]]:
    """Return random predictions of an image's views, every other one mirrored."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, num_rows, 480, 640)
    if per_class:
        moved = rng.normal(0, 2, (num_rows, num_classes, 4)).astype(np.float32)
        boxes = boxes[:, None] + moved
    made = []
    for view in range(num_views):
        scale = 1 + view / num_views
        size = (np.array([[480, 640]]) * scale).astype(np.int32)
        geometry = Views(
            scale=np.full((1, 2), scale, np.float32),
            offset=np.zeros((1, 2), np.int32),
            flipped=np.array([view % 2 == 1]),
            original_size=np.array([[480, 640]], np.int32),
        )
        one = np.ones(1, bool)
        batch = Batch(None, size, one, np.zeros(1, np.int32), geometry)
        scores = rng.random((1, num_rows, num_classes), dtype=np.float32) ** 8
        mask = jnp.ones((1, num_rows), bool)
        made.append(
            (Predictions(jnp.asarray(boxes[None] * scale), jnp.asarray(scores), mask), batch)
        )
    return made


def on_the_host(views: list[tuple[Predictions, Batch]]) -> int:
    """Fetch all views, average them in float64, and detect class by class; return the number of detections."""
    boxes, scores = [], []
    for found, batch in views:
        x1, y1, x2, y2 = np.moveaxis(np.asarray(found.boxes[0], np.float64), -1, 0)
        if batch.views.flipped[0]:
            x1, x2 = batch.image_size[0, 1] - x2, batch.image_size[0, 1] - x1
        boxes.append(np.stack([x1, y1, x2, y2], axis=-1) / batch.views.scale[0, 0])
        scores.append(np.asarray(found.scores[0]))
    boxes, scores = np.mean(np.stack(boxes), axis=0), np.mean(np.stack(scores), axis=0)
    count = 0
    for c in range(scores.shape[1]):
        best = np.argsort(-scores[:, c], kind="stable")[:TOP_K]
        count += len(greedy_nms((boxes if boxes.ndim == 2 else boxes[:, c])[best], iou_thr=NMS_THR))
    return count


def on_the_device(views: list[tuple[Predictions, Batch]]) -> int:
    """Do the same by `infer`; return the number of detections."""
    given = iter(views)
    model = inference.Model(AlignedRows(), None, None, lambda *_: next(given)[0])
    batches, want = [batch for _, batch in views], frozenset({"boxes"})
    decoding = inference.Decoding(top_k=TOP_K, nms_thr=NMS_THR)
    [result] = inference.infer(model, batches, [want] * len(views), decoding)
    return len(result.scores)


def merging(*, small: bool, repeats: int) -> list[Measure]:
    """Time both, and pasting masks into an image."""
    num_rows, num_classes, num_views = (40, 3, 4) if small else (2000, 80, 16)
    subject = f"{num_rows} proposals x {num_classes} classes x {num_views} views"
    result = []
    for per_class in (False, True):
        views = views_of_an_image(num_rows, num_classes, num_views, per_class)
        jax.block_until_ready([found for found, _ in views])
        device = seconds(on_the_device, views, repeats=repeats)
        host = seconds(on_the_host, views, repeats=max(1, repeats // 2))
        kind = "a box for each class" if per_class else "boxes shared by the classes"
        found = views[0][0]
        program = detect.lower(
            found.boxes,
            found.scores,
            found.mask,
            score_thr=0.0,
            iou_thr=NMS_THR,
            top_k=TOP_K,
            class_top_k=TOP_K,
        ).compile()
        sums = (found.boxes.size + found.scores.size + num_rows) * 4 / 2**20
        result += [
            Measure(f"merging and detecting, {kind}", 1e3 * device, "ms", subject),
            Measure("  the same in NumPy on the host", 1e3 * host, "ms"),
            Measure("  faster by", host / device, "x"),
            Measure("  sums held for an image", sums, "MiB", "whatever the number of views"),
            Measure("  working memory of detecting", working_mib(program), "MiB"),
        ]
    return [*result, *pasting(small, repeats)]


def pasting(small: bool, repeats: int) -> list[Measure]:
    """Time pasting masks of 28 x 28 cells into an image."""
    side, count = (100, 10) if small else (1000, 100)
    rng = np.random.default_rng(0)
    sides = np.exp(rng.normal(np.log(side / 5), 0.4, (count, 2))).clip(2, side)
    corner = rng.uniform(0, 1, (count, 2)) * (side - sides)
    boxes, masks = np.concatenate([corner, corner + sides], axis=1), rng.random((count, 28, 28))
    durations = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        paste_masks(masks, boxes, (side, side))
        durations.append(time.perf_counter() - started)
    note = f"{count} masks of median side {np.median(sides):.0f} in {side} x {side} pixels"
    return [Measure("pasting masks", 1e3 * float(np.median(durations[1:])), "ms", note)]
