"""Reading results files and data sets of this project or of other tools; `formats` says what they hold."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.formats import (
    ResultImage,
    ResultImages,
    ResultsIndex,
    category_ids_of,
    index_path,
    load_json,
    parse_index,
    read_index,
)
from wsod_jax.ops.masks import decode_mask, has_mask, mask_to_rle, rle_to_mask, tight_box
from wsod_jax.types import ImageResult, Mask


def read_results(path: str | Path, images: ResultImages) -> list[ImageResult]:
    """Read boxes, masks or both of a COCO results file or data set, from this project or elsewhere.

    Images are found by the ids of the set that the file was made for. An index file, where there is one, says which.
    Without, ids that are numbers are the set's own numbers, if it has them; else image ids, for which leading
    zeros do not count ("000012" is 12). Ids that are texts are image ids, numbers as text, or names of files without
    folder and suffix. Classes are found by the names in the index, else by the set's own category ids, else 1, 2 ...

    A data set is its own index: its images are found by their `file_name`, its classes by their names. Annotations
    without `score` have 1; crowds are left out, since they are not single objects.

    Args:
      path: a list of {image_id, category_id, score, bbox or segmentation or both}; segmentations are RLE. Or an object
        with such a list as `annotations`, whose segmentations may be polygons, and `images` and `categories`.
      images: the set to read for. If it has no classes, those of the index count.
    Returns:
      One result per image of the set, in its order, detections of higher score first, equal ones as in the file. Boxes
      that reach outside their image stay as they are; a mask without `bbox` has the box around it. Masks are kept
      as RLE, and decoded when they are asked for. `rows` and `views` are there if every entry has them.
    Raises:
      DataError: not JSON, not such a list, an image or category that the set does not have, an image whose file is
        missing, an id that two images share, a box or score that is not finite, a box of negative width or height, a
        mask that is none or of another size than its image, masks in some entries only.
    """
    path = Path(path)
    content = load_json(path)
    is_data_set = isinstance(content, dict)
    entries = content.get("annotations") if is_data_set else content
    if not isinstance(entries, list):
        raise DataError(
            f"{path} holds a {type(content).__name__}; needed a list of objects with image_id, category_id, score, "
            "and bbox or segmentation, or a COCO data set whose list `annotations` holds them"
        )
    index = None
    if is_data_set:
        index = parse_index(content, path, "file_name")
    elif index_path(path).exists():
        index = read_index(path)
    image_of, class_of = _ImageFinder(images, index), _class_of(images, index, path)
    found: list[list[_Entry]] = [[] for _ in images.records]
    for number, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise DataError(f"found {entry!r:.200}, needed an object")
            if is_data_set and (_whole(entry.get("iscrowd")) or entry.get("iscrowd") is True):
                continue
            position = image_of(entry.get("image_id"))
            record = images.records[position]
            entry = _as_result(entry, record) if is_data_set else entry
            found[position].append(_parse(entry, record, class_of))
        except DataError as error:
            raise DataError(f"entry {number} of {path}: {error}") from None
    everything = [entry for of_image in found for entry in of_image]
    with_masks = sum(entry.rle is not None for entry in everything)
    if with_masks not in (0, len(everything)):
        raise DataError(
            f"{path}: {with_masks} of {len(everything)} entries have a segmentation; needed: all or none. Split "
            "the file into one of boxes and one of masks"
        )
    columns = {
        name: bool(everything) and all(getattr(entry, name) is not None for entry in everything)
        for name in ("rle", "row", "view")
    }
    return [
        _result(position, record, of_image, columns)
        for position, (record, of_image) in enumerate(zip(images.records, found, strict=True))
    ]


@dataclass(frozen=True)
class RleMasks(Sequence[Mask]):
    """Masks of one image that are decoded when they are asked for: 100 whole ones of COCO take 30 MB.

    Attributes:
      rles: as COCO writes them, checked.
      size: (height, width) of the image.
    """

    rles: tuple[dict[str, Any], ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: int) -> Mask:
        return rle_to_mask(self.rles[index], self.size)


class _Entry(NamedTuple):
    """A detection of a results file; box is (x1, y1, x2, y2)."""

    class_index: int
    score: float
    box: Sequence[float]
    rle: dict[str, Any] | None
    row: int | None
    view: int | None


def _result(
    position: int, record: ResultImage, entries: list[_Entry], columns: dict[str, bool]
) -> ImageResult:
    """Return the entries of one image; `columns` tells which of rle, row and view the file has."""
    entries = sorted(entries, key=lambda entry: -entry.score)
    rows, views = (
        np.array([getattr(entry, name) for entry in entries], np.int32) if columns[name] else None
        for name in ("row", "view")
    )
    size = (record.height, record.width)
    return ImageResult(
        image_index=position,
        size=size,
        boxes=np.array([entry.box for entry in entries], np.float32).reshape(-1, 4),
        scores=np.array([entry.score for entry in entries], np.float32),
        classes=np.array([entry.class_index for entry in entries], np.int32),
        rows=rows,
        views=views,
        masks=RleMasks(tuple(entry.rle for entry in entries), size) if columns["rle"] else None,
    )


def _whole(value: Any) -> int | None:
    """Return a whole number (7, 7.0 or "7") as int, and `None` for all else."""
    if isinstance(value, str) and re.fullmatch(r"\d+", value, re.ASCII):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value)


class _ImageFinder:
    """Tells which image of a set an id of a results file means; see `read_results`."""

    def __init__(self, images: ResultImages, index: ResultsIndex | None) -> None:
        self._images, self._index = images, index
        self._known: dict[int | str, int] = {}
        self._by_number, self._by_id = defaultdict(set), defaultdict(set)
        self._by_name, self._by_digits = defaultdict(set), defaultdict(set)
        numbers = [record.number for record in images.records]
        self._ids = [*images.image_ids, *images.missing]
        for position, image_id in enumerate(self._ids):
            name = PurePosixPath(image_id).name
            self._by_id[image_id].add(position)
            self._by_name[name].add(position)
            number = numbers[position] if position < len(numbers) else None
            if number is not None:
                self._by_number[number].add(position)
            elif name.isdecimal():
                self._by_digits[int(name)].add(position)

    def __call__(self, value: Any) -> int:
        """Return the position of the image, or raise `DataError`."""
        key = value if isinstance(value, str) else _whole(value)
        if key is None:
            raise DataError(f"image_id is {value!r:.200}; needed a number or a text")
        if key not in self._known:
            found = self._candidates(key)
            if len(found) != 1:
                self._refuse(key, sorted(found))
            [position] = found
            if position >= len(self._images.records):
                raise DataError(
                    f"image {key!r}: its file is missing or broken, and was left out of the set; restore "
                    f"{self._ids[position]!r}, or take its entries out"
                )
            self._known[key] = position
        return self._known[key]

    def _candidates(self, key: int | str) -> set[int]:
        if self._index is not None:
            if key not in self._index.images:
                raise DataError(
                    f"image {key!r} is not among the {len(self._index.images)} that the file, or its index file, "
                    "names; delete the index if it belongs to another file"
                )
            key = self._index.images[key]
        if isinstance(key, int):
            if self._by_number:
                return self._by_number.get(key) or self._by_digits.get(key, set())
            return self._by_id.get(str(key), set()) or self._by_digits.get(key, set())
        number = int(key) if re.fullmatch(r"0|[1-9]\d*", key, re.ASCII) else None
        found = self._by_id.get(key, set())
        if self._index is None:
            found = found | self._by_number.get(number, set())
        file = PurePosixPath(key)
        found = found or self._by_id.get(str(file.parent / file.stem))
        return found or self._by_name.get(file.name) or self._by_name.get(file.stem, set())

    def _refuse(self, key: int | str, found: list[int]) -> None:
        ids = self._images.image_ids
        told = repr(key) if self._index is None else f"{key!r} ({self._index.images[key]!r})"
        if found:
            raise DataError(
                f"image {told} may be {' or '.join(repr(self._ids[i]) for i in found[:3])}; needed: the ids of the set "
                "that is read, its numbers where it has them"
            )
        numbers = list(self._by_number)
        examples = ", ".join(map(repr, numbers[:3] or ids[:3])) or "none"
        raise DataError(
            f"image {told} is not among the {len(ids)} of the set, whose ids are {examples} ...; choose the split "
            "that was predicted"
        )


def _class_of(images: ResultImages, index: ResultsIndex | None, path: Path) -> dict[int, int]:
    """Return category id of the file -> class index of the set."""
    if index is None:
        return {number: c for c, number in enumerate(category_ids_of(images))}
    names = list(images.class_names or index.class_names)
    missing = sorted(set(names) - set(index.class_names))
    if missing:
        raise DataError(
            f"{path} was made for the classes {index.class_names}; {missing} are not among them. Choose one that was "
            f"made for the classes of the set, or delete {index_path(path)} if it belongs to another file"
        )
    pairs = zip(index.category_ids, index.class_names, strict=True)
    return {number: names.index(name) for number, name in pairs if name in names}


def _as_result(item: dict[str, Any], record: ResultImage) -> dict[str, Any]:
    """Return an annotation of a data set as an entry of a results file: scored, its polygons as RLE."""
    size, entry = (record.height, record.width), {"score": 1.0} | item
    shape = entry.pop("segmentation", None)
    if isinstance(shape, list) and has_mask(shape):
        shape = mask_to_rle(decode_mask(shape, size, "a mask"), size)
    return entry | {"segmentation": shape} if has_mask(shape) else entry


def _parse(entry: dict[str, Any], record: ResultImage, class_of: dict[int, int]) -> _Entry:
    """Return a checked entry, or raise `DataError` that says what is wrong in it."""
    category, score = _whole(entry.get("category_id")), entry.get("score")
    if category not in class_of:
        raise DataError(
            f"category_id is {entry.get('category_id')!r:.200}; the classes of the set have {sorted(class_of)}"
        )
    if not _is_number(score):
        raise DataError(f"score is {score!r:.200}; needed a finite number")
    box, rle = entry.get("bbox"), entry.get("segmentation")
    mask = None if rle is None else rle_to_mask(rle, (record.height, record.width))
    if box is None and mask is not None:
        corners = tight_box(mask)
    else:
        fits = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
        if not fits or min(box[2:]) < 0:
            raise DataError(
                f"bbox is {box!r:.200}; needed [x, y, width >= 0, height >= 0], all finite"
            )
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    row, view = _whole(entry.get("row")), _whole(entry.get("view"))
    return _Entry(class_of[category], float(score), corners, rle, row, view)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number that float32 holds."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) < 1e38
