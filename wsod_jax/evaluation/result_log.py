"""Results of a set on disk while it is predicted: what is finished survives, and is read back in image order."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wsod_jax.evaluation.maps import ImageMaps, MapReading, ViewMaps
from wsod_jax.types import ImageResult, Mask

_PLAIN = ("boxes", "scores", "classes", "rows", "views", "image_scores", "semantic")
_PLAIN += ("candidate_scores",)


class ResultLog:
    """A file of results, appended to as they come.

    Its first line tells what the results are of. A file of something else is overwritten; of the same, its results
    are kept and a record cut off in the middle is dropped. Each record is a line of JSON and the bytes of an .npz.

    Attributes:
      counts: totals that came with the last record.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], reading: MapReading):
        """Open a log.

        Args:
          path: of the file; its folder is made.
          identity: what the results are a function of, as JSON holds it.
          reading: how maps are read.
        """
        self._path, self._reading = Path(path), reading
        self._places: dict[int, tuple[int, int]] = {}  # image -> first byte and length of its .npz
        self.counts: dict[str, int] = {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps(identity, sort_keys=True).encode() + b"\n"
        with open(self._path, "a+b") as file:
            file.seek(0)
            if file.readline() == head:
                file.truncate(self._read_places(file))
            else:
                file.truncate(0)
                file.write(head)

    def __contains__(self, image_index: int) -> bool:
        return image_index in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, result: ImageResult, counts: Mapping[str, int]) -> None:
        """Append an image's result, and the totals so far."""
        buffer = io.BytesIO()
        np.savez(buffer, **_arrays(result))
        told = {"image": result.image_index, "bytes": buffer.tell(), "counts": dict(counts)}
        with open(self._path, "ab") as file:
            file.write(json.dumps(told).encode() + b"\n")
            place = file.tell(), buffer.tell()
            file.write(buffer.getvalue())
        self._places[result.image_index], self.counts = place, dict(counts)

    def __getitem__(self, image_index: int) -> ImageResult:
        start, length = self._places[image_index]
        with open(self._path, "rb") as file:
            file.seek(start)
            record = io.BytesIO(file.read(length))
        with np.load(record, allow_pickle=False) as arrays:
            return _result(image_index, dict(arrays), self._reading)

    def __iter__(self) -> Iterator[ImageResult]:
        """Yield the results in the order of the images."""
        for image_index in sorted(self._places):
            yield self[image_index]

    def remove(self) -> None:
        """Delete the file: what it is for is done."""
        self._path.unlink(missing_ok=True)

    def _read_places(self, file: BinaryIO) -> int:
        """Find the records after the first line; return where the last whole one ends."""
        size, end = self._path.stat().st_size, file.tell()
        while True:
            try:
                told = json.loads(file.readline())
                image, length, counts = told["image"], told["bytes"], told["counts"]
            except (ValueError, KeyError, TypeError):
                return end
            start = file.tell()
            if start + length > size:
                return end
            self._places[image], self.counts = (start, length), counts
            end = file.seek(start + length)


def _arrays(result: ImageResult) -> dict[str, np.ndarray]:
    """Return a result as flat arrays by name; what is `None` is left out."""
    found = {name: getattr(result, name) for name in _PLAIN}
    found = {name: value for name, value in found.items() if value is not None}
    found["size"] = np.array(result.size)
    if result.masks is not None:
        windows = [(m.top, m.left, *m.pixels.shape) for m in result.masks]
        bits = [np.packbits(m.pixels) for m in result.masks]
        found["mask_windows"] = np.array(windows, np.int32).reshape(-1, 4)
        found["mask_bits"] = np.concatenate([np.zeros(0, np.uint8), *bits])
    if result.maps is not None:
        found["map_classes"], found["map_predicted"] = result.maps.classes, result.maps.predicted
        for v, view in enumerate(result.maps.views):
            found[f"map_{v}_responses"] = view.cams
            found[f"map_{v}_proposals"] = view.proposal_map
            found[f"map_{v}_view"] = np.array([*view.size_px, view.mirrored])
    return found


def _result(image_index: int, arrays: dict[str, np.ndarray], reading: MapReading) -> ImageResult:
    """Return the result that `_arrays` took apart."""
    size = tuple(arrays["size"].tolist())
    masks = maps = None
    if "mask_windows" in arrays:
        masks, start = [], 0
        for top, left, height, width in arrays["mask_windows"].tolist():
            stop = start + -(-height * width // 8)
            bits = np.unpackbits(arrays["mask_bits"][start:stop], count=height * width)
            masks.append(Mask(top, left, bits.reshape(height, width).astype(bool)))
            start = stop
        masks = tuple(masks)
    if "map_classes" in arrays:
        views = []
        while f"map_{len(views)}_view" in arrays:
            name = f"map_{len(views)}"
            height, width, mirrored = arrays[f"{name}_view"].tolist()
            views.append(
                ViewMaps(
                    arrays[f"{name}_responses"],
                    arrays[f"{name}_proposals"],
                    (height, width),
                    bool(mirrored),
                )
            )
        maps = ImageMaps(
            tuple(views), arrays["map_classes"], arrays["map_predicted"], size, reading
        )
    plain = {name: arrays.get(name) for name in _PLAIN}
    return ImageResult(image_index, size, masks=masks, maps=maps, **plain)
