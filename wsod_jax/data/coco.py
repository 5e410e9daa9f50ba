"""Reader of the MS COCO layout, of any release or data set in that form.

    <root>/annotations/instances_<split>.json   <root>/<split>/<file_name>  (or <root>/images/<split>/)

Classes are the file's categories in the order of their ids, which may have gaps (COCO's 80 lie in 1..90). Its
boxes (x, y, width, height), 0-based with continuous edges, become (x, y, x + width, y + height).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from wsod_jax.data.reader import BoxReader, OnBad, check_on_bad, log_counts, skip_or_raise
from wsod_jax.data.records import BoxAnnotations, GroundTruth, ImageRecord, ImageSet
from wsod_jax.data.voc import DifficultRule, difficult_label
from wsod_jax.errors import DataError
from wsod_jax.options import Mark


@dataclass(frozen=True, kw_only=True)
class Coco(BoxReader):
    """A data set in COCO layout.

    Attributes:
      root: the folder that holds `annotations`.
      crowd: the label of a class of which an image has crowd regions only, and no single object: "drop" 0,
        absent; "ignore" -1, unknown; "keep" 1, present.
      on_bad: what to do about an image whose file is missing: "skip" leaves it out, logged and counted
        as `bad_image`; "error" raises. A fault in the JSON always raises.
    """

    root: Annotated[str | Path, Mark.LOCATION]
    train_split: str = "train2014"
    test_split: str = "val2014"
    crowd: DifficultRule = "drop"
    on_bad: OnBad = "skip"

    def __post_init__(self):
        difficult_label(self.crowd)
        check_on_bad(self.on_bad)

    def images(self, split: str) -> ImageSet:
        """Read a split's images and their image-level labels; boxes are not looked at.

        Args:
          split: like "train2014"; names the file of annotations and the folder of images.

        Returns:
          The images in the order of the file; an id is the file's name without suffix. Sizes are the file's; an
          image of another size is found when it is decoded. `counts["no_object"]` images have no annotation,
          which is legal: all their labels are 0. `counts["crowd_only"]` classes of images have crowds only.

        Raises:
          DataError: see `on_bad`; also if no image is left.
        """
        if_crowd = difficult_label(self.crowd)
        annotations = _Annotations.read(Path(self.root), split)
        present: dict[int, dict[int, bool]] = {number: {} for number in annotations.images}
        for item in annotations.objects:
            classes = present[item["image_id"]]
            index = annotations.class_index[item["category_id"]]
            classes[index] = classes.get(index, False) or not item["iscrowd"]
        folder = _image_folder(Path(self.root), split)
        files = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        counts, records = Counter(bad_image=0, no_object=0, crowd_only=0), []
        for number, image in annotations.images.items():
            if image.file_name not in files:
                missing = DataError(f"{folder / image.file_name}: no such image file.")
                skip_or_raise(missing, self.on_bad, counts)
                continue
            labels = [0] * len(annotations.class_names)
            for index, single in present[number].items():
                labels[index] = 1 if single else if_crowd
                counts["crowd_only"] += not single
            counts["no_object"] += not present[number]
            path = folder / image.file_name
            records.append(
                ImageRecord(image.image_id, path, image.height, image.width, tuple(labels))
            )
        name = f"coco {split}"
        log_counts(name, counts)
        if not records:
            raise DataError(f"{name}: no image is left of {len(annotations.images)} in {folder}.")
        return ImageSet(name, annotations.class_names, tuple(records), dict(counts))

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
          DataError: if the JSON is missing or faulty.
        """
        annotations = _Annotations.read(Path(self.root), split)
        counts = Counter(clipped=0, dropped=0)
        objects: dict[int, list[tuple]] = {number: [] for number in annotations.images}
        for item in annotations.objects:
            number = item["image_id"]
            box = _inside(item.get("bbox"), annotations.images[number], counts)
            if box is not None:
                index = annotations.class_index[item["category_id"]]
                objects[number].append((box, index, bool(item["iscrowd"]), _area(item, box)))
        boxes = {}
        for number, image in annotations.images.items():
            columns = [list(column) for column in zip(*objects[number], strict=True)] or [[]] * 4
            corners, classes, crowd, areas = columns
            boxes[image.image_id] = BoxAnnotations.from_lists(
                corners, classes, crowd, areas=areas, crowd=crowd
            )
        log_counts(f"ground truth of {split} in {self.root}", counts)
        return GroundTruth(annotations.class_names, boxes, dict(counts))


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
      class_names: c names, in the order of the category ids.
      class_index: category id -> position in `class_names`.
      images: the file's image id -> image, in the order of the file.
      objects: as in the file, each with `image_id`, `category_id`, and `iscrowd` 0 or 1.
    """

    class_names: tuple[str, ...]
    class_index: dict[int, int]
    images: dict[int, _Image]
    objects: list[dict[str, Any]]

    @classmethod
    def read(cls, root: Path, split: str) -> _Annotations:
        """Read and check the annotations of a split; raise `DataError` naming the file and what is wrong in it."""
        path = _json_path(root, split)
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
        objects = list(_checked_objects(content, images, categories, path))
        names = tuple(categories[number] for number in order)
        return cls(names, {number: index for index, number in enumerate(order)}, images, objects)


def _json_path(root: Path, split: str) -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        found = sorted(p.stem.removeprefix("instances_") for p in path.parent.glob("instances_*"))
        raise DataError(f"{path}: no such file; splits found: {', '.join(found) or 'none'}.")
    return path


def _image_folder(root: Path, split: str) -> Path:
    folders = (root / split, root / "images" / split)
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DataError(f"no folder of images; looked for {folders[0]} and {folders[1]}.")


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
        image_id = file.with_suffix("").as_posix()
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


def _area(item: dict[str, Any], box: tuple[float, float, float, float]) -> float:
    area = item.get("area")
    if isinstance(area, int | float) and math.isfinite(area) and area >= 0:
        return float(area)
    return (box[2] - box[0]) * (box[3] - box[1])
