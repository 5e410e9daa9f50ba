"""Quality of a run's pseudo boxes over training, measured with annotated boxes that training does not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from wsod_jax.analysis.mining import MinedImage, MiningRun
from wsod_jax.evaluation.metrics.corloc import BoxQuality, box_quality
from wsod_jax.evaluation.metrics.tables import DetectionTable
from wsod_jax.evaluation.report import markdown_table
from wsod_jax.runs.annotated_images import truth_table

KINDS = ("cores", "nodes")


def pseudo_quality(run: MiningRun, positions: Sequence[int]) -> dict[str, BoxQuality]:
    """Compare the boxes that a checkpoint's last stage mines in some training images with the annotated objects.

    Args:
      run: of a training set with annotated boxes.
      positions: of the images in the training set.

    Returns:
      "cores" and "nodes" (all further instances) -> their quality; without the kinds that were not mined.

    Raises:
      ConfigError: if the training set has no boxes.
    """
    mined = run.mine(positions)
    images = run.data.image_set.select(list(mined))
    truth = truth_table(images, run.objects())
    found = {}
    for kind in KINDS:
        boxes = _boxes(list(mined.values()), kind, len(images.class_names))
        if len(boxes):
            found[kind] = box_quality(boxes, truth)
    return found


def quality_table(found: Mapping[tuple[str, int], Mapping[str, BoxQuality]]) -> str:
    """Return (run, step) -> `pseudo_quality` as a Markdown table; shares in percent."""
    columns = ("per image", "precision", "recall", "size")
    head = ["run, step"] + [f"{kind}: {column}" for kind in KINDS for column in columns]
    rows = [
        [f"{run}, {step}", *(cell for kind in KINDS for cell in _cells(kinds.get(kind)))]
        for (run, step), kinds in found.items()
    ]
    return markdown_table(head, rows)


def _cells(quality: BoxQuality | None) -> list[str]:
    if quality is None:
        return [""] * 4
    shares = (quality.precision, quality.recall, quality.size_ratio)
    return [f"{quality.boxes_per_image:.1f}", *(f"{100 * share:.0f} %" for share in shares)]


def _boxes(images: Sequence[MinedImage], kind: str, num_classes: int) -> DetectionTable:
    """Return the pseudo boxes of one kind, in pixels of the original images."""
    index, classes, scores, boxes = [], [], [], [np.zeros((0, 4), np.float32)]
    for number, image in enumerate(images):
        pseudo = jax.tree.map(lambda x: x[-1], image.mined.pseudo)
        rows = np.flatnonzero(pseudo.mask & (pseudo.is_seed == (kind == "cores")))
        index += [number] * len(rows)
        classes += pseudo.classes[rows].tolist()
        scores += pseudo.scores[rows].tolist()
        boxes.append(image.original(pseudo.boxes[rows]))
    return DetectionTable(
        index, classes, scores, np.concatenate(boxes), len(images), num_classes=num_classes
    )
