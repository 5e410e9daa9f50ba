"""Masks of proposals, in one `.npz` file next to the file of the proposals: `x.masks.npz` of `x.npz`:

| key         | type             | meaning                                                                  |
|-------------|------------------|--------------------------------------------------------------------------|
| `version`   | int, 1           | of this schema                                                           |
| `proposals` | str              | checksum of the proposals, `ProposalSet.checksum`                        |
| `ids`       | [n] str          | the proposals' image ids, in their order                                 |
| `sizes`     | [n, 2] int32     | (height, width) of the images, which every mask has                      |
| `offsets`   | [n + 1] int64    | image i has the rows `offsets[i]:offsets[i + 1]`, those of its boxes     |
| `starts`    | [m + 1] int64    | row r has the bytes `starts[r]:starts[r + 1]` of `counts`                |
| `counts`    | [bytes] uint8    | the `counts` of COCO's compressed run-length encoding, row after row     |
| `generator` | str              | program that made them                                                   |

Masks are decoded when they are asked for. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.errors import DataError
from wsod_jax.files import atomic_write, read_npz
from wsod_jax.ops.masks import rle_to_mask
from wsod_jax.types import Mask

VERSION = 1
SUFFIX = ".masks.npz"
_ADVICE = "Import proposals and masks together, with wsod-jax make_proposals --import."


def masks_path(path: str | Path) -> Path:
    """Return where the masks of a proposals file lie: `x.npz` -> `x.masks.npz`."""
    return Path(path).with_suffix(SUFFIX)


@dataclass(frozen=True, repr=False)
class MaskSet:
    """A mask for every box of a set of proposals; see the table above.

    Attributes:
      proposals: whose masks they are; row r of an image is the mask of its box r.
      starts: [m + 1] int64.
      counts: [bytes] uint8.
      generator: program that made them.
      origin: name of the set in errors: its file.
    """

    proposals: ProposalSet
    starts: np.ndarray
    counts: np.ndarray
    generator: str = "unknown"
    origin: str = field(default="masks", compare=False)

    def __post_init__(self):
        m = len(self.proposals.boxes)
        for name, shape, kinds in (
            ("starts", (m + 1,), "iu"),
            ("counts", (len(self.counts),), "u"),
        ):
            array = getattr(self, name)
            if array.shape != shape or array.dtype.kind not in kinds:
                raise DataError(
                    f"{self.origin}: {name} is {array.dtype}{list(array.shape)}, must be whole numbers of shape "
                    f"{list(shape)} for {m} proposals. {_ADVICE}"
                )
        for name, dtype in (("starts", np.int64), ("counts", np.uint8)):
            object.__setattr__(self, name, getattr(self, name).astype(dtype, copy=False))
        ends = self.starts[[0, -1]].tolist()
        if ends != [0, len(self.counts)] or (np.diff(self.starts) < 0).any():
            raise DataError(
                f"{self.origin}: starts must rise from 0 to {len(self.counts)}, the bytes of counts. {_ADVICE}"
            )

    @classmethod
    def from_images(
        cls,
        proposals: ProposalSet,
        counts: Mapping[str, Sequence[bytes]],
        *,
        generator: str,
        origin: str = "masks",
    ) -> MaskSet:
        """Join per-image masks: id -> `counts` of the compressed RLE of each box.

        Raises:
          DataError: an image has another number of masks than of boxes.
        """
        for image_id, count in zip(proposals.ids, proposals.counts.tolist(), strict=True):
            found = len(counts.get(image_id, ()))
            if found != count:
                raise DataError(f"{origin}: {image_id!r} has {count} boxes but {found} masks.")
        parts = [part for image_id in proposals.ids for part in counts.get(image_id, ())]
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        joined = np.frombuffer(b"".join(parts), np.uint8)
        return cls(proposals, starts, joined, generator, origin)

    @classmethod
    def load(cls, path: str | Path, proposals: ProposalSet) -> MaskSet:
        """Read the masks of proposals.

        Raises:
          DataError: if the file is missing, not such a file, of an unknown version, malformed, or of other proposals.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file of masks. {_ADVICE}")
        arrays = read_npz(path, advice=_ADVICE)
        needed = {
            "version",
            "proposals",
            "ids",
            "sizes",
            "offsets",
            "starts",
            "counts",
            "generator",
        }
        missing = needed - arrays.keys()
        if missing:
            raise DataError(
                f"{path} is not a file of masks: it lacks {sorted(missing)}; found {sorted(arrays)}. {_ADVICE}"
            )
        version = arrays["version"].tolist()
        if version != VERSION:
            raise DataError(f"{path}: schema version {version!r}; this program reads {VERSION}.")
        _check_belongs(path, arrays, proposals)
        return cls(
            proposals, arrays["starts"], arrays["counts"], str(arrays["generator"]), str(path)
        )

    def save(self, path: str | Path) -> None:
        """Write the file atomically; `path` should be `masks_path` of the proposals file.

        Raises:
          OSError: if the disk is full or the folder not writable; an older file is unchanged.
        """
        arrays = {
            "version": np.int32(VERSION),
            "proposals": np.array(self.proposals.checksum),
            "ids": np.array(self.proposals.ids, np.str_),
            "sizes": self.proposals.sizes,
            "offsets": self.proposals.offsets,
            "starts": self.starts,
            "counts": self.counts,
            "generator": np.array(self.generator),
        }
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    def __len__(self) -> int:
        return len(self.proposals)

    def __repr__(self) -> str:
        return f"MaskSet({len(self)} images, {len(self.starts) - 1} masks, by {self.generator!r}, {self.origin!r})"

    def get(self, image_id: str) -> list[dict[str, Any]]:
        """Return the RLEs of an image's rows, unchecked; raise `DataError` for an unknown image."""
        size = list(self.proposals.size(image_id))
        first, end = self.proposals.rows(image_id)
        starts, counts = self.starts[first : end + 1].tolist(), self.counts
        return [
            {"size": size, "counts": counts[start:stop].tobytes()}
            for start, stop in zip(starts[:-1], starts[1:], strict=True)
        ]

    def masks(self, image_id: str, rows: Iterable[int]) -> tuple[Mask, ...]:
        """Decode the masks of some rows of an image.

        Raises:
          DataError: an unknown image, or a damaged mask.
        """
        rles, size = self.get(image_id), self.proposals.size(image_id)
        name = f"{self.origin}: mask {{}} of image {image_id!r}"
        return tuple(rle_to_mask(rles[row], size, name.format(row)) for row in rows)


def open_masks(path: str | Path) -> MaskSet:
    """Read a file of masks and the proposals file that lies next to it.

    Raises:
      DataError: the name does not end in .masks.npz, or as `MaskSet.load` and `ProposalSet.load`.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIX):
        raise DataError(
            f"{path}: the name of a file of masks ends in {SUFFIX}, with its proposals next to it: "
            f"{masks_path('voc07.npz')} of voc07.npz. {_ADVICE}"
        )
    proposals = ProposalSet.load(path.with_name(f"{path.name.removesuffix(SUFFIX)}.npz"))
    return MaskSet.load(path, proposals)


def _check_belongs(path: Path, arrays: Mapping[str, np.ndarray], proposals: ProposalSet) -> None:
    """Raise `DataError` unless the arrays of a file are of these proposals; say how they differ."""
    ids, offsets = arrays["ids"].ravel().tolist(), arrays["offsets"].ravel()
    sizes, checksum = arrays["sizes"], str(arrays["proposals"])
    other = next((i for i, own in zip(ids, proposals.ids, strict=False) if i != own), None)
    problem = None
    if other is not None:
        problem = f"image {other!r} is in the place of {proposals.ids[ids.index(other)]!r}"
    elif len(ids) != len(proposals):
        problem = f"it has {len(ids)} images, they have {len(proposals)}"
    elif offsets.shape != proposals.offsets.shape or (offsets != proposals.offsets).any():
        counts = zip(ids, np.diff(offsets).tolist(), proposals.counts.tolist(), strict=False)
        told = (f"image {i!r} has {a} masks and {b} boxes" for i, a, b in counts if a != b)
        problem = next(told, f"offsets are {offsets.dtype}{list(offsets.shape)}")
    elif sizes.shape != proposals.sizes.shape or (sizes != proposals.sizes).any():
        pairs = zip(ids, sizes.tolist(), proposals.sizes.tolist(), strict=False)
        told = (f"the masks of {i!r} have size {a}, the image {b}" for i, a, b in pairs if a != b)
        problem = next(told, f"sizes are {sizes.dtype}{list(sizes.shape)}")
    elif checksum != proposals.checksum:
        problem = f"it names the checksum {checksum!r:.40}, theirs is {proposals.checksum!r:.40}"
    if problem is not None:
        raise DataError(
            f"{path} has masks of other proposals than {proposals.origin}: {problem}. {_ADVICE}"
        )
