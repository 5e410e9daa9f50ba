"""Reader of the MS COCO layout, for any release or data set in that form.

    <root>/annotations/instances_<split>.json   <root>/<split>/<file_name>  (or <root>/images/<split>/)

Other paths are options: COCO's test splits come without annotations, as annotations/image_info_<split>.json. Keys
that are not COCO's, such as `score` of a pseudo box, are ignored. Classes are the file's categories in the order of
their ids, which may have gaps (COCO's 80 are in 1..90). Its boxes (x, y, width, height), 0-based with continuous edges,
become (x, y, x + width, y + height).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from wsod_jax.data.images import image_size
from wsod_jax.data.readers.coco_json import CocoFile, CocoImage
from wsod_jax.data.readers.reader import InstanceReader, LeftOut, frame_scale
from wsod_jax.data.readers.voc import DifficultRule, difficult_label
from wsod_jax.data.records import (
    AnnotatedBoxes,
    BoxAnnotations,
    ImageInstances,
    ImageRecord,
    ImageSet,
)
from wsod_jax.errors import DataError
from wsod_jax.ops.masks import decode_mask, has_mask
from wsod_jax.options import Mark


@dataclass(frozen=True, kw_only=True)
class Coco(InstanceReader):
    """A data set in COCO layout.

    Attributes:
      root: the data set's folder.
      annotations: path of a split's file in `root`; {split} is replaced by the split's name.
      image_folder: path of a split's images, likewise; by default "{split}" or "images/{split}".
      crowd: the label of a class if an image has only crowd regions of it: "drop" 0, absent; "ignore" -1, unknown;
        "keep" 1, present.
    """

    root: Annotated[str | Path, Mark.LOCATION]
    annotations: Annotated[str, Mark.LOCATION] = "annotations/instances_{split}.json"
    image_folder: Annotated[str | None, Mark.LOCATION] = None
    train_split: str = "train2014"
    test_split: str = "val2014"
    crowd: DifficultRule = "drop"

    def __post_init__(self):
        super().__post_init__()
        difficult_label(self.crowd)

    def images(self, split: str) -> ImageSet:
        """Read a split's images and their image-level labels, without boxes.

        A file without the key "annotations", like those of COCO's test splits, is read without labels: every label is
        -1, unknown, and `counts["no_annotation"]` is the number of such images.

        Args:
          split: like "train2014"; names the file of annotations and the folder of images.

        Returns:
          The images in the order of the file; an id is `file_name` without suffix, `number` and `category_ids` are the
          file's ids. `counts["no_object"]` images have no annotation, which is legal: all their labels are 0.
          `counts["crowd_only"]` classes of images have only crowds.

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        if_crowd = difficult_label(self.crowd)
        annotations, folder = self._read(split), self._image_folder(split)
        counts, records = Counter(bad_image=0, no_object=0, crowd_only=0, no_annotation=0), []
        left_out = LeftOut(self.on_bad)
        known = annotations.objects is not None
        for number, size in annotations.file_sizes(folder):
            image = annotations.images[number]
            if isinstance(size, DataError):
                left_out.add(image.image_id, size)
                continue
            present: dict[int, bool] = {}  # class -> whether there is a single object of it
            for item in annotations.objects[number] if known else ():
                index = annotations.class_index[item["category_id"]]
                present[index] = present.get(index, False) or not item["iscrowd"]
            labels = [0 if known else -1] * len(annotations.class_names)
            for index, single in present.items():
                labels[index] = 1 if single else if_crowd
                counts["crowd_only"] += not single
            counts["no_object" if known else "no_annotation"] += not present
            path = folder / image.file_name
            records.append(ImageRecord(image.image_id, path, *size, tuple(labels), number))
        name, missing = f"coco {split}", tuple(left_out.ids)
        left_out.finish(name, len(records), counts)
        category_ids = tuple(annotations.class_index)
        names = annotations.class_names
        return ImageSet(name, names, tuple(records), dict(counts), category_ids, missing)

    def annotated_boxes(self, split: str) -> AnnotatedBoxes:
        """Read the boxes of a split, for evaluation.

        Boxes that extend outside their image are clipped (`counts["clipped"]`); those without area or with
        unreadable coordinates are dropped (`counts["dropped"]`). If the size in the JSON differs from the image's,
        boxes are scaled (`counts["scaled"]` images); an image of another aspect is left out as bad. Image files are
        not required.

        Args:
          split: as in `images`.

        Returns:
          Boxes of every image of the split. Crowd regions are included, marked as difficult and as crowd; areas
          are the annotated ones, of the mask, or of the box if the file has none.

        Raises:
          DataError: if the JSON is missing or invalid, or has no annotations; see `on_bad`.
        """
        annotations = self._read(split)
        if annotations.objects is None:
            raise DataError(
                f"{annotations.path}: has no 'annotations', so there are no boxes; such a split can only be "
                "predicted, not evaluated or trained on."
            )
        counts = Counter(bad_image=0, clipped=0, dropped=0, scaled=0)
        boxes, left_out = {}, LeftOut(self.on_bad)
        for number, size in annotations.file_sizes(self._image_folder(split, needed=False)):
            image, objects = annotations.images[number], annotations.objects[number]
            try:
                boxes[image.image_id] = _boxes(
                    annotations,
                    image,
                    objects,
                    None if isinstance(size, DataError) else size,
                    counts,
                )
            except DataError as error:
                left_out.add(image.image_id, error)
        left_out.finish(f"ground truth of {split} in {self.root}", len(boxes), counts)
        return AnnotatedBoxes(annotations.class_names, boxes, dict(counts))

    def instances(self, split: str) -> dict[str, Callable[[], ImageInstances]]:
        """Return readers of the masks of a split, for evaluation; masks are decoded only when needed.

        An annotation without segmentation, or whose polygons all have fewer than three corners, has no mask: it is left
        out and counted (`ImageInstances.num_without`). Image files are not required.

        Args:
          split: as in `images`.

        Returns:
          Image id -> a function that decodes the masks of that image, in the order of the file; for every image if
          the file has annotations, else empty. Crowd regions are marked as ignored and as crowd. The function raises
          `DataError`, naming the annotation, for an invalid segmentation or one of another size than the image.

        Raises:
          DataError: if the JSON is missing or invalid.
        """
        annotations = self._read(split)
        if annotations.objects is None:
            return {}
        folder = self._image_folder(split, needed=False)
        return {
            image.image_id: functools.partial(
                _instances, annotations, image, folder, annotations.objects[number]
            )
            for number, image in annotations.images.items()
        }

    def _read(self, split: str) -> CocoFile:
        path = Path(self.root) / self.annotations.replace("{split}", split)
        if not path.is_file():
            before, _, after = Path(self.annotations).name.partition("{split}")
            names = [file.name for file in path.parent.glob(f"{before}*{after}")]
            found = sorted(name.removeprefix(before).removesuffix(after) for name in names)
            raise DataError(f"{path}: no such file; splits found: {', '.join(found) or 'none'}.")
        return CocoFile.read(path, self._image_folder(split, needed=False))

    def _image_folder(self, split: str, *, needed: bool = True) -> Path:
        patterns = [self.image_folder] if self.image_folder else ["{split}", "images/{split}"]
        folders = [Path(self.root) / pattern.replace("{split}", split) for pattern in patterns]
        for folder in folders:
            if folder.is_dir():
                return folder
        if needed:
            raise DataError(f"no folder of images; tried {' and '.join(map(str, folders))}.")
        return folders[0]


def _boxes(
    annotations: CocoFile,
    image: CocoImage,
    objects: list[dict[str, Any]],
    size: tuple[int, int] | None,
    counts: dict[str, int],
) -> BoxAnnotations:
    """Return the objects of an image, scaled and clipped to the `size` of its file."""
    where = f"{annotations.path}: image {image.file_name}"
    scale_x, scale_y = frame_scale(image.size, size, where)
    counts["scaled"] += (scale_x, scale_y) != (1.0, 1.0)
    height, width = size or image.size or (math.inf, math.inf)
    corners, classes, crowd, areas = [], [], [], []
    for item in objects:
        try:
            bbox = item.get("bbox")
            x, y, w, h = map(float, bbox if isinstance(bbox, list) else ())
        except (TypeError, ValueError, OverflowError):
            x = y = w = h = math.nan
        box = (x * scale_x, y * scale_y, (x + w) * scale_x, (y + h) * scale_y)
        inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height))
        if not all(map(math.isfinite, box)) or inside[2] <= inside[0] or inside[3] <= inside[1]:
            counts["dropped"] += 1
            continue
        counts["clipped"] += inside != box
        corners.append(inside)
        classes.append(annotations.class_index[item["category_id"]])
        crowd.append(bool(item["iscrowd"]))
        area = (inside[2] - inside[0]) * (inside[3] - inside[1])
        areas.append(_area(item, area, scale_x * scale_y))
    return BoxAnnotations.from_lists(corners, classes, crowd, areas=areas, crowd=crowd)


def _instances(
    annotations: CocoFile, image: CocoImage, folder: Path, objects: list[dict[str, Any]]
) -> ImageInstances:
    """Decode the masks of one image."""
    where, size = f"{annotations.path}: image {image.file_name}", image.size
    if size is None or (folder / image.file_name).is_file():
        found = image_size(folder / image.file_name)
        if size not in (None, found):
            raise DataError(
                f"{where}: masks are annotated at (height, width) {size}, but the image has {found}; masks are not "
                "scaled. Resize the image, or annotate it again."
            )
        size = found
    annotated, objects = objects, [i for i in objects if has_mask(i.get("segmentation"))]
    masks = tuple(
        decode_mask(item["segmentation"], size, f"{annotations.path}: annotation {item.get('id')}")
        for item in objects
    )
    classes = [annotations.class_index[item["category_id"]] for item in objects]
    crowd = np.array([item["iscrowd"] for item in objects], bool)
    areas = [_area(item, mask.pixels.sum()) for item, mask in zip(objects, masks, strict=True)]
    return ImageInstances(
        masks,
        np.array(classes, np.int32),
        crowd,
        crowd,
        np.array(areas, np.float32),
        num_without=len(annotated) - len(objects),
    )


def _area(item: dict[str, Any], counted: float, scale: float = 1.0) -> float:
    """Return the annotated area times `scale`, in square pixels; `counted` if there is none."""
    area = item.get("area")
    if isinstance(area, int | float) and math.isfinite(area) and area >= 0:
        return float(area) * scale
    return counted
