"""Pictures of what evaluation found: detections judged image by image, precision-recall curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import (
    DetectionMetrics,
    best_overlaps,
    match_detections,
)
from wsod_jax.evaluation.metrics.tables import DetectionTable, TruthTable
from wsod_jax.evaluation.report import Picture


def draw_image_detections(
    image: np.ndarray,
    detections: DetectionTable,
    objects: TruthTable | None,
    *,
    class_names: Sequence[str],
    score_thr: float = 0.5,
    iou_thr: float = 0.5,
    max_boxes: int = 20,
) -> np.ndarray:
    """Draw one image's best detections, judged where the truth is known.

    Args:
      image: [H, W, 3] uint8 RGB, the original image.
      detections: in it.
      objects: in it; `None` draws the boxes in their classes' colors.
      class_names: c names.
      score_thr: show scores >= this.
      iou_thr: a hit needs IoU > this. Hits are found among the boxes shown; boxes below them cannot change that.
      max_boxes: at most so many, the best.
    Returns:
      [H', W', 3] uint8 RGB, see `viz.draw_detections`.
    """
    best = np.argsort(-detections.scores, kind="stable")[:max_boxes]
    shown = detections.take(best[detections.scores[best] >= score_thr])
    if objects is None:
        return viz.draw_boxes(
            image, shown.boxes, classes=shown.classes, scores=shown.scores, class_names=class_names
        )
    matched = match_detections(shown, objects, iou_thr=iou_thr)
    _, best_row = best_overlaps(shown, objects)
    missed = np.ones(len(objects), bool)
    missed[best_row[matched == 1]] = False
    return viz.draw_detections(
        image,
        shown.boxes,
        shown.scores,
        shown.classes,
        matched,
        class_names=class_names,
        truth_boxes=objects.boxes,
        truth_classes=objects.classes,
        missed=missed & ~objects.difficult,
    )


def draw_precision_recall(
    metrics: DetectionMetrics, class_names: Sequence[str], *, title: str = ""
) -> np.ndarray:
    """Plot the precision-recall curves of all classes that have objects, [H, W, 3] uint8 RGB."""
    classes = [c for c in range(len(class_names)) if metrics.num_objects[c]]
    curves = {
        class_names[c]: (metrics.curves[c].recall, metrics.curves[c].precision) for c in classes
    }
    ap = {class_names[c]: float(metrics.ap[c, 0]) for c in classes}
    note = (
        f"IoU > {metrics.iou_thrs[0]:.2f}, mAP {100 * metrics.mean_ap[0]:.1f} ({metrics.ap_mode})"
    )
    return viz.plot_precision_recall(curves, ap=ap, title=f"{title}: {note}" if title else note)


def picture_detections(
    folder: str | Path,
    images: Sequence[Callable[[], np.ndarray]],
    detections: DetectionTable,
    truth: TruthTable | None,
    metrics: DetectionMetrics | None,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
) -> list[Picture]:
    """Draw precision-recall curves and the first images' hits, misses and ground truth into a folder.

    Args:
      folder: gets precision_recall.png, detections.png and detections/<image id>.png.
      images: functions that load the first images of the set, [H, W, 3] uint8 RGB; those that raise DataError are
        left out.
      detections: of the whole set.
      truth: of the whole set; `None` where there is none: boxes in their classes' colours.
      metrics: of these detections, `None` likewise.
      image_ids: of `images`.
      class_names: c names.
    Returns:
      The pictures that a report shows.
    """
    folder, pictures, drawn, captions = Path(folder), [], [], []
    if metrics is not None:
        curves = viz.save_image(
            folder / "precision_recall.png", draw_precision_recall(metrics, class_names)
        )
        pictures.append(Picture(curves, "Precision and recall of every class"))
    for index, (load, image_id) in enumerate(zip(images, image_ids, strict=True)):
        try:
            image = load()
        except DataError:
            continue
        # Scores of different methods have different ranges: show the best box of each class present.
        own = detections.of_image(index)
        shown = float(np.sort(own.scores)[::-1][: 2 * len(images)][-1]) if len(own) else 0.0
        threshold = max(shown, 0.3 * float(own.scores.max())) if len(own) else 0.0
        drawn.append(
            draw_image_detections(
                image,
                own,
                None if truth is None else truth.of_image(index),
                class_names=class_names,
                score_thr=threshold,
                max_boxes=6,
            )
        )
        captions.append(image_id)
        viz.save_image(folder / "detections" / f"{image_id}.png", drawn[-1])
    if drawn:
        sheet = viz.contact_sheet(drawn, captions=captions)
        caption = "Hits red, false detections yellow, ground truth green"
        pictures.append(
            Picture(
                viz.save_image(folder / "detections.png", sheet),
                caption if truth is not None else "Detections in the colours of their classes",
            )
        )
    return pictures
