"""The sizes of a folder's images, read in parallel once and kept in a file for the next start.

Opening the headers of a million images takes minutes, listing their names seconds. The file is an .npz with
`paths` (names below the folder, UTF-8, each followed by a zero byte) and `sizes` [n, 2] int32 (height, width).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsod_jax.data.images import image_size
from wsod_jax.data.input.loading import num_cores
from wsod_jax.errors import DataError
from wsod_jax.files import BAD_NPZ, atomic_write

logger = logging.getLogger(__name__)

Size = tuple[int, int]
_CHUNK = 256  # images per task
_MANY = 10_000  # reading more images than this is logged


def indexed_sizes(
    folder: Path, names: Sequence[str], index: Path, on_bad: Callable[[str, DataError], None]
) -> dict[str, Size]:
    """Return the size of every image, from the index if it has it, else from the header.

    The index is updated if the names differ: only headers of new images are read, and of those that could not be
    read before. A replaced image of the same name is not noticed here, but when it is decoded. An interrupted run
    keeps the sizes read so far. A damaged index is replaced; if it cannot be written, that is logged, and every
    start reads all headers.

    Args:
      folder: of the images.
      names: paths below it.
      index: the file.
      on_bad: called with the name of an image whose header cannot be read, and the error. It may raise; else the
        image is left out.

    Returns:
      name -> (height, width), in the order of `names`.
    """
    kept = _read(index)
    sizes = {name: kept[name] for name in names if name in kept}
    missing = [name for name in names if name not in kept]
    if len(missing) >= _MANY:
        logger.warning(
            "%s: reading the sizes of %d images, once; they are then kept in %s",
            folder,
            len(missing),
            index,
        )
    try:
        for name, size in image_sizes(folder, missing):
            if isinstance(size, DataError):
                on_bad(name, size)
            else:
                sizes[name] = size
    finally:
        if sizes.keys() != kept.keys():
            _write(index, sizes)
    return {name: sizes[name] for name in names if name in sizes}


def image_sizes(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, Size | DataError]]:
    """Yield (name, size in the header or the error) of images below a folder, in order."""

    def read(chunk: list[str]) -> list[tuple[str, Size | DataError]]:
        results = []
        for name in chunk:
            try:
                results.append((name, image_size(folder / name)))
            except DataError as error:
                results.append((name, error))
        return results

    threads = min(32, 4 * num_cores())  # mostly waiting for the disk
    chunks = (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sizes")
    try:
        with tqdm(total=len(names), unit="image", disable=None, leave=False) as bar:
            for results in pool.map(read, chunks):
                bar.update(len(results))
                yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(index: Path) -> dict[str, Size]:
    """Return the sizes in an index; empty if it is missing or damaged."""
    try:
        with np.load(index, allow_pickle=False) as arrays:
            names = os.fsdecode(arrays["paths"].tobytes()).split("\0")[:-1]
            sizes = arrays["sizes"]
        if sizes.shape != (len(names), 2) or sizes.dtype != np.int32 or (sizes < 1).any():
            raise ValueError(f"{len(names)} names and sizes of shape {sizes.shape}")
    except FileNotFoundError:
        return {}
    except BAD_NPZ as error:
        logger.warning("%s: damaged, made again (%s)", index, error)
        return {}
    return dict(zip(names, map(tuple, sizes.tolist()), strict=True))


def _write(index: Path, sizes: dict[str, Size]) -> None:
    """Write an index, atomically."""
    text = os.fsencode("".join(itertools.chain.from_iterable((name, "\0") for name in sizes)))
    try:
        with atomic_write(index, "wb") as file:
            np.savez_compressed(
                file,
                paths=np.frombuffer(text, np.uint8),
                sizes=np.array(list(sizes.values()), np.int32).reshape(-1, 2),
            )
    except OSError as error:
        logger.warning(
            "%s: cannot be written (%s), so every start reads the images' sizes again; choose another path by "
            "index_path",
            index,
            error,
        )
