"""Detections and ground truth as flat NumPy tables: what every evaluator reads.

One row is one box. Rows name their image by its position in the evaluated set, so an image without any
row is still counted, and nothing is rounded on the way from the network to the score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.ops.boxes import box_area
from wsod_jax.ops.masks import mask_areas, mask_to_rle, tight_box
from wsod_jax.types import ImageResult, Mask


def _column(value, dtype, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return `value` as an array of `dtype`, raising `DataError` where its shape is not `shape`."""
    array = np.asarray(value, dtype)
    if array.size == 0:
        array = array.reshape((0, *shape[1:]))
    if array.ndim != len(shape) or array.shape[1:] != shape[1:] or array.shape[0] != shape[0]:
        raise DataError(
            f"{name} has shape {array.shape}, needed {shape}: one row per box, boxes as x1 y1 x2 y2"
        )
    return array


def _check_range(values: np.ndarray, limit: int, name: str) -> None:
    """Raise `DataError` where an index lies outside [0, limit)."""
    wrong = (values < 0) | (values >= limit)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{name} of row {row} is {int(values[row])}, allowed 0 to {limit - 1}; "
            "give the table the image set and the classes that the boxes were made with"
        )


Region = Literal["boxes", "masks"]  # what is compared: IoU of boxes, or of masks
Rle = dict[str, Any]  # a mask as COCO's compressed run-length encoding, see `ops.masks`
_DTYPES = {
    "image_index": np.int32,
    "classes": np.int32,
    "scores": np.float32,
    "boxes": np.float32,
    "difficult": bool,
    "areas": np.float32,
    "crowd": bool,
}


class ImageObjects(Protocol):
    """The annotated objects of one image, as the readers of data sets return them."""

    boxes: np.ndarray  # [n, 4] xyxy, pixels of the original image
    classes: np.ndarray  # [n]
    difficult: np.ndarray  # [n]
    areas: np.ndarray | None  # [n]; `None` where they are those of the boxes
    crowd: np.ndarray | None  # [n]; `None` where there are no crowds


class ImageMasks(Protocol):
    """The annotated masks of one image, as the readers of data sets return them."""

    masks: Sequence[Mask]
    classes: np.ndarray  # [n]
    ignore: np.ndarray  # [n]: crowds and difficult objects
    crowd: np.ndarray  # [n]
    areas: np.ndarray  # [n]


class _Rows:
    """What both tables have alike."""

    def __len__(self) -> int:
        return len(self.classes)

    def _columns(self) -> list[str]:
        return [name for name in _DTYPES if hasattr(self, name)]

    def _check(self, name: str) -> None:
        """Give every column its type; raise `DataError` for other lengths and indices outside the set."""
        if self.masks is not None:
            object.__setattr__(self, "masks", tuple(self.masks))
            if len(self.masks) != len(self):
                raise DataError(
                    f"{name} has {len(self.masks)} masks for {len(self)} boxes; needed one per box, or none"
                )
        for column in self._columns():
            shape = (len(self), 4) if column == "boxes" else (len(self),)
            value = _column(getattr(self, column), _DTYPES[column], shape, f"{name} {column}")
            object.__setattr__(self, column, value)
        _check_range(self.image_index, self.num_images, f"image_index of {name}")
        _check_range(self.classes, self.num_classes, f"class of {name}")

    def take(self, rows: np.ndarray) -> Self:
        """Return the table of these rows (indices or a bool mask); `num_images` stays."""
        columns = {name: getattr(self, name)[rows] for name in self._columns()}
        masks = self.masks and tuple(self.masks[i] for i in np.arange(len(self))[rows])
        return dataclasses.replace(self, **columns, masks=masks)

    def of_image(self, index: int) -> Self:
        """Return the rows of one image, in table order; `num_images` stays."""
        return self.take(np.flatnonzero(self.image_index == index))


@dataclass(frozen=True)
class DetectionTable(_Rows):
    """Scored boxes of a whole image set.

    Attributes:
      image_index: [m] int32, position of the image in the set.
      classes: [m] int32, foreground class, 0-based.
      scores: [m] float32, finite, higher is more confident. Order among equal scores is row order.
      boxes: [m, 4] float32 `xyxy`, pixels of the original image, continuous edges.
      num_images: images in the set, those without a detection included.
      num_classes: foreground classes.
      masks: m RLEs of the whole image, where there are masks.

    Raises:
      DataError: columns of different length, indices outside the set, or values that are not finite.
    """

    image_index: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    num_images: int
    num_classes: int
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self):
        self._check("detections")
        for name in ("scores", "boxes"):
            finite = np.isfinite(np.atleast_2d(getattr(self, name).T)).all(axis=0)
            if not finite.all():
                row = int(np.argmin(finite))
                raise DataError(
                    f"detections.{name} of row {row} is {getattr(self, name)[row]}; scores and boxes must be "
                    "finite. Look for a diverged checkpoint or a damaged predictions file"
                )

    @classmethod
    def from_images(
        cls,
        found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        *,
        num_classes: int,
    ) -> DetectionTable:
        """Return the table of boxes [n, 4], scores [n] and classes [n] of every image, in their order."""
        counts = [len(scores) for _, scores, _ in found]
        found = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32)), *found]
        boxes, scores, classes = (np.concatenate(column) for column in zip(*found, strict=True))
        return cls(
            image_index=np.repeat(np.arange(len(counts)), counts),
            classes=classes,
            scores=scores,
            boxes=boxes,
            num_images=len(counts),
            num_classes=num_classes,
        )

    @classmethod
    def of_results(
        cls, results: Iterable[ImageResult], num_images: int, num_classes: int
    ) -> DetectionTable:
        """Return the boxes of results in any order, for a set of `num_images` images."""
        found = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32))] * num_images
        for result in results:
            if result.boxes is not None:
                found[result.image_index] = result.boxes, result.scores, result.classes
        return cls.from_images(found, num_classes=num_classes)


@dataclass(frozen=True)
class GroundTruth(_Rows):
    """Ground-truth boxes of a whole image set. Evaluation and figures read it; training never does.

    Attributes:
      image_index: [n] int32, position of the image in the set.
      classes: [n] int32, foreground class, 0-based.
      boxes: [n, 4] float32 `xyxy`, pixels of the original image, continuous edges.
      difficult: [n] bool, neither hit nor miss for AP (VOC's difficult objects; COCO's crowds).
      num_images: images in the set, those without an object included.
      num_classes: foreground classes.
      areas: [n] float32 object area in square pixels where it is known (COCO: of the mask), else of the mask or box.
      crowd: [n] bool, COCO's crowd regions; only `coco_metrics` treats them apart from `difficult`.
      masks: n RLEs of the whole image, where objects are annotated by masks.
    """

    image_index: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray
    num_images: int
    num_classes: int
    areas: np.ndarray | None = None
    crowd: np.ndarray | None = None
    masks: tuple[Rle, ...] | None = None

    def __post_init__(self):
        areas, crowd = self.areas, self.crowd
        if areas is None:
            boxes = _column(self.boxes, np.float32, (len(self), 4), "ground truth boxes")
            areas = box_area(boxes) if self.masks is None else mask_areas(self.masks)
        object.__setattr__(self, "areas", areas)
        object.__setattr__(self, "crowd", np.zeros(len(self), bool) if crowd is None else crowd)
        self._check("ground truth")

    @classmethod
    def from_images(
        cls,
        boxes: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
        difficult: Sequence[np.ndarray] | None = None,
        *,
        num_classes: int,
    ) -> GroundTruth:
        """Return the table of per-image lists.

        Args:
          boxes: per image [n, 4], `xyxy` original pixels; empty for an image without objects.
          classes: per image [n] int.
          difficult: per image [n] bool; all False if not given.
          num_classes: foreground classes.
        """
        counts = [len(of_image) for of_image in classes]
        if difficult is None:
            difficult = [np.zeros(count, bool) for count in counts]
        parts = [np.asarray(part, np.float32).reshape(-1, 4) for part in boxes]
        return cls(
            image_index=np.repeat(np.arange(len(counts)), counts),
            classes=np.concatenate([np.zeros(0, np.int32), *classes]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *parts]),
            difficult=np.concatenate([np.zeros(0, bool), *difficult]),
            num_images=len(counts),
            num_classes=num_classes,
        )

    @classmethod
    def from_annotations(cls, objects: Iterable[ImageObjects], *, num_classes: int) -> GroundTruth:
        """Return the table of annotated images, in the order given.

        Args:
          objects: one per image, in the order of the image set: `annotated_boxes.select(ids).boxes.values()`.
          num_classes: foreground classes.
        """
        objects = list(objects)
        table = cls.from_images(
            [of_image.boxes for of_image in objects],
            [of_image.classes for of_image in objects],
            [of_image.difficult for of_image in objects],
            num_classes=num_classes,
        )
        known = {
            name: np.concatenate([getattr(of_image, name) for of_image in objects])
            for name in ("areas", "crowd")
            if objects and all(getattr(of_image, name) is not None for of_image in objects)
        }
        return dataclasses.replace(table, **known)

    @classmethod
    def from_instances(
        cls, images: Sequence[tuple[tuple[int, int], ImageMasks]], *, num_classes: int
    ) -> GroundTruth:
        """Return the table of annotated masks; (height, width) and masks of every image."""
        rows = [(i, size, m) for i, (size, masks) in enumerate(images) for m in masks.masks]
        columns = {
            name: np.concatenate([np.zeros(0), *(getattr(masks, name) for _, masks in images)])
            for name in ("classes", "ignore", "areas", "crowd")
        }
        return cls(
            image_index=[i for i, *_ in rows],
            classes=columns["classes"],
            boxes=[tight_box(mask) for *_, mask in rows],
            difficult=columns["ignore"],
            num_images=len(images),
            num_classes=num_classes,
            areas=columns["areas"],
            crowd=columns["crowd"],
            masks=tuple(mask_to_rle(mask, size) for _, size, mask in rows),
        )

    def rows_by_image(self) -> list[np.ndarray]:
        """Return per image the rows of its objects, in table order."""
        order = np.argsort(self.image_index, kind="stable")
        first = np.searchsorted(self.image_index[order], np.arange(1, self.num_images))
        return np.split(order, first) if self.num_images else []

    def present(self, *, include_difficult: bool = True) -> np.ndarray:
        """Return [n, c] bool: image n holds an object of class c."""
        return self.counts(include_difficult=include_difficult) > 0

    def counts(self, *, include_difficult: bool = True) -> np.ndarray:
        """Return [n, c] int: objects of class c in image n."""
        table = np.zeros((self.num_images, self.num_classes), np.int64)
        rows = np.ones(len(self), bool) if include_difficult else ~self.difficult
        np.add.at(table, (self.image_index[rows], self.classes[rows]), 1)
        return table


def checked_sizes(image_sizes: np.ndarray, num_images: int) -> np.ndarray:
    """Return image sizes as [n, 2] int64 (height, width), raising `DataError` where they are none."""
    sizes = np.asarray(image_sizes, np.int64)
    if sizes.size == 0:
        sizes = sizes.reshape(-1, 2)
    if sizes.shape != (num_images, 2) or (sizes < 1).any():
        raise DataError(
            f"image sizes of shape {sizes.shape}, smallest side {sizes.min(initial=1)}; needed: "
            f"({num_images}, 2), (height, width) of every image of the set, in pixels"
        )
    return sizes


def check_same_set(detections: DetectionTable, truth: GroundTruth, region: Region) -> None:
    """Raise `DataError` unless both tables are of one image set and have what is compared.

    Args:
      region: "masks" needs masks in both tables, of one size per image.
    """
    if (detections.num_images, detections.num_classes) != (truth.num_images, truth.num_classes):
        raise DataError(
            f"detections cover {detections.num_images} images and {detections.num_classes} classes, ground truth "
            f"{truth.num_images} and {truth.num_classes}; evaluate on the image set that was predicted"
        )
    if region == "boxes":
        return
    for name, table in (("detections", detections), ("ground truth", truth)):
        if table.masks is None and len(table):
            raise DataError(f"{name}: there are no masks to compare; evaluate boxes, or give masks")
    sizes: dict[int, tuple[int, int]] = {}
    for table in (truth, detections):
        for image, mask in zip(table.image_index.tolist(), table.masks or (), strict=True):
            size = tuple(mask["size"])
            if sizes.setdefault(image, size) != size:
                raise DataError(
                    f"image {image} has masks of (height, width) {sizes[image]} and {size}; needed: masks of the "
                    "image's own size"
                )
