"""Importers for the field's proposal files: Selective Search and MCG `.mat`, Detectron-style `.pkl`, masks as JSON.

| file                                  | ids                           | boxes                                  |
|---------------------------------------|-------------------------------|----------------------------------------|
| one `.mat` with cells `boxes`         | cell `images`, or the order   | (y1, x1, y2, x2), from 1, inclusive    |
| folder of `.mat`, one per image (MCG) | file names                    | (y1, x1, y2, x2), from 1, inclusive    |
| the same with `superpixels`, `labels` | file names                    | those around the masks                 |
| `.pkl`, dict `boxes`, `indexes`/`ids` | in the dict                   | (x1, y1, x2, y2), from 0, inclusive    |
| `.json`, a list of RLEs (SAM)         | `image_id`                    | those around the masks                 |

Ids are image ids or file names. Numeric ids may also be the set's numbers, such as COCO's image ids, or, in a set
without numbers, the digits of image ids: 2008000002 is "2008_000002". Masks are imported too; see `mask_import`.

Boxes are converted to (x1, y1, x2, y2) with continuous edges, so that a one-pixel box has width 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsod_jax.convert.restricted_pickle import load_arrays
from wsod_jax.data.images import SUFFIXES
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.mat import read_mat
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import DataError

if TYPE_CHECKING:  # it brings JAX, which the import of files without masks does without
    from wsod_jax.convert.mask_import import MaskedProposals
    from wsod_jax.data.proposals.mask_set import MaskSet

# Names of the variable with image ids in a .mat, and of the one with scores.
_NAMES = ("images", "image_ids", "ids", "indexes", "names", "files")
_SCORES = (
    "scores",
    "score",
    "bboxes_scores",
    "boxes_scores",
    "boxScores",
    "objectness",
    "obj_scores",
)
BEYOND_PX = (
    1.0  # boxes outside their image by at most this are clipped; some tools count one pixel more
)


@dataclass(frozen=True)
class ImportResult:
    """Imported proposals and statistics.

    Attributes:
      proposals: of every image of the set, in its order.
      clipped: number of boxes clipped by at most a pixel.
      unused: images of the file that are not in the set.
      by_order: the file has no image ids, so its images are taken in the order of the set.
      not_read: names of the file's other variables.
      masks: of the proposals, `None` if the source has none.
      empty: number of proposals left out because their mask has no pixel.
    """

    proposals: ProposalSet
    clipped: int
    unused: int
    by_order: bool = False
    not_read: tuple[str, ...] = ()
    masks: MaskSet | None = None
    empty: int = 0

    @property
    def summary(self) -> str:
        """One line of text."""
        scored = "without scores" if self.proposals.scores is None else "with scores"
        text = (
            f"{len(self.proposals)} images, {len(self.proposals.boxes)} boxes {scored} ({self.clipped} clipped by up "
            f"to a pixel), {self.unused} further images in the file not used."
        )
        if self.by_order:
            text += " The file has no image ids: images are taken in the order of the split."
        if self.masks is not None:
            text += f" Every box is the one around a mask; {self.empty} masks without a pixel are left out."
        if self.not_read:
            text += f" Not read: {', '.join(self.not_read)}."
        return text


@dataclass(frozen=True)
class _Entry:
    """One image's boxes as x1, y1, x2, y2 with continuous edges, its scores, and its masks as compressed RLE counts."""

    boxes: np.ndarray
    scores: np.ndarray | None
    masks: list[bytes] | None = None
    empty: int = 0  # left out

    def best(self, num: int | None) -> _Entry:
        """Return the `num` best-scored rows, without scores the first ones, in the same order; `None` for all."""
        if num is None or len(self.boxes) <= num:
            return self
        order = np.arange(len(self.boxes)) if self.scores is None else -self.scores
        rows = np.sort(np.argsort(order, kind="stable")[:num])
        scores = None if self.scores is None else self.scores[rows]
        masks = None if self.masks is None else [self.masks[row] for row in rows]
        return _Entry(self.boxes[rows], scores, masks, self.empty)


def import_proposals(
    path: str | Path,
    image_set: ImageSet,
    *,
    num: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> ImportResult:
    """Convert published proposals of these images, with their masks where they have some.

    Args:
      path: a `.mat` (one for all images), a folder of `.mat` files (one per image), a `.pkl`, or a `.json`.
      image_set: the images of the proposals. Boxes and masks are checked against their sizes.
      num: the most proposals per image, the best-scored, without scores the first; `None` for all.
      report: called with (images done, total) after each image.

    Raises:
      DataError: if the file is malformed or unsafe, an image of the set is missing, the file has no image ids and
        another number of images, a box extends outside its image by more than a pixel, a mask is damaged or of another
        size than its image, or some images alone have masks.
    """
    path = Path(path)
    if path.is_dir():
        content, kind = _read_mat_folder(path), "MCG"
    elif path.suffix.lower() == ".mat":
        content, kind = _read_mat(path), "selective search"
    elif path.suffix.lower() in (".pkl", ".pickle"):
        content, kind = _read_pickle(path), "Detectron-style"
    elif path.suffix.lower() == ".json":
        content, kind = _read_json(path), "COCO results"
    else:
        wrong = f"ends in {path.suffix!r}" if path.exists() else "does not exist"
        raise DataError(
            f"{path} {wrong}; allowed are .mat, .pkl, .json and a folder of .mat files."
        )
    positions = _match(path, content, image_set)
    sizes = {r.image_id: (r.height, r.width) for r in image_set.records}
    clipped, empty, boxes, scores, masks = 0, 0, {}, {}, {}
    for done, (record, position) in enumerate(zip(image_set.records, positions, strict=True), 1):
        entry = content.entry(position, record).best(num)
        boxes[record.image_id], count = _clip(path, entry.boxes, record)
        clipped, empty = clipped + count, empty + entry.empty
        scores[record.image_id], masks[record.image_id] = entry.scores, entry.masks
        if report:
            report(done, len(image_set))
    generator = f"imported {kind} file {path.name}"
    proposals = ProposalSet.from_images(
        sizes,
        boxes,
        None if any(column is None for column in scores.values()) else scores,
        generator=generator if num is None else f"{generator}, at most {num} an image",
        origin=str(path),
    )
    by_order, unused = content.ids is None, content.count - len(image_set)
    found = ImportResult(proposals, clipped, unused, by_order, content.not_read)
    without = [image_id for image_id, counts in masks.items() if counts is None]
    if len(without) == len(masks):
        return found
    if without:
        raise DataError(
            f"{path} has no masks for {len(without)} of {len(masks)} images, the first is {without[0]!r}; masks are "
            "needed for all or none. Take the other images' `superpixels` out, or add these."
        )
    from wsod_jax.data.proposals.mask_set import MaskSet

    of_rows = MaskSet.from_images(proposals, masks, generator=generator, origin=str(path))
    return dataclasses.replace(found, masks=of_rows, empty=empty)


@dataclass(frozen=True)
class _Content:
    """A file: ids of its images, or `None`; their number; a function that reads one; names of variables not read."""

    ids: list | None
    count: int
    entry: Callable[[int, ImageRecord], _Entry]
    not_read: tuple[str, ...] = ()


def _match(path: Path, content: _Content, image_set: ImageSet) -> Sequence[int]:
    """Return the position in the file of each image of the set."""
    name = image_set.name
    if content.ids is None:
        if content.count != len(image_set):
            raise DataError(
                f"{path} has no image ids, and boxes for {content.count} images; {name} has {len(image_set)}. Give "
                "the split file that it was made for."
            )
        return range(content.count)
    if len(content.ids) != content.count:
        raise DataError(
            f"{path}: {len(content.ids)} image ids but boxes for {content.count} images."
        )
    by_text = {_text(value): position for position, value in enumerate(content.ids)}
    if len(by_text) < content.count:
        raise DataError(f"{path}: an image occurs twice.")
    matches = [[by_text.get(image_id) for image_id in image_set.image_ids]]
    has_numbers = any(record.number is not None for record in image_set.records)
    are_numbers = all(text.isdecimal() for text in by_text)
    are_files = are_numbers and any(str(value).endswith(SUFFIXES) for value in content.ids)
    if are_numbers and not are_files and (has_numbers or None in matches[0]):
        by_number = {int(text): position for text, position in by_text.items()}
        numbers = [r.number if has_numbers else _digits(r.image_id) for r in image_set.records]
        if len(set(numbers)) < len(numbers) or len(by_number) < content.count:
            raise DataError(
                f"{path} has numbers for ids, but image ids of it or of {name} are not distinct as numbers."
            )
        matches.append([by_number.get(number) for number in numbers])
    complete = [positions for positions in matches if None not in positions]
    if not complete:
        best = min(matches, key=lambda positions: positions.count(None))
        first = image_set.image_ids[best.index(None)]
        raise DataError(
            f"{path} has no boxes for {best.count(None)} of the {len(image_set)} images of {name}, the first is "
            f"{first!r}; the first id in the file is {next(iter(content.ids), None)!r}. Is it of another split?"
        )
    if complete[0] != complete[-1]:
        raise DataError(
            f"{path}: its ids are ambiguous: as file names of {name} and as image numbers of {name} they mean "
            "different images; write the image ids into it as text with a suffix, such as '12.jpg'."
        )
    return complete[0]


def _text(value: object) -> str:
    """Return an image id of a file as text, without an image suffix."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    stem, _, suffix = text.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in SUFFIXES else text


def _digits(image_id: str) -> int:
    """Return an image id as a number: "2008_000002" is 2008000002."""
    digits = "".join(c for c in image_id if c.isdecimal())
    return int(digits) if digits else -1


def _first_of(content: Mapping, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in content), None)


def _read_mat(path: Path) -> _Content:
    content = {key: value for key, value in read_mat(path).items() if not key.startswith("__")}
    cells = content.pop("boxes", None)
    if cells is None or cells.dtype != object:
        raise DataError(
            f"{path}: needs a cell array `boxes` with a cell per image, found {sorted(content)}."
        )
    cells, ids = cells.ravel(), None
    name = _first_of(content, _NAMES)
    if name is None:  # the only other variable with a text per image, if there is one
        others = [key for key, value in content.items() if _are_texts(value, len(cells))]
        if len(others) > 1:
            raise DataError(
                f"{path}: {' and '.join(others)} may be the image ids; rename the right one `images`."
            )
        name = others[0] if others else None
    if name is not None:
        ids = [_cell_text(path, cell) for cell in content.pop(name).ravel()]
    scored = _first_of(content, _SCORES)
    scores = None if scored is None else content.pop(scored).ravel()
    if scores is not None and len(scores) != len(cells):
        raise DataError(f"{path}: boxes for {len(cells)} images but {scored} for {len(scores)}.")

    def entry(position: int, record: ImageRecord) -> _Entry:
        boxes = _from_matlab(path, cells[position])
        found = None if scores is None else _scores(path, scores[position], len(boxes))
        return _Entry(boxes, found)

    return _Content(ids, len(cells), entry, tuple(sorted(content)))


def _are_texts(values: object, count: int) -> bool:
    """Return whether a variable has a text for each of `count` images."""
    if not isinstance(values, np.ndarray) or values.size != count or values.dtype != object:
        return False
    return all(getattr(cell, "dtype", np.dtype(float)).kind == "U" for cell in values.ravel())


def _cell_text(path: Path, cell: object) -> str:
    """Return the text of a cell: a [1] string array, or a nested cell."""
    while isinstance(cell, np.ndarray):
        if cell.size != 1:
            raise DataError(f"{path}: a cell of image ids has {cell.size} values instead of an id.")
        cell = cell.ravel()[0]
    return str(cell)


def _read_mat_folder(folder: Path) -> _Content:
    paths = sorted(folder.rglob("*.mat"))
    ids = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]

    def entry(position: int, record: ImageRecord) -> _Entry:
        path = paths[position]
        content = read_mat(path)
        name, scored = _first_of(content, ("bboxes", "boxes")), _first_of(content, _SCORES)
        if content.keys() >= {"superpixels", "labels"}:
            from wsod_jax.convert import mask_import

            found, scores = mask_import.from_superpixels(path, content, record), None
            if scored is not None:
                scores = _scores(path, content[scored], content["labels"].size)
            return _masked(found, scores)
        if name is None:
            found = sorted(k for k in content if not k.startswith("__"))
            raise DataError(
                f"{path}: needs `bboxes`, `boxes`, or `superpixels` and `labels`, found {found}."
            )
        boxes = _from_matlab(path, content[name])
        return _Entry(boxes, None if scored is None else _scores(path, content[scored], len(boxes)))

    return _Content(ids, len(paths), entry)


def _read_json(path: Path) -> _Content:
    from wsod_jax.convert import mask_import

    rles, scores = mask_import.read_mask_results(path)
    ids = [*rles]

    def entry(position: int, record: ImageRecord) -> _Entry:
        found = mask_import.from_rles(path, rles[ids[position]], record)
        return _masked(found, None if scores is None else scores[ids[position]])

    return _Content(ids, len(ids), entry)


def _masked(found: MaskedProposals, scores: np.ndarray | None) -> _Entry:
    """Return the proposals of one image that have masks; `scores` are of all in the file."""
    scores = None if scores is None else scores[found.rows]
    return _Entry(found.boxes, scores, found.counts, found.num_empty)


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


def _read_pickle(path: Path) -> _Content:
    content = dict(load_arrays(path))
    name, scored = _first_of(content, ("indexes", "ids")), _first_of(content, _SCORES)
    if "boxes" not in content or name is None:
        raise DataError(
            f"{path}: needs `boxes` and `indexes` (or `ids`), found {sorted(map(str, content))}."
        )
    boxes, ids = list(content.pop("boxes")), np.asarray(content.pop(name)).ravel().tolist()
    scores = None if scored is None else content.pop(scored)
    if scores is not None and len(scores) != len(boxes):
        raise DataError(f"{path}: boxes for {len(boxes)} images but {scored} for {len(scores)}.")

    def entry(position: int, record: ImageRecord) -> _Entry:
        x1, y1, x2, y2 = _columns(path, boxes[position])
        found = None if scores is None else _scores(path, scores[position], len(x1))
        return _Entry(np.stack([x1, y1, x2 + 1, y2 + 1], axis=1), found)

    return _Content(ids, len(boxes), entry, tuple(sorted(map(str, content))))


def _clip(path: Path, boxes: np.ndarray, record: ImageRecord) -> tuple[np.ndarray, int]:
    """Clip boxes that extend outside the image by at most `BEYOND_PX`; others belong to another image."""
    edges = np.array([record.width, record.height, record.width, record.height], np.float64)
    beyond = np.maximum(-boxes, boxes - edges).max(axis=1, initial=0.0)
    if not (beyond <= BEYOND_PX).all():
        row = int(np.argmin(beyond <= BEYOND_PX))
        raise DataError(
            f"{path}: box {boxes[row].tolist()} (x1, y1, x2, y2) extends outside image {record.image_id!r} of "
            f"{record.width}×{record.height} pixels. Are the proposals for these images, at this size?"
        )
    return np.clip(boxes, 0, edges).astype(np.float32), int((beyond > 0).sum())
