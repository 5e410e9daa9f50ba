"""Predictions on disk: COCO's results format at full precision, and beside it what its numbers mean.

`predictions.json` is the list that COCO's tools read: one object per box with `image_id`, `category_id`,
`bbox` [x, y, width, height] in pixels of the original image, and `score`. `predictions.index.json` lists the images
that were predicted (those without a box too) and the class of every category id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from operator import index
from pathlib import Path

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.tables import DetectionTable
from wsod_jax.files import atomic_write

FIELDS = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True)
class PredictionIndex:
    """What the numbers in a predictions file mean.

    Attributes:
      image_ids: the predicted images, in order.
      class_names: c names, in the order of the class index.
      category_ids: c numbers that stand for the classes in the file.
    """

    image_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def index_path(path: str | Path) -> Path:
    """Return where the index of a predictions file lies: `x.json` -> `x.index.json`."""
    return Path(path).with_suffix(".index.json")


def write_predictions(
    path: str | Path,
    detections: DetectionTable,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
) -> Path:
    """Write detections in COCO's results format, and their index beside it.

    Reading the file back gives bit-identical scores and boxes in the same order.

    Args:
      path: a `.json` file; its folder is made.
      detections: rows over the images of `image_ids`.
      image_ids: n ids. They are written as numbers if every one is a plain decimal ("139", but not "000012").
      class_names: c names.
      category_ids: c numbers; 1, 2 ... if not given.
    Returns:
      `path`.
    Raises:
      DataError: the lists do not fit the table.
    """
    path = Path(path)
    if len(image_ids) != detections.num_images or len(class_names) != detections.num_classes:
        raise DataError(
            f"detections cover {detections.num_images} images and {detections.num_classes} classes, but there are "
            f"{len(image_ids)} image ids and {len(class_names)} class names"
        )
    categories = list(category_ids or range(1, len(class_names) + 1))
    plain = all(
        str(image_id).isdecimal() and str(int(image_id)) == image_id for image_id in image_ids
    )
    names = [int(image_id) if plain else str(image_id) for image_id in image_ids]
    boxes = detections.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]  # exact: the difference of two float32 fits a float64

    def rows():
        yield "["
        for i in range(len(detections)):
            record = (
                names[detections.image_index[i]],
                categories[detections.classes[i]],
                boxes[i].tolist(),
                float(detections.scores[i]),
            )
            text = json.dumps(dict(zip(FIELDS, record, strict=True)))
            yield f"\n{text}" if i == 0 else f",\n{text}"
        yield "\n]\n"

    meaning = {
        "images": names,
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(categories, class_names, strict=True)
        ],
    }
    with atomic_write(index_path(path)) as file:
        file.write(json.dumps(meaning, indent=1) + "\n")
    with atomic_write(path) as file:
        file.writelines(rows())
    return path


def write_voc_server(
    folder: str | Path,
    detections: DetectionTable,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
) -> Path:
    """Write the text files that the VOC evaluation server takes, `comp4_det_test_<class>.txt`.

    A line is `image score x1 y1 x2 y2`. The server's corners name pixels, the first being 1, so x1 and y1
    are one more than in `detections`. A class without a detection has an empty file.

    Args:
      folder: made if it does not exist.
      detections: rows over the images of `image_ids`.
      image_ids: n ids.
      class_names: c names.
    Returns:
      `folder`.
    """
    folder = Path(folder)
    for position, name in enumerate(class_names):
        table = detections.take(np.flatnonzero(detections.classes == position))
        corners = table.boxes.astype(np.float64) + (1, 1, 0, 0)
        lines = [
            f"{image_ids[image]} {score:.9g} {' '.join(f'{corner:.3f}' for corner in box)}\n"
            for image, score, box in zip(table.image_index, table.scores, corners, strict=True)
        ]
        with atomic_write(folder / f"comp4_det_test_{name}.txt") as file:
            file.writelines(lines)
    return folder


def _load_json(path: Path):
    """Return the parsed file, or raise `DataError` that says what to do."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; scripts/predict.py and scripts/evaluate.py write it"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); was it written to the end?") from None


def read_index(path: str | Path) -> PredictionIndex:
    """Read what a predictions file's numbers mean.

    Args:
      path: the predictions file, not its index.
    Raises:
      DataError: the index is missing or malformed.
    """
    content = _load_json(index_path(path))
    try:
        images = tuple(str(image_id) for image_id in content["images"])
        names = tuple(str(category["name"]) for category in content["categories"])
        numbers = tuple(int(category["id"]) for category in content["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{index_path(path)} needs a list `images` and a list `categories` of {{id, name}}; "
            f"found {type(content).__name__} with {error!r}"
        ) from None
    return PredictionIndex(images, names, numbers)


def read_predictions(
    path: str | Path,
    *,
    image_ids: Sequence[str],
    class_names: Sequence[str],
    category_ids: Mapping[str, int] | None = None,
) -> DetectionTable:
    """Read a COCO results file for scoring or drawing.

    Args:
      path: a list of {image_id, category_id, bbox, score}, from this project or elsewhere.
      image_ids: the n images to read for. Number ids of the file match by their decimal text.
      class_names: the c classes to read for, in any order of the file's.
      category_ids: class name -> number in the file. If not given, the file's index says it; without an index, 1, 2
        ... in the order of `class_names`.
    Returns:
      `DetectionTable` over these images, in the file's order.
    Raises:
      DataError: not JSON, not such a list, an unknown image or category, or a box or score that is not finite.
    """
    path = Path(path)
    records = _load_json(path)
    if not isinstance(records, list):
        raise DataError(f"{path} holds a {type(records).__name__}; needed a list of {FIELDS}")
    if category_ids is None and index_path(path).exists():
        meaning = read_index(path)
        category_ids = dict(zip(meaning.class_names, meaning.category_ids, strict=True))
        missing = set(class_names) - set(category_ids)
        if missing:
            raise DataError(
                f"{path} was made for the classes {meaning.class_names}; {sorted(missing)} are not among them"
            )
    if category_ids is None:
        category_ids = {name: number for number, name in enumerate(class_names, start=1)}
    class_of = {category_ids[name]: position for position, name in enumerate(class_names)}
    image_of = {str(image_id): position for position, image_id in enumerate(image_ids)}
    rows = [_parse(record, row, path, image_of, class_of) for row, record in enumerate(records)]
    boxes = np.array([row[3] for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return DetectionTable(
        image_index=[row[0] for row in rows],
        classes=[row[1] for row in rows],
        scores=[row[2] for row in rows],
        boxes=boxes,
        num_images=len(image_ids),
        num_classes=len(class_names),
    )


def _parse(record, row: int, path: Path, image_of: dict[str, int], class_of: dict[int, int]):
    """Return (image, class, score, [x, y, w, h]) of one record, or raise `DataError` naming it."""
    try:
        image_id, category = str(record["image_id"]), index(record["category_id"])
        box, score = [float(value) for value in record["bbox"]], float(record["score"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"entry {row} of {path} is {record!r:.200}; needed {FIELDS}") from None
    if len(box) != 4 or not all(map(isfinite, (*box, score))) or min(box[2:]) < 0:
        raise DataError(
            f"entry {row} of {path} has bbox {box} and score {score}; needed [x, y, width >= 0, height >= 0] "
            "and a score, all finite"
        )
    if image_id not in image_of:
        raise DataError(
            f"entry {row} of {path} is for image {image_id!r}, which is not among the {len(image_of)} images to "
            f"score (such as {next(iter(image_of), None)!r}); choose the split that was predicted"
        )
    if category not in class_of:
        raise DataError(
            f"entry {row} of {path} has category {category!r}; the classes have {sorted(class_of)}. "
            "Give category_ids if the file numbers them otherwise"
        )
    return image_of[image_id], class_of[category], score, box
