"""Run an assembler of micro-batches ahead of their use: on a thread pool, or by tf.data. Same arrays from both."""

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
    from wsod_jax.types import Batch  # brings JAX, which the workers that make proposals do without

Arrays = TypeVar("Arrays")  # a pytree of NumPy arrays
Loader = Literal["tf", "threads"]
OnBadImage = Literal["skip", "error"]


class Cache(Protocol):
    """Values that stand in for pixels: `Batch.features` or `Batch.pooled`."""

    def has(self, index: int, view: View, row: Batch) -> bool:
        """Return whether a view of an image needs no pixels; `row` is its share of a batch, all but the image."""

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with the values in place of `image`."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a process makes its batches. Nothing here changes what the micro-batches of all processes hold together.

    Attributes:
      loader: "threads", or "tf" (tf.data), which is no faster and needs TensorFlow; the batches are the same.
      workers: threads; by default one per core that this process may use.
      prefetch: finished micro-batches held ready.
      on_bad_image: what to do about an image that cannot be read: "skip" masks its row, counts it, and logs
        its name once; "error" raises.
      process_index, process_count: which process this is, and of how many. Of the n rows of a micro-batch it
        makes the (process_index + 1)-th of `process_count` equal shares, in order.
      cache: what stands in for pixels; images that it has are not decoded. `None` for none.
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
                f"workers={self.workers}, prefetch={self.prefetch}; allowed are 1 worker and more (None: one "
                "per core), and a prefetch of 0 and more."
            )
        if not 0 <= self.process_index < self.process_count:
            raise ConfigError(
                f"process_index={self.process_index} of process_count={self.process_count}; the index counts "
                "from 0 to process_count - 1."
            )

    @property
    def num_workers(self) -> int:
        """Threads that make batches."""
        return self.workers or num_cores()

    def rows_per_process(self, batch_size: int) -> int:
        """Return how many rows of a micro-batch this process makes.

        Raises:
          ConfigError: if the processes cannot share the rows evenly.
        """
        if batch_size % self.process_count:
            raise ConfigError(
                f"batch_size={batch_size} cannot be shared evenly by {self.process_count} processes; make it a "
                f"multiple of {self.process_count}."
            )
        return batch_size // self.process_count


def load(
    assemble: Callable[[int], Arrays],
    numbers: range | itertools.count,
    loading: Loading,
) -> Iterator[Arrays]:
    """Yield `assemble(number)` for each number, in order, working ahead.

    Args:
      assemble: makes the arrays of one micro-batch, as a pytree; called from several threads at once. Structure and
        dtypes are the same for every number.
      numbers: a range, or an endless `itertools.count`.
      loading: with what, with how many threads, and how far ahead.

    Raises:
      DataError: what `assemble` raised.
      ConfigError: where TensorFlow is asked for and not installed.
    """
    run = _load_with_tf if loading.loader == "tf" else _load_with_threads
    return run(assemble, numbers, loading.num_workers, loading.prefetch)


def num_cores() -> int:
    """Return how many cores this process may use, where the system tells, else how many there are."""
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
    """Let tf.data say when and in which of its threads; arrays stay in Python, for handing them over copies them."""
    tf = import_tensorflow()
    finished: dict[int, Arrays | Exception] = {}

    def finish(number: np.int64) -> np.int64:
        try:
            finished[int(number)] = assemble(int(number))
        except Exception as error:  # raised below; TensorFlow would pass on its text only
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
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no use here, and one more message
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ConfigError(
            'TensorFlow is not installed: pip install tensorflow-cpu, or use loader="threads", which is as fast.'
        ) from error
    try:
        tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    except RuntimeError:  # TensorFlow is in use already, and has taken what it wanted
        pass
    return tf
