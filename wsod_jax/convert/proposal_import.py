"""Importers for the field's proposal files: Selective Search and MCG `.mat`, Detectron-style `.pkl`.

| file                                  | ids                           | boxes                                  |
|---------------------------------------|-------------------------------|----------------------------------------|
| one `.mat` with cells `boxes`         | cell `images`, or the order   | (y1, x1, y2, x2), from 1, inclusive    |
| folder of `.mat`, one per image (MCG) | file names                    | (y1, x1, y2, x2), from 1, inclusive    |
| `.pkl`, dict `boxes`, `indexes`/`ids` | numbers: the digits of the id | (x1, y1, x2, y2), from 0, inclusive    |

All become (x1, y1, x2, y2) with continuous edges, so that a one-pixel box has width 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsod_jax.convert.restricted_pickle import load_arrays
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.mat import read_mat
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import DataError

# How far a box may leave its image and still be clipped; some tools count one pixel more.
BEYOND_PX = 1.0


@dataclass(frozen=True)
class ImportResult:
    """Imported proposals and what was met on the way.

    Attributes:
      proposals: of every image of the list, in its order.
      clipped: boxes that left their image by at most a pixel.
      unused: images of the file that are not in the list.
    """

    proposals: ProposalSet
    clipped: int
    unused: int

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{len(self.proposals)} images, {len(self.proposals.boxes)} boxes ({self.clipped} clipped by up to "
            f"a pixel), {self.unused} further images in the file not asked for."
        )


@dataclass(frozen=True)
class _Entry:
    """One image's boxes as x1, y1, x2, y2 with continuous edges, and its scores."""

    boxes: np.ndarray
    scores: np.ndarray | None


def import_proposals(path: str | Path, image_set: ImageSet) -> ImportResult:
    """Convert published proposals of these images.

    Args:
      path: a `.mat` (one for all images), a folder of `.mat` files (one per image), or a `.pkl`.
      image_set: the images the proposals are for. Their sizes are checked against the boxes.

    Raises:
      DataError: if the file is malformed or unsafe, an image of the list is missing, the file names no images
        and their numbers differ, or a box leaves its image by more than a pixel.
    """
    path = Path(path)
    if path.is_dir():
        entries = _read_mat_folder(path, image_set)
        unused = sum(1 for _ in path.glob("*.mat")) - len(entries)
        kind = "MCG"
    elif path.suffix.lower() == ".mat":
        entries, unused = _match(path, _read_mat(path), image_set, _text_key)
        kind = "selective search"
    elif path.suffix.lower() in (".pkl", ".pickle"):
        entries, unused = _match(path, _read_pickle(path), image_set, _number_key)
        kind = "Detectron-style"
    else:
        found = "is no file" if not path.exists() else f"ends in {path.suffix!r}"
        raise DataError(f"{path} {found}; allowed are .mat, .pkl and a folder of .mat files.")
    return _assemble(
        path, entries, image_set, unused, generator=f"imported {kind} file {path.name}"
    )


def _text_key(value: object) -> str:
    return str(value).rsplit(".jpg", 1)[0]


def _number_key(value: object) -> int:
    """Return an image id as a number: "2008_000002" and 2008000002 are the same image."""
    digits = "".join(c for c in str(value) if c.isdigit())
    return int(digits) if digits else -1


def _match(
    path: Path,
    content: tuple[list | None, list[_Entry]],
    image_set: ImageSet,
    key: Callable[[object], object],
) -> tuple[list[_Entry], int]:
    """Return the entries of the image list, in its order, and how many others there are."""
    names, entries = content
    if names is None:
        if len(entries) != len(image_set):
            raise DataError(
                f"{path} names no images, and has boxes for {len(entries)} where {image_set.name} has "
                f"{len(image_set)}; give the split file that it was made for."
            )
        return entries, 0
    if len(names) != len(entries):
        raise DataError(f"{path}: {len(names)} image ids but boxes for {len(entries)} images.")
    found = {key(name): entry for name, entry in zip(names, entries, strict=True)}
    if len(found) < len(names):
        raise DataError(f"{path}: an image occurs twice.")
    wanted = [key(i) for i in image_set.image_ids]
    if len(set(wanted)) < len(wanted):
        raise DataError(
            f"{image_set.name}: image ids are not distinct as numbers, as {path} needs."
        )
    missing = [i for i, k in zip(image_set.image_ids, wanted, strict=True) if k not in found]
    if missing:
        raise DataError(
            f"{path} has no boxes for {len(missing)} of the {len(image_set)} images of {image_set.name}, the "
            f"first is {missing[0]!r}; its own first is {names[0]!r}. Is it of another split?"
        )
    return [found[k] for k in wanted], len(found) - len(wanted)


def _read_mat(path: Path) -> tuple[list[str] | None, list[_Entry]]:
    content = read_mat(path)
    cells = content.get("boxes")
    if cells is None or cells.dtype != object:
        found = sorted(k for k in content if not k.startswith("__"))
        raise DataError(f"{path}: needs a cell array `boxes` with a cell per image, found {found}.")
    entries = [_Entry(_from_matlab(path, cell), None) for cell in cells.ravel()]
    if "images" not in content:
        return None, entries
    names = [_cell_text(path, cell) for cell in content["images"].ravel()]
    return names, entries


def _cell_text(path: Path, cell: object) -> str:
    """Return the text of a cell: a [1] string array, or a cell within the cell."""
    while isinstance(cell, np.ndarray):
        if cell.size != 1:
            raise DataError(
                f"{path}: a cell of `images` holds {cell.size} values instead of an id."
            )
        cell = cell.ravel()[0]
    return str(cell)


def _read_mat_folder(folder: Path, image_set: ImageSet) -> list[_Entry]:
    entries, missing = [], []
    for image_id in image_set.image_ids:
        path = folder / f"{image_id}.mat"
        if not path.is_file():
            missing.append(image_id)
            continue
        content = read_mat(path)
        name = next((k for k in ("bboxes", "boxes") if k in content), None)
        if name is None:
            found = sorted(k for k in content if not k.startswith("__"))
            raise DataError(f"{path}: needs `bboxes` or `boxes`, found {found}.")
        scores = next((content[k] for k in ("scores", "bboxes_scores") if k in content), None)
        boxes = _from_matlab(path, content[name])
        entries.append(_Entry(boxes, None if scores is None else _scores(path, scores, len(boxes))))
    if missing:
        raise DataError(
            f"{folder} has no .mat for {len(missing)} of the {len(image_set)} images of {image_set.name}, the "
            f"first is {missing[0]}.mat."
        )
    return entries


def _from_matlab(path: Path, cell: object) -> np.ndarray:
    y1, x1, y2, x2 = _columns(path, cell)
    return np.stack([x1 - 1, y1 - 1, x2, y2], axis=1)


def _columns(path: Path, array: object) -> np.ndarray:
    """Return box columns [4, k] float64."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise DataError(f"{path}: an image's boxes must be numbers, found {type(array).__name__}.")
    if array.size == 0:
        return np.zeros((4, 0))
    if array.ndim != 2 or array.shape[1] != 4:
        raise DataError(f"{path}: an image's boxes must be [k, 4], found {list(array.shape)}.")
    return array.astype(np.float64).T


def _scores(path: Path, array: object, count: int) -> np.ndarray:
    values = array if isinstance(array, np.ndarray) else np.asarray(None)
    if values.dtype.kind not in "iuf" or values.size != count:
        raise DataError(f"{path}: an image has {count} boxes but {values.size} scores.")
    return values.astype(np.float32).ravel()


def _read_pickle(path: Path) -> tuple[list, list[_Entry]]:
    content = load_arrays(path)
    ids = next((content[k] for k in ("indexes", "ids") if k in content), None)
    if "boxes" not in content or ids is None:
        raise DataError(
            f"{path}: needs `boxes` and `indexes` (or `ids`), found {sorted(map(str, content))}."
        )
    boxes, scores = list(content["boxes"]), content.get("scores")
    if scores is not None and len(scores) != len(boxes):
        raise DataError(f"{path}: boxes for {len(boxes)} images but scores for {len(scores)}.")
    entries = []
    for number, array in enumerate(boxes):
        x1, y1, x2, y2 = _columns(path, array)
        image_scores = None if scores is None else _scores(path, scores[number], len(x1))
        entries.append(_Entry(np.stack([x1, y1, x2 + 1, y2 + 1], axis=1), image_scores))
    return np.asarray(ids).ravel().tolist(), entries


def _assemble(
    path: Path, entries: list[_Entry], image_set: ImageSet, unused: int, *, generator: str
) -> ImportResult:
    clipped, boxes = 0, {}
    for record, entry in zip(image_set.records, entries, strict=True):
        boxes[record.image_id], count = _clip(path, entry.boxes, record)
        clipped += count
    sizes = {r.image_id: (r.height, r.width) for r in image_set.records}
    scores = None
    if all(entry.scores is not None for entry in entries):
        scores = {r.image_id: e.scores for r, e in zip(image_set.records, entries, strict=True)}
    proposals = ProposalSet.from_images(sizes, boxes, scores, generator=generator, origin=str(path))
    return ImportResult(proposals, clipped, unused)


def _clip(path: Path, boxes: np.ndarray, record: ImageRecord) -> tuple[np.ndarray, int]:
    """Clip boxes that leave the image by at most a pixel; further out they belong to another image."""
    edges = np.array([record.width, record.height, record.width, record.height], np.float64)
    beyond = np.maximum(-boxes, boxes - edges).max(axis=1, initial=0.0)
    if not (beyond <= BEYOND_PX).all():
        row = int(np.argmin(beyond <= BEYOND_PX))
        raise DataError(
            f"{path}: box {boxes[row].tolist()} (x1, y1, x2, y2) leaves image {record.image_id!r}, which has "
            f"{record.width}×{record.height} pixels. Are the proposals of these images, at this size?"
        )
    return np.clip(boxes, 0, edges).astype(np.float32), int((beyond > 0).sum())
