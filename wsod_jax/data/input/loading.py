"""Prefetch micro-batches on a thread pool or by tf.data; both give the same arrays."""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

import numpy as np

from wsod_jax.data.input.transforms import View
from wsod_jax.errors import ConfigError

if TYPE_CHECKING:
    from wsod_jax.types import (
        Batch,
    )  # imports JAX, which the workers that make proposals do not need

Arrays = TypeVar("Arrays")  # a pytree of NumPy arrays
Loader = Literal["tf", "threads"]
OnBadImage = Literal["skip", "error"]


class Cache(Protocol):
    """Cached values that replace pixels: `Batch.features` or `Batch.pooled`."""

    def has(self, index: int, view: View, row: Batch) -> bool:
        """Return whether a view of an image needs no pixels; `row` is its row of the batch, without the image."""

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the values in place of `image`."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a process makes its batches. The micro-batches of all processes together do not depend on it.

    Attributes:
      loader: "threads", or "tf" (tf.data), which is no faster and needs TensorFlow; the batches are the same.
      workers: threads; by default one per core that this process may use.
      prefetch: finished micro-batches to keep ready.
      on_bad_image: for an unreadable image "skip" masks its row, counts it, and logs its name once; "error" raises.
      process_index, process_count: index of this process, and number of processes. Each makes an equal part of the
        rows of a micro-batch, in order.
      cache: values that replace pixels; images in it are not decoded. `None` for none.
    """

    loader: Loader = "threads"
    workers: int | None = None
    prefetch: int = 2
    on_bad_image: OnBadImage = "skip"
    process_index: int = 0
    process_count: int = 1
    cache: Cache | None = None

    def __post_init__(self):
        if self.loader not in get_args(Loader):
            raise ConfigError(f'loader={self.loader!r}; allowed are "tf" and "threads".')
        if self.on_bad_image not in get_args(OnBadImage):
            raise ConfigError(
                f'on_bad_image={self.on_bad_image!r}; allowed are "skip" and "error".'
            )
        if self.prefetch < 0 or (self.workers is not None and self.workers < 1):
            raise ConfigError(
                f"workers={self.workers}, prefetch={self.prefetch}; workers must be at least 1 (None: one per "
                "core), prefetch at least 0."
            )
        if not 0 <= self.process_index < self.process_count:
            raise ConfigError(
                f"process_index={self.process_index} of process_count={self.process_count}; the index must be "
                "from 0 to process_count - 1."
            )

    @property
    def num_workers(self) -> int:
        """Threads that make batches."""
        return self.workers or num_cores()

    def rows_per_process(self, batch_size: int) -> int:
        """Return the number of rows of a micro-batch that this process makes.

        Raises:
          ConfigError: if the rows cannot be split evenly.
        """
        if batch_size % self.process_count:
            raise ConfigError(
                f"batch_size={batch_size} cannot be split evenly over {self.process_count} processes; make it a "
                f"multiple of {self.process_count}."
            )
        return batch_size // self.process_count


def load(
    assemble: Callable[[int], Arrays],
    numbers: range | itertools.count,
    loading: Loading,
) -> Iterator[Arrays]:
    """Yield `assemble(number)` for each number, in order, with prefetching.

    Args:
      assemble: makes the arrays of one micro-batch, as a pytree; called from several threads at once. Structure and
        dtypes are the same for every number.
      numbers: a range, or an endless `itertools.count`.
      loading: loader, number of threads, and prefetch.

    Raises:
      DataError: from `assemble`.
      ConfigError: if TensorFlow is needed and not installed.
    """
    run = _load_with_tf if loading.loader == "tf" else _load_with_threads
    return run(assemble, numbers, loading.num_workers, loading.prefetch)


def num_cores() -> int:
    """Return the number of cores that this process may use, or of all if the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load_with_threads(
    assemble: Callable[[int], Arrays], numbers: Iterable[int], workers: int, prefetch: int
) -> Iterator[Arrays]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="input")
    pending = collections.deque()
    numbers = iter(numbers)
    try:
        for number in itertools.islice(numbers, workers + prefetch):
            pending.append(pool.submit(assemble, number))
        while pending:
            arrays = pending.popleft().result()
            for number in itertools.islice(numbers, 1):
                pending.append(pool.submit(assemble, number))
            yield arrays
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load_with_tf(
    assemble: Callable[[int], Arrays],
    numbers: range | itertools.count,
    workers: int,
    prefetch: int,
) -> Iterator[Arrays]:
    """Let tf.data schedule; arrays stay in Python, since passing them to TensorFlow would copy them."""
    tf = import_tensorflow()
    finished: dict[int, Arrays | Exception] = {}

    def finish(number: np.int64) -> np.int64:
        try:
            finished[int(number)] = assemble(int(number))
        except Exception as error:  # raised below; TensorFlow would keep only its text
            finished[int(number)] = error
        return number

    bounds = (numbers.start, numbers.stop) if isinstance(numbers, range) else (next(numbers), 2**62)
    dataset = tf.data.Dataset.range(*bounds).map(
        lambda number: tf.numpy_function(finish, [number], tf.int64, stateful=True),
        num_parallel_calls=workers,
        deterministic=True,
    )
    for number in dataset.prefetch(prefetch).as_numpy_iterator():
        result = finished.pop(int(number))
        if isinstance(result, Exception):
            raise result
        yield result


def import_tensorflow() -> ModuleType:
    """Import TensorFlow and keep it off the accelerators.

    Raises:
      ConfigError: if it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else a page of messages in every run
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not needed, and prints a message
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ConfigError(
            'TensorFlow is not installed: pip install tensorflow-cpu, or use loader="threads", which is as fast.'
        ) from error
    try:
        tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    except RuntimeError:  # TensorFlow is already initialized
        pass
    return tf
