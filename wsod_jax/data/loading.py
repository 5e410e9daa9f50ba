"""Run an assembler of micro-batches ahead of their use: on a thread pool, or by tf.data. Same arrays from both."""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Literal, TypeVar

import jax
import numpy as np

from wsod_jax.errors import ConfigError, DataError

Arrays = TypeVar("Arrays")  # a pytree of NumPy arrays
Loader = Literal["tf", "threads"]


def load(
    assemble: Callable[[int], Arrays],
    numbers: range | itertools.count,
    *,
    loader: Loader,
    workers: int | None,
    prefetch: int,
) -> Iterator[Arrays]:
    """Yield `assemble(number)` for each number, in order, working ahead.

    Args:
      assemble: makes the arrays of one micro-batch, as a pytree; called from several threads at once. Structure and
        dtypes are the same for every number.
      numbers: a range, or an endless `itertools.count`.
      loader: "tf" runs it in tf.data, "threads" in a thread pool without TensorFlow.
      workers: threads; by default one per core this process may use.
      prefetch: finished micro-batches held ready.

    Raises:
      DataError: what `assemble` raised.
      ConfigError: for an unknown loader, or "tf" where TensorFlow is not installed.
    """
    workers = workers or num_cores()
    if loader == "threads":
        return _load_with_threads(assemble, numbers, workers, prefetch)
    if loader == "tf":
        return _load_with_tf(assemble, numbers, workers, prefetch)
    raise ConfigError(f'loader={loader!r}; allowed are "tf" and "threads".')


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
    assemble: Callable[[int], Arrays], numbers: Iterable[int], workers: int, prefetch: int
) -> Iterator[Arrays]:
    tf = import_tensorflow()
    first = next(iter(numbers), None)
    if first is None:
        return
    # The first micro-batch is made here: it tells structure and dtypes, and fails with a plain error.
    sample = assemble(first)
    leaves, structure = jax.tree.flatten(sample)
    dtypes = [leaf.dtype for leaf in leaves]
    yield sample
    failures = []

    def call(number: np.int64) -> list[np.ndarray]:
        try:
            return jax.tree.leaves(assemble(int(number)))
        except DataError as error:  # TensorFlow would pass on its text only
            failures.append(error)
            raise

    rest = _rest(numbers)
    dataset = tf.data.Dataset.range(rest.start, rest.stop).map(
        lambda number: tf.numpy_function(call, [number], dtypes, stateful=True),
        num_parallel_calls=workers,
        deterministic=True,
    )
    dataset = dataset.prefetch(prefetch)
    try:
        for arrays in dataset.as_numpy_iterator():
            yield jax.tree.unflatten(structure, arrays)
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


def _rest(numbers: range | itertools.count) -> range:
    """Return what follows the first number; `count` is called here after its first was taken."""
    if isinstance(numbers, range):
        return numbers[1:]
    return range(next(numbers), 2**62)


def import_tensorflow() -> ModuleType:
    """Import TensorFlow and keep it off the accelerators.

    Raises:
      ConfigError: if it is not installed.
    """
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "2"
    )  # it greets every run with a page of messages
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no use here, and one more message
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ConfigError(
            "TensorFlow is not installed: pip install tensorflow-cpu. Without it use "
            'loader="threads", and files in the VOC layout or a folder.'
        ) from error
    try:
        tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    except RuntimeError:  # TensorFlow is in use already, and has taken what it wanted
        pass
    return tf
