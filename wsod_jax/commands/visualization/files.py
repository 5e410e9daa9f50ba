"""Commands that read files and run no model: proposals, predictions, training curves, data sets."""

from __future__ import annotations

import argparse

import numpy as np

from wsod_jax import viz
from wsod_jax.analysis.figures import draw_detections, draw_precision_recall
from wsod_jax.commands.visualization.images import read_images, write_figures
from wsod_jax.data.proposals.proposal_set import ProposalSet, check_proposals
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.records import ImageRecord
from wsod_jax.errors import DataError
from wsod_jax.evaluation.formats import read_index
from wsod_jax.evaluation.metrics.average_precision import evaluate_detections
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth
from wsod_jax.evaluation.results_reading import read_results
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.train.logging import read_jsonl


def show_proposals(options: argparse.Namespace) -> None:
    """Draw the proposals of images; in VOC layout, the best one of every object too."""
    data = read_images(options.data, options.split)
    images = data.images
    proposals = ProposalSet.load(options.proposals)
    check_proposals(proposals, images)

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray:
        boxes = proposals.get(record.image_id)
        if not data.has_boxes or not len(boxes):
            return viz.draw_proposals(image, boxes)
        objects = data.truth.of_image(index).boxes
        iou = pairwise_iou(objects, boxes)
        best, height = iou.argmax(axis=1), iou.max(axis=1)
        return viz.draw_proposals(
            image, boxes, truth_boxes=objects, best_index=best, best_iou=height
        )

    write_figures(images, options, draw)


def show_detections(options: argparse.Namespace) -> None:
    """Draw predictions on their images; in VOC layout, the objects and precision over recall too."""
    data = read_images(options.data, options.split)
    images = data.images
    class_names = images.class_names or read_index(options.predictions).class_names
    results = read_results(options.predictions, images)

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray:
        return draw_detections(
            image,
            results[index],
            data.truth.of_image(index) if data.has_boxes else None,
            class_names=class_names,
            score_thr=options.score_thr,
            iou_thr=options.iou_thr,
            max_boxes=options.max_boxes,
        )

    write_figures(images, options, draw)
    if data.has_boxes:
        found = DetectionTable.of_results(results, len(images), len(class_names))
        metrics = evaluate_detections(found, data.truth, iou_thrs=(options.iou_thr,))
        chart = draw_precision_recall(metrics, class_names, title=images.name)
        print(f"Wrote {viz.save_image(options.out / 'precision_recall.png', chart)}")


def show_curves(options: argparse.Namespace) -> None:
    """Draw the training metrics of one or more runs in one chart."""
    runs = {}
    for workdir in options.workdir:
        path = workdir / "metrics.jsonl" if workdir.is_dir() else workdir
        if not path.is_file():
            raise DataError(f"{path} does not exist; give the --workdir of a wsod-jax train run.")
        runs[str(workdir)] = viz.metric_series(read_jsonl(path))
    chart = viz.plot_training(runs, names=options.names, smoothing=options.smoothing)
    print(f"Wrote {viz.save_image(options.out, chart)}")


def show_instances(options: argparse.Namespace) -> None:
    """Draw how many objects of each class the images that show it hold, for one or more data sets."""
    counts, class_names = {}, None
    for data in options.data:
        truth = Voc(root=data).annotated_boxes(options.split)
        if class_names not in (None, truth.class_names):
            raise DataError(
                f"{data} has the classes {truth.class_names}, but {options.data[0]} has {class_names}; "
                "draw them in two charts."
            )
        class_names = truth.class_names
        table = GroundTruth.from_annotations(truth.boxes.values(), num_classes=len(class_names))
        counts[f"{data.name} {options.split}"] = table.counts()
    title = next(iter(counts)) if len(counts) == 1 else ""
    chart = viz.plot_instances(counts, class_names, title=title)
    print(f"Wrote {viz.save_image(options.out, chart)}")
