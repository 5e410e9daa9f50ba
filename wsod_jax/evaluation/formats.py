"""Results on disk: COCO's results format, COCO data sets, files of the VOC server, tables of points and scores.

A results file is the list that COCO's tools read: an object per detection with `image_id`, `category_id`, `bbox`
[x, y, width, height] in pixels of the original image, `score`, and `segmentation` (RLE) where there are masks. The ids
are the data set's own. Ours hold two more keys where they are known, `row` and `view`, which other tools ignore, and
there is an index file, `x.index.json` of `x.json`: the images that were predicted (those without a detection too)
and the classes, each with its id and its name.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.files import atomic_write
from wsod_jax.ops.masks import mask_areas, mask_to_rle
from wsod_jax.types import ImageResult


class ResultImage(Protocol):
    """What is known of an image."""

    image_id: str
    number: int | None  # the data set's own id, where it has one
    path: Path | None
    height: int
    width: int


class ResultImages(Protocol):
    """The image set that results are of, as the readers of data sets return it."""

    image_ids: Sequence[str]
    class_names: Sequence[str]
    records: Sequence[ResultImage]
    category_ids: Sequence[int] | None  # the data set's own ids, where it has them
    missing: Sequence[str]  # ids of the split's images whose file is missing or broken


@dataclass(frozen=True)
class ResultsIndex:
    """What the ids of a results file mean.

    Attributes:
      images: id in the file -> image id; the predicted images, in order.
      class_names: c names, in the order of the class index.
      category_ids: c ids that stand for the classes in the file.
    """

    images: dict[int | str, str]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def index_path(path: str | Path) -> Path:
    """Return where the index of a results file lies: `x.json` -> `x.index.json`."""
    return Path(path).with_suffix(".index.json")


def write_results(path: str | Path, results: Iterable[ImageResult], images: ResultImages) -> Path:
    """Write detections in COCO's results format, and their index file.

    Reading the file back gives bit-identical scores, boxes and masks. Results are written as they come and not kept.

    Args:
      path: a `.json` file; its folder is made. It is there whole, with its index, or as it was before.
      results: of images of the set, in any order. What has no boxes has no entry.
      images: the set. Images have its own numbers as ids if it has them; else their image ids, as numbers if every one
        is a plain decimal ("139", but not "000012"). Classes have its own category ids if it has them; else 1, 2 ...
    Returns:
      `path`.
    Raises:
      DataError: a mask reaches outside its image.
      OSError: the disk is full.
    """
    path = Path(path)
    ids, categories = _image_ids(images), category_ids_of(images)
    meaning = {
        "images": _named(ids, images.image_ids),
        "categories": _named(categories, images.class_names),
    }

    def entries() -> Iterator[dict[str, Any]]:
        for result in results:
            extra = {"row": result.rows, "view": result.views}
            extra = {key: column for key, column in extra.items() if column is not None}
            for i, found in enumerate(_detections(result, categories)):
                more = {key: int(column[i]) for key, column in extra.items()}
                yield {"image_id": ids[result.image_index]} | found | more

    with atomic_write(index_path(path)) as index, atomic_write(path) as file:
        index.write(json.dumps(meaning, indent=1) + "\n")
        file.writelines(_json_list(entries()))
        file.write("\n")
    return path


def write_coco_set(
    path: str | Path, results: Iterable[ImageResult], images: ResultImages, *, source: str
) -> Path:
    """Write detections or pseudo boxes as a COCO data set, for any trainer that reads one.

    Args:
      path: a `.json` file; its folder is made. It is there whole or as it was before.
      results: of images of the set, in any order, not kept. Images without boxes have no annotation.
      images: the set. Images have its own numbers as ids, else 1, 2 ... A `file_name` is the image id with the suffix
        of the file, a path below the folder of images.
      source: what the boxes are, for `info`; every annotation holds its `score` in addition to COCO's keys.
    Returns:
      `path`.
    Raises:
      DataError: a mask reaches outside its image.
      OSError: the disk is full.
    """
    path = Path(path)
    ids = _numbers(images) or list(range(1, len(images.records) + 1))
    categories = category_ids_of(images)

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for result in results:
            for found in _detections(result, categories):
                number += 1
                place = {"id": number, "image_id": ids[result.image_index]}
                yield place | found | {"area": _area(found), "iscrowd": 0}

    records = (
        {
            "id": number,
            "file_name": record.image_id + (record.path.suffix if record.path else ""),
            "height": record.height,
            "width": record.width,
        }
        for number, record in zip(ids, images.records, strict=True)
    )
    with atomic_write(path) as file:
        file.write(f'{{"info": {json.dumps({"source": source})},\n"images": ')
        file.writelines(_json_list(records))
        file.write(f',\n"categories": {json.dumps(_named(categories, images.class_names))}')
        file.write(',\n"annotations": ')
        file.writelines(_json_list(annotations()))
        file.write("}\n")
    return path


def write_voc_server(
    folder: str | Path, results: Iterable[ImageResult], images: ResultImages
) -> Path:
    """Write the text files that the VOC evaluation server takes, `comp4_det_test_<class>.txt`.

    A line is `image score x1 y1 x2 y2`. The server's corners name pixels, the first being 1, so x1 and y1
    are one more than here. A class without a detection has an empty file. Signs of a class name that lead into
    other folders, or that some file system forbids, are written as in a URL: `cup/mug` as `cup%2Fmug`.

    Args:
      folder: made if it does not exist.
      results: of images of the set, in any order.
      images: the set.
    Returns:
      `folder`.
    """
    folder = Path(folder)
    lines: list[list[str]] = [[] for _ in images.class_names]
    for result in results:
        image_id = images.records[result.image_index].image_id
        for i, box in enumerate(_boxes(result) + (1, 1, 0, 0)):
            corners = " ".join(f"{corner:.3f}" for corner in box)
            lines[result.classes[i]].append(f"{image_id} {result.scores[i]:.9g} {corners}\n")
    for name, of_class in zip(images.class_names, lines, strict=True):
        flat = re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda sign: f"%{ord(sign[0]):02X}", name)
        with atomic_write(folder / f"comp4_det_test_{flat}.txt") as file:
            file.writelines(of_class)
    return folder


def write_points(path: Path, results: Iterable[ImageResult], images: ResultImages) -> Path:
    """Write the points of all classes read: image, class, x, y, the class's score, whether it is predicted."""
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(["image", "class", "x", "y", "score", "predicted"])
        for result in results:
            for c in result.maps.classes:
                x, y = result.maps.point(int(c))
                told = [images.image_ids[result.image_index], images.class_names[c]]
                score, predicted = result.image_scores[c], int(result.maps.predicted[c])
                writer.writerow([*told, f"{x:.1f}", f"{y:.1f}", f"{score:.6f}", predicted])
    return path


def write_image_scores(
    path: Path, results: Iterable[ImageResult], images: ResultImages, class_names: Sequence[str]
) -> Path:
    """Write a row for each image and a column for each class."""
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow(["image", *class_names])
        for result in results:
            image_id = images.image_ids[result.image_index]
            writer.writerow([image_id, *(f"{score:.6f}" for score in result.image_scores)])
    return path


def _numbers(images: ResultImages) -> list[int] | None:
    """Return the data set's own ids of the images, or `None` where an image has none."""
    numbers = [record.number for record in images.records]
    return None if None in numbers else numbers


def _image_ids(images: ResultImages) -> list[int] | list[str]:
    """Return the ids of the images in a results file."""
    names = list(images.image_ids)
    plain = all(name.isdecimal() and str(int(name)) == name for name in names)
    return _numbers(images) or ([int(name) for name in names] if plain else names)


def category_ids_of(images: ResultImages) -> list[int]:
    """Return the ids of the classes."""
    if images.category_ids is not None:
        return list(images.category_ids)
    return list(range(1, len(images.class_names) + 1))


def _named(ids: Iterable[int | str], names: Iterable[str]) -> list[dict[str, Any]]:
    """Return ids and names as COCO's objects."""
    return [{"id": key, "name": name} for key, name in zip(ids, names, strict=True)]


def _boxes(result: ImageResult) -> np.ndarray:
    """Return the boxes, [n, 4] float64, none where no boxes were predicted."""
    return np.zeros((0, 4)) if result.boxes is None else result.boxes.astype(np.float64)


def _area(found: dict[str, Any]) -> float:
    """Return the area of a detection's mask, or else of its box."""
    if "segmentation" in found:
        return float(mask_areas([found["segmentation"]])[0])
    return found["bbox"][2] * found["bbox"][3]


def _detections(result: ImageResult, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield what results and data sets say alike of each detection."""
    boxes = _boxes(result)
    boxes[:, 2:] -= boxes[:, :2]  # exact: the difference of two float32 fits a float64
    for i, box in enumerate(boxes.tolist()):
        found = {
            "category_id": category_ids[result.classes[i]],
            "bbox": box,
            "score": float(result.scores[i]),
        }
        if result.masks is not None:
            found["segmentation"] = mask_to_rle(result.masks[i], result.size)
        yield found


def _json_list(items: Iterable[Any]) -> Iterator[str]:
    """Yield the text of a list, an item a line."""
    yield "["
    for number, item in enumerate(items):
        yield f"{',' if number else ''}\n{json.dumps(item)}"
    yield "\n]"


def read_index(path: str | Path) -> ResultsIndex:
    """Read what a results file's ids mean.

    Args:
      path: the results file, not its index.
    Raises:
      DataError: the index is missing or malformed.
    """
    return parse_index(load_json(index_path(path)), index_path(path))


def parse_index(content: Any, path: Path, name: str = "name") -> ResultsIndex:
    """Return what the ids of parsed JSON mean; `name` is the key of an image's name, `path` the file for errors."""
    try:
        images = {item["id"]: str(item[name]) for item in content["images"]}
        classes = {str(item["name"]): int(item["id"]) for item in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} needs lists `images` of {{id, {name}}} and `categories` of {{id, name}}; "
            f"found {type(content).__name__} with {error!r}"
        ) from None
    return ResultsIndex(images, tuple(classes), tuple(classes.values()))


def load_json(path: Path) -> Any:
    """Return the parsed file, or raise `DataError` that says what to do."""
    try:
        return json.loads(
            path.read_bytes()
        )  # in UTF-8, -16 or -32, with or without a byte-order mark
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; wsod-jax predict and wsod-jax evaluate write it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise DataError(f"{path} is not valid JSON ({error}); was it written to the end?") from None
