"""Proposals of a set of images, in one `.npz` file:

| key         | type             | meaning                                                                  |
|-------------|------------------|--------------------------------------------------------------------------|
| `version`   | int, 1           | of this schema                                                           |
| `ids`       | [n] str          | image ids, distinct                                                      |
| `sizes`     | [n, 2] int32     | (height, width) of the upright images, pixels                            |
| `offsets`   | [n + 1] int64    | image i has the rows `offsets[i]:offsets[i + 1]`                         |
| `boxes`     | [m, 4] float32   | (x1, y1, x2, y2), pixels, continuous edges: width = x2 - x1; area > 0    |
| `scores`    | [m] float32      | optional objectness, higher is better                                    |
| `generator` | str              | program that made them, with its options                                 |

Nothing is pickled, so any program that writes NumPy arrays can write such a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from wsod_jax.data.records import ImageSet
from wsod_jax.errors import DataError
from wsod_jax.files import BAD_NPZ, array_checksum, atomic_write, read_npz

VERSION = 1
EDGE_TOLERANCE = 1e-3  # pixels that a box may extend outside its image by float32 rounding


@dataclass(frozen=True, repr=False)
class ProposalSet:
    """Boxes per image id, validated when made; see the table above.

    Attributes:
      ids: n image ids.
      sizes: [n, 2] int32 (height, width).
      offsets: [n + 1] int64.
      boxes: [m, 4] float32 xyxy, continuous edges.
      scores: [m] float32 or `None`.
      generator: program that made them, with its options.
      origin: name of the set in errors: its file.
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray | None = None
    generator: str = "unknown"
    origin: str = field(default="proposals", compare=False)

    def __post_init__(self):
        _check_shapes(self)
        _check_values(self)

    @classmethod
    def from_images(
        cls,
        sizes: Mapping[str, tuple[int, int]],
        boxes: Mapping[str, np.ndarray],
        scores: Mapping[str, np.ndarray] | None = None,
        *,
        generator: str,
        origin: str = "proposals",
    ) -> ProposalSet:
        """Join per-image arrays: id -> (height, width), id -> [k, 4] boxes and, if any, id -> [k] scores.

        Raises:
          DataError: if an id lacks boxes or scores, or an array is malformed.
        """
        for name, values in (("boxes", boxes), ("scores", scores)):
            missing = [] if values is None else [i for i in sizes if i not in values]
            if missing:
                raise DataError(
                    f"{origin}: {len(missing)} images have no {name}, first {missing[0]!r}."
                )
        counts = [len(boxes[i]) for i in sizes]
        rows = [np.asarray(boxes[i], np.float32).reshape(-1, 4) for i in sizes]
        values = (
            None if scores is None else [np.asarray(scores[i], np.float32).ravel() for i in sizes]
        )
        for image_id, count, value in zip(sizes, counts, values or (), strict=False):
            if len(value) != count:
                raise DataError(
                    f"{origin}: {image_id!r} has {count} boxes but {len(value)} scores."
                )
        return cls(
            ids=tuple(sizes),
            sizes=np.array(list(sizes.values()), np.int32).reshape(-1, 2),
            offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *rows]),
            scores=None if values is None else np.concatenate([np.zeros(0, np.float32), *values]),
            generator=generator,
            origin=origin,
        )

    @classmethod
    def load(cls, path: str | Path) -> ProposalSet:
        """Read and validate a file.

        Raises:
          DataError: if it is missing, not such a file, of an unknown version, or its content is malformed.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(
                f"{path}: no such proposals file; make one with wsod-jax make_proposals."
            )
        arrays = read_npz(
            path,
            advice="wsod-jax make_proposals writes such files; other formats are imported by its --import.",
        )
        missing = {"version", "ids", "sizes", "offsets", "boxes", "generator"} - arrays.keys()
        if missing:
            raise DataError(f"{path}: lacks {sorted(missing)}; found {sorted(arrays)}.")
        version = arrays["version"].tolist()
        if version != VERSION:
            raise DataError(f"{path}: schema version {version!r}; this program reads {VERSION}.")
        if arrays["ids"].dtype.kind != "U":
            raise DataError(f"{path}: ids must be strings, found {arrays['ids'].dtype}.")
        return cls(
            ids=tuple(arrays["ids"].ravel().tolist()),
            sizes=arrays["sizes"],
            offsets=arrays["offsets"],
            boxes=arrays["boxes"],
            scores=arrays.get("scores"),
            generator=str(arrays["generator"]),
            origin=str(path),
        )

    @staticmethod
    def read_generator(path: str | Path) -> str | None:
        """Return a file's `generator`, without reading the proposals; `None` if there is no such file."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return str(file["generator"])
        except BAD_NPZ:
            return None

    def save(self, path: str | Path) -> None:
        """Write the file atomically; `path` should end in .npz.

        Raises:
          OSError: if the disk is full or the folder not writable; an older file is unchanged.
        """
        arrays = {
            "version": np.int32(VERSION),
            "ids": np.array(self.ids, np.str_),
            "sizes": self.sizes,
            "offsets": self.offsets,
            "boxes": self.boxes,
            "generator": np.array(self.generator),
        }
        if self.scores is not None:
            arrays["scores"] = self.scores
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.ids)}

    def _row(self, image_id: str) -> int:
        if image_id not in self._rows:
            raise DataError(
                f"{self.origin} has no proposals for image {image_id!r} ({len(self)} images in the file); "
                "make them with wsod-jax make_proposals."
            )
        return self._rows[image_id]

    def rows(self, image_id: str) -> tuple[int, int]:
        """Return the first row of an image, and the one after its last. Raises DataError for an unknown image."""
        first, end = self.offsets[self._row(image_id) :][:2].tolist()
        return first, end

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ProposalSet({len(self)} images, {len(self.boxes)} boxes, by {self.generator!r}, {self.origin!r})"

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows

    def get(self, image_id: str) -> np.ndarray:
        """Return an image's boxes [k, 4] float32; k may be 0. Raises DataError for an unknown image."""
        first, end = self.rows(image_id)
        return self.boxes[first:end]

    def get_scores(self, image_id: str) -> np.ndarray | None:
        """Return an image's objectness scores [k] float32, or `None` if the file has none."""
        first, end = self.rows(image_id)
        return None if self.scores is None else self.scores[first:end]

    def size(self, image_id: str) -> tuple[int, int]:
        """Return the (height, width) of the image that the boxes were made for."""
        height, width = self.sizes[self._row(image_id)].tolist()
        return height, width

    @cached_property
    def checksum(self) -> str:
        """Text that other files name these proposals by: of ids, sizes and boxes, not of scores and generator."""
        ids = np.array("\0".join(self.ids), np.str_)
        arrays = {"sizes": self.sizes, "offsets": self.offsets, "boxes": self.boxes}
        return array_checksum({"ids": ids, **arrays})

    @property
    def counts(self) -> np.ndarray:
        """[n] int64, boxes per image."""
        return np.diff(self.offsets)

    @property
    def max_count(self) -> int:
        """The most boxes of any image; 0 for an empty set."""
        return int(self.counts.max(initial=0))

    def select(self, ids: Iterable[str]) -> ProposalSet:
        """Return the proposals of these images, in this order."""
        ids = list(ids)
        return ProposalSet.from_images(
            {i: self.size(i) for i in ids},
            {i: self.get(i) for i in ids},
            None if self.scores is None else {i: self.get_scores(i) for i in ids},
            generator=self.generator,
            origin=self.origin,
        )

    @staticmethod
    def merge(sets: Sequence[ProposalSet]) -> ProposalSet:
        """Join sets of different images, such as the splits of a data set.

        Raises:
          DataError: if an image is in two sets, or only some sets have scores.
        """
        if not sets:
            raise DataError("There are no proposal sets to merge.")
        scored = [s.scores is not None for s in sets]
        if any(scored) and not all(scored):
            without = next(s.origin for s in sets if s.scores is None)
            raise DataError(f"Cannot merge proposals with and without scores: {without} has none.")
        ends = np.cumsum([0, *(len(s.boxes) for s in sets)])
        offsets = [s.offsets[:-1] + end for s, end in zip(sets, ends[:-1], strict=True)]
        return ProposalSet(
            ids=tuple(i for s in sets for i in s.ids),
            sizes=np.concatenate([s.sizes for s in sets]),
            offsets=np.concatenate([*offsets, ends[-1:]]).astype(np.int64),
            boxes=np.concatenate([s.boxes for s in sets]),
            scores=np.concatenate([s.scores for s in sets]) if all(scored) else None,
            generator=" + ".join(dict.fromkeys(s.generator for s in sets)),
            origin=" + ".join(dict.fromkeys(s.origin for s in sets)),
        )


def check_proposals(proposals: ProposalSet, image_set: ImageSet) -> int:
    """Check that a proposals file belongs to these images.

    Returns:
      The number of images without boxes.

    Raises:
      DataError: if an image is missing from the file, or has another size there.
    """
    missing = [i for i in image_set.image_ids if i not in proposals]
    if missing:
        raise DataError(
            f"{proposals.origin} has no proposals for {len(missing)} of the {len(image_set)} images of "
            f"{image_set.name}; the first is {missing[0]!r}. Make them with wsod-jax make_proposals."
        )
    for record in image_set.records:
        size, expected = proposals.size(record.image_id), (record.height, record.width)
        if size != expected:
            raise DataError(
                f"{proposals.origin}: the boxes of image {record.image_id!r} are for (height, width) = {size}, "
                f"but the image of {image_set.name} has {expected}. Is the file for another data set?"
            )
    return sum(len(proposals.get(i)) == 0 for i in image_set.image_ids)


def _check_shapes(proposals: ProposalSet) -> None:
    n, m = len(proposals.ids), len(proposals.boxes)
    expected = {
        "sizes": ((n, 2), "iu"),
        "offsets": ((n + 1,), "iu"),
        "boxes": ((m, 4), "f"),
        "scores": ((m,), "f"),
    }
    for name, (shape, kinds) in expected.items():
        array = getattr(proposals, name)
        if name == "scores" and array is None:
            continue
        if array.shape != shape or array.dtype.kind not in kinds:
            number = "an integer" if kinds == "iu" else "a float"
            raise DataError(
                f"{proposals.origin}: {name} is {array.dtype}{list(array.shape)}, must be {number} array of "
                f"shape {list(shape)} for {n} images and {m} boxes."
            )
    for name, dtype in (("sizes", np.int32), ("offsets", np.int64), ("boxes", np.float32)):
        object.__setattr__(proposals, name, getattr(proposals, name).astype(dtype, copy=False))
    if proposals.scores is not None:
        object.__setattr__(proposals, "scores", proposals.scores.astype(np.float32, copy=False))
    if len(set(proposals.ids)) < n:
        seen: set[str] = set()
        twice = next(i for i in proposals.ids if i in seen or seen.add(i))
        raise DataError(f"{proposals.origin}: image {twice!r} occurs twice.")
    if proposals.offsets[0] != 0 or proposals.offsets[-1] != m or (proposals.counts < 0).any():
        raise DataError(
            f"{proposals.origin}: offsets must rise from 0 to {m}, the number of boxes."
        )


def _check_values(proposals: ProposalSet) -> None:
    """Raise for the first box that is not finite, has no area, or leaves its image."""
    boxes = proposals.boxes
    rows = np.repeat(np.arange(len(proposals.ids)), proposals.counts)
    edges = proposals.sizes[rows][:, ::-1] + EDGE_TOLERANCE
    problems = {
        "is not finite": ~np.isfinite(boxes).all(1),
        "has no area": ~(boxes[:, 2:] > boxes[:, :2]).all(1),
        "leaves its image": ~((boxes[:, :2] >= -EDGE_TOLERANCE) & (boxes[:, 2:] <= edges)).all(1),
    }
    if proposals.scores is not None:
        problems["has a score that is not finite"] = ~np.isfinite(proposals.scores)
    for problem, wrong in problems.items():
        if wrong.any():
            row = int(np.argmax(wrong))
            image_id, (height, width) = (
                proposals.ids[rows[row]],
                proposals.sizes[rows[row]].tolist(),
            )
            raise DataError(
                f"{proposals.origin}: box {boxes[row].tolist()} of image {image_id!r} ({width}×{height} pixels) "
                f"{problem}; {int(wrong.sum())} of {len(boxes)} boxes do. Boxes are (x1, y1, x2, y2) in pixels "
                "of the image, x1 < x2 and y1 < y2. Make them again with wsod-jax make_proposals."
            )
