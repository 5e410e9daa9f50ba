"""Pooled proposals of a frozen backbone, cached in a folder and shared by heads, seeds, methods and evaluations.

The folder has one folder per recipe, `<architecture>-<checksum>`, with one file per view of an image. The checksum of a
recipe covers the compiled program's text, the backbone's weights and OpenCV's version; the name of a file is a checksum
of the encoded image, the view and the pooled boxes. So nothing has to be invalidated: other values have other names. A
file has the rows of real proposals, [n, p, p, d], followed by their CRC-32.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import jax
import numpy as np

from wsod_jax.data.input.transforms import View
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.files import atomic_write
from wsod_jax.types import Batch, Params, Views

logger = logging.getLogger(__name__)

Pool = Callable[[Params, Batch], jax.Array]
_CRC_BYTES = 4


@functools.partial(jax.jit, static_argnums=0)
def _pooled(pool: Pool, params: Params, batch: Batch) -> jax.Array:
    return pool(params, batch)


class PooledCache:
    """Pooled proposals, computed once per image and view, and kept in a folder.

    Calling it replaces `Batch.image` by `Batch.pooled`. As the input's `Loading.cache` it also saves decoding images
    whose pooled proposals it has. Several processes may use one folder at the same time: files are written atomically.
    A damaged file is reported, and computed again.

    Args:
      pool: (params, batch) -> [b, r, p, p, d], such as `Method.pool`; hashable, deterministic, and independent for
        each image.
      params: of the backbone, {"backbone": ...}.
      images: the set that `Batch.image_index` refers to.
      folder: for the recipes; made if absent.
      name: start of the recipe's name, such as the backbone's architecture.
      dtype: of the cached values; "float16" halves the folder and rounds to 11 bits, a relative error of 2^-11. For
        RoI max pooling this equals pooling a map in float16.
    """

    def __init__(
        self,
        pool: Pool,
        params: Params,
        images: ImageSet,
        folder: str | Path,
        *,
        name: str = "pooled",
        dtype: Literal["float16", "float32"] = "float16",
    ):
        self._dtype = np.dtype(dtype)
        self._images = images
        self._params = jax.device_put(params)
        self._pool = functools.partial(_pooled, pool)
        program = _pooled.lower(pool, self._params, _example())
        self.shape: tuple[int, ...] = program.out_info.shape[2:]  # [p, p, d]
        recipe = hashlib.blake2b(program.as_text().encode(), digest_size=8)
        for leaf in jax.tree.leaves(jax.device_get(params)):
            recipe.update(np.ascontiguousarray(leaf).tobytes())
        recipe.update(f"{self._dtype} {cv2.__version__}".encode())
        self.folder = Path(folder) / f"{name}-{recipe.hexdigest()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._contents: dict[int, bytes] = {}
        self._whole: set[str] = set()  # files checked by this process
        self._keeps = True
        self.num_computed = 0

    def missing_bytes(self, proposals: ProposalSet, max_proposals: int, num_views: int) -> int:
        """Return the bytes by which the folder may exceed its disk; 0 or less if it fits.

        Args:
          proposals: of the images.
          max_proposals: the most rows of an image.
          num_views: views of every image.
        """
        counts = (min(len(proposals.get(i)), max_proposals) for i in self._images.image_ids)
        row_bytes = int(np.prod(self.shape)) * self._dtype.itemsize
        kept = (path for path in self.folder.iterdir() if not path.name.startswith("."))
        existing = sum(path.stat().st_size for path in kept)  # hidden ones are being written
        return sum(counts) * num_views * row_bytes - existing - shutil.disk_usage(self.folder).free

    def has(self, index: int, view: View, row: Batch) -> bool:
        """Return whether the values of this view of an image are cached; `row` is its row of the batch."""
        mask = row.proposal_mask & row.image_mask
        if view.cropped or not mask.any():
            return False
        try:
            name = self._name(index, view.canvas, view.size, view.flipped, row.proposals[mask])
        except OSError:  # decoding the image will report it
            return False
        return name in self._whole or self._read(name, int(mask.sum())) is not None

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with `pooled` [b, r, p, p, d] in place of `image`; masked rows are 0.

        Raises:
          ConfigError: if a value does not fit the cache's type, or the batch has random windows of its images, or is
            jittered.
          DataError: if a file that the batch needs was deleted.
        """
        if np.any(batch.views.offset) or batch.views.photometric is not None:
            raise ConfigError(
                "the batch has random windows or jittered colors of images, each with its own pooled proposals, so a "
                'cache saves nothing; set crop to None, crop_margin to 0 and jitter to "none", or config.train.cache '
                'to "none"'
            )
        mask = np.asarray(batch.proposal_mask) & np.asarray(batch.image_mask)[:, None]
        pooled = np.zeros((*mask.shape, *self.shape), self._dtype)
        fresh = None
        for row in np.flatnonzero(mask.any(axis=1)):
            keep, index = mask[row], int(batch.image_index[row])
            size, flipped = batch.image_size[row].tolist(), bool(batch.views.flipped[row])
            boxes = batch.proposals[row][keep]
            name = self._name(index, batch.image.shape[1:3], size, flipped, boxes)
            values = self._read(name, len(boxes))
            if values is None and name in self._whole:
                raise DataError(
                    f"{self.folder / name} was deleted during the run; do not delete the cache of a running command. "
                    "Run the same command again: it resumes from the last checkpoint"
                )
            if values is None:
                fresh = np.asarray(self._pool(self._params, batch)) if fresh is None else fresh
                values = self._fitting(fresh[row][keep])
                self.num_computed += 1
                self._write(name, values)
            pooled[row, keep] = values
        return batch.replace(image=None, pooled=pooled)

    def _fitting(self, values: np.ndarray) -> np.ndarray:
        """Return values in the cache's type."""
        if not np.abs(values.astype(np.float32)).max() <= np.finfo(self._dtype).max:
            raise ConfigError(
                f'pooled proposals do not fit {self._dtype}; set config.train.cache to "none"'
            )
        return values.astype(self._dtype)

    def _name(self, index: int, canvas: Any, size: Any, flipped: bool, boxes: np.ndarray) -> str:
        """Return the name of a file: a checksum of the image, the view and the boxes."""
        if index not in self._contents:
            source = self._images.records[index].source
            encoded = source.read_bytes() if isinstance(source, Path) else source()
            self._contents[index] = hashlib.blake2b(encoded, digest_size=16).digest()
        checksum = hashlib.blake2b(self._contents[index], digest_size=16)
        checksum.update(np.array([*canvas, *size, flipped], np.int32).tobytes())
        checksum.update(np.ascontiguousarray(boxes, np.float32).tobytes())
        return checksum.hexdigest()

    def _read(self, name: str, count: int) -> np.ndarray | None:
        """Return the values [count, p, p, d] of a file, checked once; `None` if it is missing or damaged."""
        path = self.folder / name
        try:
            content = np.fromfile(path, np.uint8)
        except FileNotFoundError:
            return None
        values, checksum = content[:-_CRC_BYTES], content[-_CRC_BYTES:].tobytes()
        expected = count * int(np.prod(self.shape)) * self._dtype.itemsize
        if name not in self._whole:
            if len(values) != expected or checksum != _crc(values):
                logger.warning("%s is damaged; its pooled proposals are computed again", path)
                path.unlink(missing_ok=True)
                return None
            self._whole.add(name)
        return values.view(self._dtype).reshape(count, *self.shape)

    def _write(self, name: str, values: np.ndarray) -> None:
        """Write values; if that fails, warn once and write no more."""
        if not self._keeps:
            return
        try:
            with atomic_write(self.folder / name, "wb") as file:
                file.write(values)
                file.write(_crc(values))
        except OSError as error:
            self._keeps = False
            logger.warning(
                "pooled proposals are no longer cached, but computed again each time: %s", error
            )


def _crc(values: np.ndarray) -> bytes:
    return zlib.crc32(values).to_bytes(_CRC_BYTES, "little")


def _example() -> Batch:
    """Return the shapes of one image with one proposal, to compile the program's text."""

    def shape(*sizes: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *sizes), dtype)

    return Batch(
        image=shape(128, 128, 3, dtype=np.uint8),
        image_size=shape(2, dtype=np.int32),
        image_mask=shape(dtype=bool),
        image_index=shape(dtype=np.int32),
        views=Views(
            scale=shape(2, dtype=np.float32),
            offset=shape(2, dtype=np.int32),
            flipped=shape(dtype=bool),
            original_size=shape(2, dtype=np.int32),
        ),
        proposals=shape(1, 4, dtype=np.float32),
        proposal_mask=shape(1, dtype=bool),
    )
