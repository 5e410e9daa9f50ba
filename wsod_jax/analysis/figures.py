"""Figures of what an evaluation or a prediction found: detections judged image by image, maps, curves, on sheets.

Where something is drawn, `image` is the original image and the result the figure, both [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.errors import DataError
from wsod_jax.evaluation.maps import ImageMaps
from wsod_jax.evaluation.metrics.average_precision import (
    DetectionMetrics,
    best_overlaps,
    match_detections,
)
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth
from wsod_jax.evaluation.report import Figure
from wsod_jax.runs.scoring import PassOutcome
from wsod_jax.types import ImageResult

CLASSES_SHOWN = 3  # of an image's maps


def draw_detections(
    image: np.ndarray,
    result: ImageResult,
    objects: GroundTruth | None,
    *,
    class_names: Sequence[str],
    score_thr: float = 0.5,
    iou_thr: float = 0.5,
    max_boxes: int = 20,
) -> np.ndarray:
    """Draw one image's best detections, judged where its objects are known, with their masks where there are any.

    Args:
      result: of it.
      objects: in it, of the whole set's table; `None` draws the boxes in their classes' colors.
      class_names: c names.
      score_thr: show scores >= this.
      iou_thr: a hit needs IoU > this. Hits are found among the boxes shown; boxes below them cannot change that.
      max_boxes: the highest number of boxes drawn, the best-scored.

    Returns:
      [H', W', 3] uint8 RGB, see `viz.draw_detections`.
    """
    best = np.argsort(-result.scores, kind="stable")[:max_boxes]
    best = best[result.scores[best] >= score_thr]
    boxes, scores, classes = result.boxes[best], result.scores[best], result.classes[best]
    if result.semantic is not None:
        image = viz.draw_label_map(image, result.semantic)
    if result.masks is not None:
        image = viz.draw_masks(image, [result.masks[i] for i in best], classes)
    if objects is None:
        return viz.draw_boxes(image, boxes, classes=classes, scores=scores, class_names=class_names)
    shown = DetectionTable(
        np.full(len(best), result.image_index),
        classes,
        scores,
        boxes,
        objects.num_images,
        objects.num_classes,
    )
    matched = match_detections(shown, objects, iou_thr=iou_thr)
    _, best_row = best_overlaps(shown, objects)
    missed = np.ones(len(objects), bool)
    missed[best_row[matched == 1]] = False
    return viz.draw_detections(
        image,
        boxes,
        scores,
        classes,
        matched,
        class_names=class_names,
        truth_boxes=objects.boxes,
        truth_classes=objects.classes,
        missed=missed & ~objects.difficult,
    )


def draw_maps(
    image: np.ndarray,
    result: ImageResult,
    objects: GroundTruth | None,
    *,
    class_names: Sequence[str],
) -> np.ndarray:
    """Draw an image's proposal map and the class activation maps of its best-scored classes, side by side.

    An image of which no class was read shows its maps without a class.

    Args:
      result: of it, with maps.
      objects: in it, drawn over the image; `None` where they are not known.
      class_names: c names.

    Returns:
      [H', W', 3] uint8 RGB: the image, its proposal map, then up to three classes.
    """
    maps, scores = result.maps, result.image_scores
    first = image
    if objects is not None:
        first = viz.draw_boxes(
            image, objects.boxes, classes=objects.classes, class_names=class_names
        )
    objectness = maps.objectness()
    cells = [first, viz.draw_objectness(image, objectness - objectness.min())]
    captions = ["image", "proposal map"]
    for c in sorted(maps.classes, key=lambda c: -scores[c])[:CLASSES_SHOWN]:
        cells.append(draw_cam(image, maps, int(c)))
        told = "" if maps.predicted[c] else ", not predicted"
        captions.append(f"{viz.shown_names(class_names)[c]} {scores[c]:.2f}{told}")
    return viz.contact_sheet(cells, captions=captions, columns=2 + CLASSES_SHOWN)


def draw_cam(image: np.ndarray, maps: ImageMaps, c: int) -> np.ndarray:
    """Draw one class's activation over its image, with its point, tightest box, and components."""
    cam = maps.cam(c)
    above = np.maximum(cam - cam.min(), 0.0)
    return viz.draw_cam(image, above, maps.point(c), maps.tightest(c)[0][0], maps.components(c)[0])


def draw_precision_recall(
    metrics: DetectionMetrics, class_names: Sequence[str], *, title: str = ""
) -> np.ndarray:
    """Plot the precision-recall curves of all classes that have objects, [H, W, 3] uint8 RGB."""
    class_names = viz.shown_names(class_names)
    classes = [c for c in range(len(class_names)) if metrics.num_objects[c]]
    curves = {
        class_names[c]: (metrics.curves[c].recall, metrics.curves[c].precision) for c in classes
    }
    ap = {class_names[c]: float(metrics.ap[c, 0]) for c in classes}
    note = (
        f"IoU > {metrics.iou_thrs[0]:.2f}, mAP {100 * metrics.mean_ap[0]:.1f} ({metrics.ap_mode})"
    )
    return viz.plot_precision_recall(curves, ap=ap, title=f"{title}: {note}" if title else note)


def draw_outcome(outcome: PassOutcome, folder: str | Path, count: int) -> list[Figure]:
    """Draw what a pass found into a folder: curves, and the first images' detections and maps.

    Args:
      outcome: of the pass.
      folder: gets precision_recall.png, detections.png, maps.png, and a file for each image below folders of the same
        names.
      count: images to draw; those that cannot be read are left out.

    Returns:
      The figures that a report shows.
    """
    folder, listed = Path(folder), []
    names = outcome.data.images.class_names
    numbers = viz.legend(names)
    for name in ("boxes", "masks"):
        if name in outcome.evaluations:
            chart = draw_precision_recall(outcome.evaluations[name].detail, names)
            kind = "" if name == "boxes" else "mask_"
            path = viz.save_image(folder / f"{kind}precision_recall.png", chart)
            listed.append(Figure(path, f"Precision and recall of every class, {name}"))
    drawn: dict[str, dict[str, np.ndarray]] = {"detections": {}, "maps": {}}
    for result in outcome.results:
        if result.image_index >= count:
            break
        record = outcome.data.images.records[result.image_index]
        try:
            image = record.load()
        except DataError:
            continue
        objects = None
        if outcome.data.has_boxes:
            objects = outcome.data.truth.of_image(result.image_index)
        figures = {}
        if result.boxes is not None:
            figures["detections"] = draw_detections(
                image,
                result,
                objects,
                class_names=names,
                score_thr=_shown_above(result.scores, 2 * count),
                max_boxes=6,
            )
        if result.maps is not None:
            figures["maps"] = draw_maps(image, result, objects, class_names=names)
        for kind, figure in figures.items():
            drawn[kind][record.image_id] = figure
            viz.save_image(folder / kind / f"{record.image_id.replace('/', '_')}.png", figure)
    judged = "True positives red, false positives yellow, ground truth green"
    captions = {
        "detections": judged if outcome.data.has_boxes else "Detections, a color for each class",
        "maps": "Proposal map; activations with their strongest point, tightest box, and components (dashed)",
    }
    for kind, figures in drawn.items():
        if figures:
            how = (
                dict(captions=[*figures]) if kind == "detections" else dict(columns=1, cell_px=None)
            )
            sheet = viz.contact_sheet([*figures.values()], **how)
            caption = f"{captions[kind]}; {numbers}" if numbers else captions[kind]
            listed.append(Figure(viz.save_image(folder / f"{kind}.png", sheet), caption))
    return listed


def _shown_above(scores: np.ndarray, most: int) -> float:
    """Return from which score on boxes are drawn; ranges differ between methods, so it depends on an image's best."""
    if not len(scores):
        return 0.0
    return max(float(np.sort(scores)[::-1][:most][-1]), 0.3 * float(scores.max()))
