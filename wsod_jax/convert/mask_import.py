"""Masks of proposals of other programs: MCG's superpixels and COCO results files of run-length encodings, as SAM's.

| source                                   | masks                                                                  |
|------------------------------------------|------------------------------------------------------------------------|
| MCG `.mat` with `superpixels` [H, W]     | `labels`, a cell per proposal: the numbers of its superpixels          |
| JSON list of {image_id, segmentation}    | RLE, compressed or not; `score` or `predicted_iou` where every one has |

The box of a proposal is the one around its mask. `bboxes` of MCG's files is another list, without near duplicates and
so with other rows; SAM's `bbox` ends a pixel early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsod_jax.data.records import ImageRecord
from wsod_jax.errors import DataError
from wsod_jax.evaluation.formats import load_json
from wsod_jax.ops.masks import mask_to_rle, rle_to_mask, superpixel_rles, tight_box

SCORES = ("score", "predicted_iou")  # of an entry in JSON; the first that every entry has


class MaskedProposals(NamedTuple):
    """The proposals of one image that have masks; those whose mask has no pixel are not among them.

    Attributes:
      rows: [k] int, which of the source's proposals these are.
      boxes: [k, 4] float64 xyxy, continuous edges, around the masks.
      counts: k compressed RLE `counts`.
      num_empty: proposals without a pixel.
    """

    rows: np.ndarray
    boxes: np.ndarray
    counts: list[bytes]
    num_empty: int


def from_superpixels(
    path: Path, content: Mapping[str, Any], record: ImageRecord
) -> MaskedProposals:
    """Return the masks of one image's MCG file.

    Raises:
      DataError: the map is none or of another size than the image, or a proposal names a superpixel that is not in it.
    """
    from pycocotools import mask as coco_mask

    superpixels, labels = np.asarray(content["superpixels"]), np.asarray(content["labels"])
    if superpixels.ndim != 2 or not _are_whole(superpixels) or labels.dtype != object:
        raise DataError(
            f"{path}: needs `superpixels`, whole numbers [H, W], and `labels`, a cell per proposal; found "
            f"{superpixels.dtype}{list(superpixels.shape)} and {labels.dtype}{list(labels.shape)}."
        )
    size = (record.height, record.width)
    if superpixels.shape != size:
        raise DataError(
            f"{path}: the superpixels have (height, width) {superpixels.shape}, image {record.image_id!r} has {size}. "
            "Are the masks of these images, at this size?"
        )
    known, dense = np.unique(superpixels, return_inverse=True)
    members = []
    for proposal, cell in enumerate(labels.ravel()):
        numbers = np.asarray(cell).ravel()
        place = np.searchsorted(known, numbers) if _are_whole(numbers) else np.zeros(0, int)
        place = np.minimum(place, len(known) - 1)
        if len(place) != len(numbers) or (known[place] != numbers).any():
            raise DataError(
                f"{path}: proposal {proposal} consists of {numbers.tolist()!r:.80}; needed numbers of superpixels, "
                f"{known[0]} to {known[-1]}, {len(known)} in all. Are `superpixels` and `labels` of one image?"
            )
        members.append(place)
    rles = superpixel_rles(dense.reshape(size), members, size)
    boxes = np.array([coco_mask.toBbox(rle) for rle in rles], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    rows = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    counts = [rles[row]["counts"] for row in rows]
    return MaskedProposals(rows, boxes[rows], counts, len(rles) - len(rows))


def _are_whole(numbers: np.ndarray) -> bool:
    """Return whether numbers are whole; an empty array is."""
    kind = numbers.dtype.kind
    return not numbers.size or kind in "iu" or (kind == "f" and bool((numbers % 1 == 0).all()))


class MaskResults(NamedTuple):
    """Entries of a COCO results file by image.

    Attributes:
      rles: image id -> its segmentations, in the order of the file.
      scores: image id -> [k] float32; `None` if an entry has none.
    """

    rles: dict[int | str, list[Any]]
    scores: dict[int | str, np.ndarray] | None


def read_mask_results(path: Path) -> MaskResults:
    """Read a COCO results file, a list of {image_id, segmentation}; classes do not count.

    Raises:
      DataError: not such a list, or a score that is not finite.
    """
    entries = load_json(path)
    if not isinstance(entries, list):
        raise DataError(
            f"{path} holds a {type(entries).__name__}; needed a list of objects with image_id and segmentation (RLE), "
            "as COCO's results are"
        )
    for number, entry in enumerate(entries):
        is_complete = isinstance(entry, dict) and isinstance(entry.get("segmentation"), dict)
        image_id = entry.get("image_id") if is_complete else None
        if not isinstance(image_id, int | str) or isinstance(image_id, bool):
            raise DataError(
                f"entry {number} of {path}: found {entry!r:.200}; needed an object with image_id, a number or a text, "
                "and segmentation, an RLE"
            )
    key = next((k for k in SCORES if entries and all(k in entry for entry in entries)), None)
    rles: dict[int | str, list[Any]] = {}
    scores: dict[int | str, list[float]] = {}
    for number, entry in enumerate(entries):
        rles.setdefault(entry["image_id"], []).append(entry["segmentation"])
        if key is not None:
            score = entry[key]
            is_number = isinstance(score, int | float) and not isinstance(score, bool)
            if not is_number or not math.isfinite(score):
                raise DataError(
                    f"entry {number} of {path}: {key} is {score!r:.80}; needed a finite number"
                )
            scores.setdefault(entry["image_id"], []).append(score)
    found = {image_id: np.array(values, np.float32) for image_id, values in scores.items()}
    return MaskResults(rles, None if key is None else found)


def from_rles(path: Path, rles: Sequence[Any], record: ImageRecord) -> MaskedProposals:
    """Return the masks of one image's RLEs.

    Raises:
      DataError: not an RLE, a damaged one, or of another size than the image.
    """
    size, rows, boxes, counts = (record.height, record.width), [], [], []
    for row, rle in enumerate(rles):
        mask = rle_to_mask(rle, size, f"{path}: mask {row} of image {record.image_id!r}")
        if mask.pixels.size:
            rows.append(row)
            boxes.append(tight_box(mask))
            counts.append(mask_to_rle(mask, size)["counts"].encode("ascii"))
    boxes = np.reshape(boxes, (-1, 4)).astype(np.float64)
    return MaskedProposals(np.array(rows, int), boxes, counts, len(rles) - len(rows))
