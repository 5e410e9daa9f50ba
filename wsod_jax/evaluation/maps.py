"""From the maps of a method without proposals to points and boxes of its classes, in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from wsod_jax.ops.cam import BoxMode, Resizing, cam_point, map_boxes, resize_map
from wsod_jax.ops.nms import greedy_nms
from wsod_jax.types import ActivationMaps, Batch

Boxes = tuple[np.ndarray, np.ndarray]  # [n, 4] float32 and scores [n] float32


@dataclass(frozen=True)
class MapReading:
    """How maps are read.

    Attributes:
      upsampling: from cells to the pixels of the image, see `ops.cam.resize_map`.
      threshold: a pixel is foreground where R_c >= threshold · mean(R_c).
      connectivity: of the pixels of one component, 4 or 8.
      boxes: a class's detections: the "tightest" box around all of its foreground, or one for each of its "components".
      nms_thr, min_side_px: where components of several views or detectors join, boxes with an IoU > nms_thr to a better
        one, a side < min_side_px, or a score <= 0 are left out.
      is_nms_first: NMS sees the small boxes too.
      predicted_thr: a class is predicted where its image score exceeds this; `None`: the best class alone is predicted.
      num_best: number of an image's best-scored classes that are read even if they are not predicted.
      separate_views: components come from every view by itself instead of the mean over views.
    """

    upsampling: Resizing = "align_corners"
    threshold: float = 1.0
    connectivity: Literal[4, 8] = 4
    boxes: BoxMode = "tightest"
    nms_thr: float = 0.7
    min_side_px: float = 50.0
    is_nms_first: bool = False
    predicted_thr: float | None = 0.5
    num_best: int = 0
    separate_views: bool = False

    def predicted(self, image_scores: np.ndarray) -> np.ndarray:
        """Return which classes scores [c] say are present, [c] bool; of equal best ones the lowest index."""
        if self.predicted_thr is None:
            return np.arange(len(image_scores)) == np.argmax(image_scores)
        return image_scores > self.predicted_thr


@dataclass(frozen=True)
class ViewMaps:
    """One view's maps, valid cells only and turned back where the view was mirrored; units as in
    `types.ActivationMaps`.

    Attributes:
      cams: [h, w, k] float32, of the classes read; h and w may be 0.
      proposal_map: [h', w'] float32.
      size_px: (height, width) of the view in network pixels.
      mirrored: the network saw the view mirrored left-right: its first column is the last one here.
    """

    cams: np.ndarray
    proposal_map: np.ndarray
    size_px: tuple[int, int]
    mirrored: bool = False


@dataclass(frozen=True, eq=False)
class ImageMaps:
    """The maps of one image and what is read off them; a class is read once, its maps at image size are not kept.

    Attributes:
      views: of the image.
      classes: [k] ascending, the classes whose activations are there.
      predicted: [c] bool, the classes predicted to be present; none in an image smaller than a cell, where the bias
        alone speaks.
      size: (height, width) of the original image.
      reading: how maps are read.
      others: the same image's maps of further detectors, whose components join these.
    """

    views: tuple[ViewMaps, ...]
    classes: np.ndarray
    predicted: np.ndarray
    size: tuple[int, int]
    reading: MapReading
    others: tuple[ImageMaps, ...] = ()
    _read: dict = field(default_factory=dict, repr=False)

    @property
    def is_too_small(self) -> bool:
        """Whether the image is smaller than one cell of every view's map."""
        return all(0 in view.cams.shape[:2] for view in self.views)

    def view_cams(self, c: int) -> list[np.ndarray]:
        """Return every view's activation [H, W] to a class that was read, in pixels of the image."""
        k = int(np.searchsorted(self.classes, c))
        if k == len(self.classes) or self.classes[k] != c:
            raise KeyError(f"class {c} was not read of this image; {self.classes} were")
        how = self.reading.upsampling
        return [resize_map(view.cams[..., k], *self.size, how) for view in self.views]

    def cam(self, c: int) -> np.ndarray:
        """Return the activation [H, W] to a class, the mean over views."""
        return np.mean(self.view_cams(c), axis=0)

    def objectness(self) -> np.ndarray:
        """Return the proposal map [H, W], the mean over views."""
        maps = [
            resize_map(view.proposal_map, *self.size, self.reading.upsampling)
            for view in self.views
        ]
        return np.mean(maps, axis=0)

    def point(self, c: int) -> tuple[float, float]:
        """Return (x, y) of the strongest activation to a class."""
        return self._of_class(c)[0]

    def tightest(self, c: int) -> Boxes:
        """Return the box [1, 4] around all foreground of a class, and its score [1]."""
        return self._of_class(c)[1]

    def components(self, c: int) -> Boxes:
        """Return a box for each component of a class's foreground, of all views and detectors that join."""
        parts = [part for maps in (self, *self.others) for part in maps._of_class(c)[2]]
        if len(parts) == 1:
            return parts[0]
        reading = self.reading
        return joined(
            parts,
            nms_thr=reading.nms_thr,
            min_side_px=reading.min_side_px,
            is_nms_first=reading.is_nms_first,
        )

    def _of_class(self, c: int) -> tuple[tuple[float, float], Boxes, list[Boxes]]:
        """Return point, tightest box, and components of every view or of their mean; read once."""
        if c not in self._read:
            views = self.view_cams(c)
            mean = np.mean(views, axis=0)
            parts = views if self.reading.separate_views else [mean]
            components = [self._boxes(part, "components") for part in parts]
            self._read[c] = cam_point(mean), self._boxes(mean, "tightest"), components
        return self._read[c]

    def detections(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes [n, 4], scores [n] and classes [n] of the predicted classes, the best first."""
        found = [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))]
        classes = [np.zeros(0, np.int32)]
        for c in np.flatnonzero(self.predicted):
            found.append(
                self.components(c) if self.reading.boxes == "components" else self.tightest(c)
            )
            classes.append(np.full(len(found[-1][1]), c, np.int32))
        boxes, scores = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(-scores, kind="stable")
        return boxes[order], scores[order], np.concatenate(classes)[order]

    def _boxes(self, cam: np.ndarray, mode: BoxMode) -> Boxes:
        reading = self.reading
        return map_boxes(cam, mode, factor=reading.threshold, connectivity=reading.connectivity)


def image_maps(
    views: Sequence[tuple[ActivationMaps, Batch]],
    b: int,
    size: tuple[int, int],
    image_scores: np.ndarray,
    asked: np.ndarray | None,
    reading: MapReading,
) -> ImageMaps:
    """Return the maps of one image, activations of the classes that are read.

    Args:
      views: `types.ActivationMaps` as NumPy, and the batch, of each view.
      b: which row of the batches the image is.
      size: (height, width) of the original image.
      image_scores: [c].
      asked: [c] bool, classes to read besides the predicted ones.
      reading: how maps are read.
    """
    is_too_small = all(0 in maps.size[b] for maps, _ in views)
    predicted = reading.predicted(image_scores) & (not is_too_small)
    read = predicted if asked is None else predicted | asked
    read = read | np.isin(
        np.arange(len(read)), np.argsort(-image_scores, kind="stable")[: reading.num_best]
    )
    classes = np.flatnonzero(read)
    cut = []
    for maps, batch in views:
        mirrored = bool(batch.views.flipped[b])
        step = -1 if mirrored else 1
        height, width = maps.size[b]
        rows, columns = maps.proposal_size[b]
        cams = maps.cams[b, :height, :width][:, ::step][..., classes]
        proposal_map = maps.proposal_map[b, :rows, :columns][:, ::step]
        view_size = tuple(np.asarray(batch.image_size[b]).tolist())
        cut.append(ViewMaps(cams, proposal_map, view_size, mirrored))
    return ImageMaps(tuple(cut), classes, predicted, size, reading)


def joined(
    parts: list[Boxes], *, nms_thr: float, min_side_px: float, is_nms_first: bool = False
) -> Boxes:
    """Join boxes of one class that several views or detectors found: drop weak and small ones, then suppress overlaps.

    Weak boxes suppress nothing, small ones only if `is_nms_first`; an image may end up without any box.

    Args:
      parts: boxes and scores on one scale.
      nms_thr: a box is removed by a better kept one with IoU > this.
      min_side_px: keep boxes whose width and height both are >= this; 0 keeps all. Kept scores are > 0.
      is_nms_first: drop small boxes after NMS.

    Returns:
      boxes [n, 4] and scores [n], the best first.

    Ties: equal scores rank by part, then by row.
    Source: Zhu et al. 2017 (SPN): the released notebook for VOC joins three models so (0.7, 50 pixels), NMS first.
    """
    boxes, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
    is_large = (sides >= min_side_px).all(axis=1)
    passed = np.flatnonzero((scores > 0) & (is_large | is_nms_first))
    order = passed[np.argsort(-scores[passed], kind="stable")]
    kept = order[greedy_nms(boxes[order], iou_thr=nms_thr)]
    kept = kept[is_large[kept]]
    return boxes[kept], scores[kept]
