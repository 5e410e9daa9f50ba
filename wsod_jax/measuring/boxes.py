"""Evaluation of detectors that score boxes: average precision on the test split, CorLoc on the training split."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsod_jax.config import EvalOptions
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import ImageSet
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap
from wsod_jax.evaluation.metrics.corloc import box_quality
from wsod_jax.evaluation.metrics.tables import DetectionTable, TruthTable
from wsod_jax.evaluation.pictures import picture_detections
from wsod_jax.evaluation.predictions import write_predictions, write_voc_server
from wsod_jax.evaluation.selection import Results
from wsod_jax.measuring.findings import Findings, bar, known_objects
from wsod_jax.predictor import Predictor, score_detections


class Pictures(NamedTuple):
    """Which pictures of detections are drawn: of the first `count` images, into `folder`."""

    folder: Path
    count: int


def measure_detections(
    findings: Findings,
    settings: EvalOptions,
    images: ImageSet,
    detections: DetectionTable,
    truth: TruthTable | None,
    *,
    pictures: Pictures,
    coco: bool,
) -> None:
    """Add average precision to the findings, or a note that there is no ground truth; and pictures.

    Args:
      findings: added to.
      settings: thresholds and AP mode.
      images: the set.
      detections: in it.
      truth: its objects, where they are known.
      pictures: what to draw.
      coco: also COCO's AP and AR.
    """
    metrics = None
    if truth is not None:
        metrics = score_detections(detections, truth, settings)
        findings.parts["detection"] = metrics
        if coco:
            summary = coco_ap(detections, truth).summary
            findings.scalars |= {f"COCO {name}": value for name, value in summary.items()}
    else:
        findings.note(f"{images.name} has no boxes to compare with: average precision not measured")
    findings.pictures += picture_detections(
        pictures.folder,
        [record.load for record in images.records[: pictures.count]],
        detections,
        truth,
        metrics,
        image_ids=images.image_ids[: pictures.count],
        class_names=images.class_names,
    )
    if pictures.count:
        print(f"pictures: {pictures.folder / 'detections.png'}")


def measure_corloc(
    findings: Findings, predictor: Predictor, split: str, proposals: ProposalSet | None
) -> None:
    """Add CorLoc, and the quality of the top boxes of every image's own classes, to the findings."""
    reader = predictor.config.data
    images = reader.images(split)
    truth = known_objects(reader, images, split)
    if truth is None:
        findings.note(f"{images.name} has no boxes to compare with: CorLoc not measured")
        return
    results = predictor.detect(images, proposals, "corloc", bar)
    findings.note_input(images, results.counts, results.predicted)
    findings.parts["corloc"] = predictor.localise(results, truth)
    quality = box_quality(_top_boxes(results, images), truth)
    findings.scalars["top box size ratio"] = quality.size_ratio


def write_detections(
    folder: Path, images: ImageSet, detections: DetectionTable, *, voc_server: bool
) -> None:
    """Write predictions.json, and the files of the VOC server if asked for."""
    names = {"image_ids": images.image_ids, "class_names": images.class_names}
    print(f"predictions: {write_predictions(folder / 'predictions.json', detections, **names)}")
    if voc_server:
        write_server_files(folder, images, detections)


def write_server_files(folder: Path, images: ImageSet, detections: DetectionTable) -> None:
    """Write the files of the VOC server."""
    path = write_voc_server(
        folder / "voc_server",
        detections,
        image_ids=images.image_ids,
        class_names=images.class_names,
    )
    print(f"files for the VOC server: {path}")


def _top_boxes(results: Results, images: ImageSet) -> DetectionTable:
    """Return the best box of every class that an image is labelled with."""
    rows, classes = np.nonzero((images.labels == 1) & results.top_valid)
    return DetectionTable(
        rows,
        classes,
        results.top_scores[rows, classes],
        results.top_boxes[rows, classes],
        len(images),
        len(images.class_names),
    )
