"""Recall of proposals: an upper bound for any detector that selects among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import AnnotatedBoxes
from wsod_jax.ops.boxes import pairwise_iou


@dataclass(frozen=True)
class RecallReport:
    """Coverage of the objects that are not marked difficult.

    Attributes:
      class_names: c names.
      best_iou: one [n] float32 array per class, each object's highest IoU with a proposal of its image.
      mean_count: proposals per image.
      num_images: images with proposals and ground truth.
      num_missing: images with ground truth but no proposals, whose objects are not counted.
    """

    class_names: tuple[str, ...]
    best_iou: tuple[np.ndarray, ...]
    mean_count: float
    num_images: int
    num_missing: int

    def recall(self, iou_thr: float, class_index: int | None = None) -> float:
        """Return the fraction of objects with a proposal of IoU >= `iou_thr`; NaN without objects."""
        values = self._values(class_index)
        return float((values >= iou_thr).mean()) if len(values) else float("nan")

    def average_best_overlap(self, class_index: int | None = None) -> float:
        """Return the mean over objects of their best IoU; NaN without objects."""
        values = self._values(class_index)
        return float(values.mean()) if len(values) else float("nan")

    @property
    def left_out(self) -> str:
        """Text about annotated images without proposals; empty if there are none."""
        if not self.num_missing:
            return ""
        return f"; {self.num_missing} annotated images have no proposals and are not counted"

    def _values(self, class_index: int | None) -> np.ndarray:
        return np.concatenate(self.best_iou) if class_index is None else self.best_iou[class_index]

    def table(self, iou_thrs: Sequence[float] = (0.5, 0.7)) -> str:
        """Return the report as lines of text, one per class and one for all objects."""
        width = max(map(len, (*self.class_names, "all")))
        columns = [f"recall@{t:g}" for t in iou_thrs]
        lines = [
            " ".join([f"{'class':{width}s}", " objects", *(f"{c:>10s}" for c in columns), "   ABO"])
        ]
        for index, name in [*enumerate(self.class_names), (None, "all")]:
            recalls = (f"{100 * self.recall(t, index):9.1f}%" for t in iou_thrs)
            overlap = 100 * self.average_best_overlap(index)
            count = len(self._values(index))
            lines.append(
                " ".join([f"{name:{width}s}", f"{count:8d}", *recalls, f"{overlap:5.1f}%"])
            )
        lines.append(
            f"{self.mean_count:.0f} proposals per image on {self.num_images} images{self.left_out}"
        )
        return "\n".join(lines)


def measure_recall(
    proposals: ProposalSet, annotated_boxes: AnnotatedBoxes, max_count: int | None = None
) -> RecallReport:
    """Compare proposals with the annotated boxes of images that have both; difficult objects are not counted.

    Args:
      proposals: their boxes.
      annotated_boxes: the objects.
      max_count: the most proposals per image: the best-scored ones, or the first ones of a file without scores;
        `None` for all.

    Ties: of equal scores the earlier rows are used.
    """
    best = [[] for _ in annotated_boxes.class_names]
    common = [i for i in annotated_boxes.boxes if i in proposals]
    counts = []
    for image_id in common:
        objects = annotated_boxes.boxes[image_id]
        boxes = _best(proposals, image_id, max_count)
        counts.append(len(boxes))
        overlaps = pairwise_iou(objects.boxes, boxes).max(axis=1, initial=0.0)
        for overlap, index, difficult in zip(
            overlaps, objects.classes, objects.difficult, strict=True
        ):
            if not difficult:
                best[index].append(overlap)
    return RecallReport(
        class_names=annotated_boxes.class_names,
        best_iou=tuple(np.array(values, np.float32) for values in best),
        mean_count=float(np.mean(counts)) if counts else 0.0,
        num_images=len(common),
        num_missing=len(annotated_boxes) - len(common),
    )


def _best(proposals: ProposalSet, image_id: str, max_count: int | None) -> np.ndarray:
    """Return an image's boxes, at most `max_count` of them."""
    boxes, scores = proposals.get(image_id), proposals.get_scores(image_id)
    if max_count is None or len(boxes) <= max_count:
        return boxes
    order = np.arange(len(boxes)) if scores is None else np.argsort(-scores, kind="stable")
    return boxes[order[:max_count]]


def recall_by_count(
    files: Mapping[str, ProposalSet],
    annotated_boxes: AnnotatedBoxes,
    counts: Sequence[int] = (100, 300, 1000),
) -> str:
    """Return a table of the recall of several files by the number of boxes per image.

    Args:
      files: name -> proposals.
      annotated_boxes: the objects.
      counts: the most boxes per image, see `measure_recall`; every file has a last row with all of its boxes.
    """
    width = max(map(len, (*files, "file")))
    lines = [f"{'file':{width}s}  at most  per image  recall@0.5  recall@0.7    ABO"]
    for name, proposals in files.items():
        for count in (*(c for c in counts if c < proposals.max_count), None):
            report = measure_recall(proposals, annotated_boxes, count)
            limit = "all" if count is None else f"{count}"
            lines.append(
                f"{name:{width}s}  {limit:>7s}  {report.mean_count:9.0f}  {100 * report.recall(0.5):9.1f}%  "
                f"{100 * report.recall(0.7):9.1f}%  {100 * report.average_best_overlap():4.1f}%{report.left_out}"
            )
    return "\n".join(lines)
