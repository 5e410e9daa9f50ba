"""Reader of the MS COCO layout, of any release or data set in that form.

    <root>/annotations/instances_<split>.json   <root>/<split>/<file_name>  (or <root>/images/<split>/)

Other places are options: COCO's test splits come without annotations, as annotations/image_info_<split>.json. Keys
that are not COCO's, such as `score` of a pseudo box, are ignored. Classes are the file's categories in the order of
their ids, which may have gaps (COCO's 80 lie in 1..90). Its boxes (x, y, width, height), 0-based with continuous edges,
become (x, y, x + width, y + height).
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np

from wsod_jax.data.images import text_of_name
from wsod_jax.data.readers.reader import InstanceReader, LeftOut, OnBad, check_on_bad, log_counts
from wsod_jax.data.readers.voc import DifficultRule, difficult_label
from wsod_jax.data.records import (
    BoxAnnotations,
    GroundTruth,
    ImageInstances,
    ImageRecord,
    ImageSet,
)
from wsod_jax.errors import DataError
from wsod_jax.ops.masks import decode_mask, has_mask
from wsod_jax.options import Mark

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Coco(InstanceReader):
    """A data set in COCO layout.

    Attributes:
      root: the folder that the next two lie in.
      annotations: the file of a split, whose name stands for {split}.
      image_folder: the folder that the files of a split's images lie in, likewise; by default "{split}" or
        "images/{split}".
      crowd: the label of a class of which an image has crowd regions only, and no single object: "drop" 0,
        absent; "ignore" -1, unknown; "keep" 1, present.
      on_bad: what to do about an image whose file is missing: "skip" leaves it out, logged and counted as
        `bad_image`, and refuses a split that loses more than a tenth that way; "skip_all" leaves out any number;
        "error" raises. A fault in the JSON always raises.
    """

    root: Annotated[str | Path, Mark.LOCATION]
    annotations: Annotated[str, Mark.LOCATION] = "annotations/instances_{split}.json"
    image_folder: Annotated[str | None, Mark.LOCATION] = None
    train_split: str = "train2014"
    test_split: str = "val2014"
    crowd: DifficultRule = "drop"
    on_bad: OnBad = "skip"

    def __post_init__(self):
        difficult_label(self.crowd)
        check_on_bad(self.on_bad)

    def images(self, split: str) -> ImageSet:
        """Read a split's images and their image-level labels; boxes are not looked at.

        A file without the key "annotations", as those of COCO's test splits, is read without labels: every label is
        -1, unknown, and `counts["no_annotation"]` images have none.

        Args:
          split: like "train2014"; names the file of annotations and the folder of images.

        Returns:
          The images in the order of the file; an id is the file's name without suffix, `number` and `category_ids`
          are the file's own ids. Sizes are the file's; an image of another size is found when it is decoded.
          `counts["no_object"]` images have no annotation, which is legal: all their labels are 0.
          `counts["crowd_only"]` classes of images have crowds only.

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        if_crowd = difficult_label(self.crowd)
        annotations = self._read(split)
        present: dict[int, dict[int, bool]] = {number: {} for number in annotations.images}
        for item in annotations.objects or ():
            classes = present[item["image_id"]]
            index = annotations.class_index[item["category_id"]]
            classes[index] = classes.get(index, False) or not item["iscrowd"]
        folder = self._image_folder(split)
        files = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        counts, records = Counter(bad_image=0, no_object=0, crowd_only=0, no_annotation=0), []
        left_out = LeftOut(self.on_bad)
        for number, image in annotations.images.items():
            if image.file_name not in files:
                error = DataError(f"{folder / image.file_name}: no such image file.")
                left_out.add(image.image_id, error)
                continue
            known = annotations.objects is not None
            labels = [0 if known else -1] * len(annotations.class_names)
            for index, single in present[number].items():
                labels[index] = 1 if single else if_crowd
                counts["crowd_only"] += not single
            counts["no_object" if known else "no_annotation"] += not present[number]
            path = folder / image.file_name
            size = (image.height, image.width)
            records.append(ImageRecord(image.image_id, path, *size, tuple(labels), number))
        name, missing = f"coco {split}", tuple(left_out.ids)
        counts["bad_image"] = len(missing)
        log_counts(name, counts)
        left_out.check(name, len(annotations.images))
        if not records:
            raise DataError(f"{name}: no image is left of {len(annotations.images)} in {folder}.")
        category_ids = tuple(annotations.class_index)
        names = annotations.class_names
        return ImageSet(name, names, tuple(records), dict(counts), category_ids, missing)

    def ground_truth(self, split: str) -> GroundTruth:
        """Read the boxes of a split, for evaluation.

        Boxes that reach outside their image are clipped (`counts["clipped"]`); those without area or with
        unreadable coordinates are dropped (`counts["dropped"]`). Image files need not be there.

        Args:
          split: as in `images`.

        Returns:
          Boxes of every image of the split. Crowd regions are included, marked as difficult and as crowd; areas
          are the annotated ones, of the mask, or of the box where the file has none.

        Raises:
          DataError: if the JSON is missing or faulty, or has no annotations.
        """
        annotations = self._read(split)
        if annotations.objects is None:
            raise DataError(
                f"{annotations.path}: has no 'annotations', so there are no boxes; such a split can be predicted, not "
                "measured or trained on."
            )
        counts = Counter(clipped=0, dropped=0)
        objects: dict[int, list[tuple]] = {number: [] for number in annotations.images}
        for item in annotations.objects:
            number = item["image_id"]
            box = _inside(item.get("bbox"), annotations.images[number], counts)
            if box is not None:
                index = annotations.class_index[item["category_id"]]
                area = _area(item, (box[2] - box[0]) * (box[3] - box[1]))
                objects[number].append((box, index, bool(item["iscrowd"]), area))
        boxes = {}
        for number, image in annotations.images.items():
            columns = [list(column) for column in zip(*objects[number], strict=True)] or [[]] * 4
            corners, classes, crowd, areas = columns
            boxes[image.image_id] = BoxAnnotations.from_lists(
                corners, classes, crowd, areas=areas, crowd=crowd
            )
        log_counts(f"ground truth of {split} in {self.root}", counts)
        return GroundTruth(annotations.class_names, boxes, dict(counts))

    def instances(self, split: str) -> dict[str, Callable[[], ImageInstances]]:
        """Return where the masks of a split are, for evaluation; nothing is decoded before it is asked for.

        An annotation without segmentation, or whose polygons all have less than three corners, has no mask that could
        be found or missed: it is left out, and the log says how many were. Image files need not be there.

        Args:
          split: as in `images`.

        Returns:
          Image id -> a function that decodes the masks of that image, in the order of the file; of every image of a
          file that has annotations. Crowd regions are marked as to be ignored and as crowd. The function raises
          `DataError`, naming the annotation, for what is no segmentation or of another size than the image.

        Raises:
          DataError: if the JSON is missing or faulty.
        """
        annotations = self._read(split)
        if annotations.objects is None:
            return {}
        objects: dict[int, list[dict]] = {number: [] for number in annotations.images}
        without = []
        for item in annotations.objects:
            if has_mask(item.get("segmentation")):
                objects[item["image_id"]].append(item)
            else:
                without.append(item.get("id"))
        if without:
            logger.warning(
                "masks of %s in %s: left out %d annotations without a segmentation; ids %s",
                split,
                self.root,
                len(without),
                ", ".join(map(str, without[:10])) + (", …" if len(without) > 10 else ""),
            )
        return {
            image.image_id: functools.partial(
                _instances, annotations.path, image, objects[number], annotations.class_index
            )
            for number, image in annotations.images.items()
        }

    def _read(self, split: str) -> _Annotations:
        path = Path(self.root) / self.annotations.replace("{split}", split)
        if not path.is_file():
            before, _, after = Path(self.annotations).name.partition("{split}")
            names = [file.name for file in path.parent.glob(f"{before}*{after}")]
            found = sorted(name.removeprefix(before).removesuffix(after) for name in names)
            raise DataError(f"{path}: no such file; splits found: {', '.join(found) or 'none'}.")
        return _Annotations.read(path)

    def _image_folder(self, split: str) -> Path:
        patterns = [self.image_folder] if self.image_folder else ["{split}", "images/{split}"]
        folders = [Path(self.root) / pattern.replace("{split}", split) for pattern in patterns]
        for folder in folders:
            if folder.is_dir():
                return folder
        raise DataError(f"no folder of images; looked for {' and '.join(map(str, folders))}.")


@dataclass(frozen=True)
class _Image:
    """An entry of `images`: file_name is a path below the folder, image_id the same without suffix."""

    file_name: str
    image_id: str
    height: int
    width: int


@dataclass(frozen=True)
class _Annotations:
    """A checked file: every object names an image and a category that are there.

    Attributes:
      path: of the file.
      class_names: c names, in the order of the category ids.
      class_index: category id -> position in `class_names`, in that order.
      images: the file's image id -> image, in the order of the file.
      objects: as in the file, each with `image_id`, `category_id`, and `iscrowd` 0 or 1; `None` without annotations.
    """

    path: Path
    class_names: tuple[str, ...]
    class_index: dict[int, int]
    images: dict[int, _Image]
    objects: list[dict[str, Any]] | None

    @classmethod
    def read(cls, path: Path) -> _Annotations:
        """Read and check a file; raise `DataError` naming it and what is wrong in it."""
        try:
            with path.open(encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
            raise DataError(f"{path}: not a readable JSON file ({error}).") from error
        categories = {}
        for item in _entries(content, "categories", path):
            name = item.get("name")
            if not _is_id(item.get("id")) or item["id"] in categories:
                raise DataError(f"{path}: category {item} has no id of its own.")
            if not isinstance(name, str) or name in categories.values():
                raise DataError(f"{path}: category {item['id']} has no name of its own: {name!r}.")
            categories[item["id"]] = name
        if not categories:
            raise DataError(f"{path}: has no categories.")
        order = sorted(categories)
        images = _read_images(content, path)
        has_objects = "annotations" in content
        objects = list(_checked_objects(content, images, categories, path)) if has_objects else None
        names = tuple(categories[number] for number in order)
        index = {number: position for position, number in enumerate(order)}
        return cls(path, names, index, images, objects)


def _entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise DataError(
            f"{path}: {key!r} is not a list of objects; COCO's instances have images, annotations "
            "and categories."
        )
    return entries


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_images(content: Any, path: Path) -> dict[int, _Image]:
    images, seen = {}, set()
    for item in _entries(content, "images", path):
        number, name = item.get("id"), item.get("file_name")
        if not _is_id(number) or number in images:
            raise DataError(f"{path}: image {number!r} ({name!r}) has no id of its own.")
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: image {number} has no file_name.")
        file = PurePosixPath(name)
        if file.is_absolute() or ".." in file.parts:
            raise DataError(f"{path}: image {number}: {name!r} leads out of the data folder.")
        image_id = text_of_name(file.with_suffix("").as_posix())
        if image_id in seen:
            raise DataError(f"{path}: file {name!r} occurs twice, or differs only in its suffix.")
        seen.add(image_id)
        size = (item.get("height"), item.get("width"))
        if not all(_is_id(side) and side > 0 for side in size):
            raise DataError(f"{path}: image {number}: (height, width) is {size}; both must be > 0.")
        images[number] = _Image(file.as_posix(), image_id, *size)
    return images


def _checked_objects(
    content: Any, images: dict[int, _Image], categories: dict[int, str], path: Path
) -> Iterator[dict[str, Any]]:
    for item in _entries(content, "annotations", path):
        number, category = item.get("image_id"), item.get("category_id")
        crowd = item.get("iscrowd", 0)
        name = f"{path}: annotation {item.get('id')}"
        if not _is_id(number) or number not in images:
            raise DataError(f"{name}: image_id {number!r} is none of the file's images.")
        if not _is_id(category) or category not in categories:
            raise DataError(
                f"{name}: unknown category_id {category!r}; allowed are the ids of 'categories', "
                f"{', '.join(map(str, sorted(categories)))}."
            )
        if crowd not in (0, 1):
            raise DataError(f"{name}: iscrowd is {crowd!r}; allowed are 0 and 1.")
        item["iscrowd"] = int(crowd)
        yield item


def _inside(
    bbox: Any, image: _Image, counts: dict[str, int]
) -> tuple[float, float, float, float] | None:
    """Return a box as (x1, y1, x2, y2) within its image, or `None` where nothing of it is left."""
    try:
        x, y, width, height = map(float, bbox if isinstance(bbox, list) else ())
    except (TypeError, ValueError, OverflowError):
        x = y = width = height = math.nan
    box = (x, y, x + width, y + height)
    inside = (max(x, 0.0), max(y, 0.0), min(box[2], image.width), min(box[3], image.height))
    if not all(map(math.isfinite, box)) or inside[2] <= inside[0] or inside[3] <= inside[1]:
        counts["dropped"] += 1
        return None
    counts["clipped"] += inside != box
    return inside


def _instances(
    path: Path, image: _Image, objects: list[dict[str, Any]], class_index: dict[int, int]
) -> ImageInstances:
    """Decode the masks of one image."""
    size = (image.height, image.width)
    names = [f"{path}: annotation {item.get('id')}" for item in objects]
    masks = tuple(
        decode_mask(item["segmentation"], size, name)
        for item, name in zip(objects, names, strict=True)
    )
    crowd = np.array([item["iscrowd"] for item in objects], bool)
    areas = [_area(item, mask.pixels.sum()) for item, mask in zip(objects, masks, strict=True)]
    return ImageInstances(
        masks,
        np.array([class_index[item["category_id"]] for item in objects], np.int32),
        crowd,
        crowd,
        np.array(areas, np.float32),
    )


def _area(item: dict[str, Any], counted: float) -> float:
    """Return the annotated area in square pixels; `counted` where there is none."""
    area = item.get("area")
    if isinstance(area, int | float) and math.isfinite(area) and area >= 0:
        return float(area)
    return counted
