"""The host stage of an update: the method proposes, a cue source answers on the host, then the update trains.

`method.propose` returns a request for a micro-batch; a cue source answers it on the host, for instance with masks cut
by GrabCut; the update trains on the batch and the answer. Requests use the parameters at the start of their update, not
earlier ones, so that resuming is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import jax
import numpy as np

from wsod_jax.errors import CueError
from wsod_jax.train.sharding import local_rows, put
from wsod_jax.train.state import TrainState
from wsod_jax.train.step import TrainStep


class CueSource(AbstractContextManager, Protocol):
    """Makes cues on the host; entered before the first update and left after the last."""

    def __call__(self, request: Any, image_index: Any, image_mask: Any) -> Any:
        """Return the cues of this process's rows.

        Args:
          request: what `propose` returned, as NumPy arrays with rows leading.
          image_index: [b] int32, the image of each row; with several streams, a dict by stream.
          image_mask: [b] bool, False for fillers; likewise.

        Returns:
          A pytree of NumPy arrays with rows leading; with several streams a dict of them, for any of the
          streams. Shapes are the same in all updates.
        """


def add_cues(step: TrainStep, state: TrainState, batch: Any, source: CueSource) -> Any:
    """Return a micro-batch with its cues.

    Args:
      step: of a method with `propose`.
      state: before the update.
      batch: on the mesh; a batch with `image_index`, `image_mask` and `cues`, or a dict of them by stream.
      source: already entered.

    Returns:
      The batch that `propose` returned, on the mesh, with `cues` set.

    Raises:
      CueError: if the source raises, is killed, or returns anything but arrays of the batch's rows.
    """
    with jax.transfer_guard("disallow"):
        request, batch = step.propose(state, batch)
    streams = batch if isinstance(batch, dict) else {None: batch}
    index, mask = (
        {name: local_rows(getattr(part, field)) for name, part in streams.items()}
        for field in ("image_index", "image_mask")
    )
    rows = {name: len(values) for name, values in mask.items()}
    if isinstance(batch, dict):
        answers = _ask(source, local_rows(request), index, mask)
    else:
        answers = {None: _ask(source, local_rows(request), index[None], mask[None])}
    _check_answers(answers, rows, source_name(source))
    cued = {name: streams[name].replace(cues=put(a, step.mesh)) for name, a in answers.items()}
    return {**streams, **cued} if isinstance(batch, dict) else cued[None]


@contextmanager
def opened(source: CueSource | None) -> Iterator[CueSource | None]:
    """Enter a cue source for a block; without one the block gets `None`."""
    if source is None:
        yield None
        return
    with source as entered:
        yield entered


def source_name(source: CueSource) -> str:
    """Return the name of a source for messages."""
    return getattr(source, "name", None) or type(source).__name__


def _ask(source: CueSource, *request: Any) -> Any:
    try:
        return source(*request)
    except BrokenExecutor as error:
        raise CueError(
            f"a worker of the cue source {source_name(source)} was killed ({type(error).__name__}: {error}), "
            "often for lack of memory: give it fewer workers"
        ) from error
    except SystemExit as error:
        raise CueError(
            f"the cue source {source_name(source)} called exit (SystemExit: {error})"
        ) from error
    except Exception as error:
        raise CueError(
            f"the cue source {source_name(source)} raised {type(error).__name__}: {error}"
        ) from error


def _check_answers(answers: Any, rows: dict[str | None, int], source: str) -> None:
    """Raise `CueError` for answers that are not arrays of the requested rows."""
    if not isinstance(answers, dict) or not answers or not answers.keys() <= rows.keys():
        returned = sorted(answers) if isinstance(answers, dict) else type(answers).__name__
        raise CueError(
            f"the cue source {source} returned {returned}, but with several streams it must return a dict with "
            f"cues for some of {sorted(map(str, rows))}"
        )
    for name, answer in answers.items():
        stream = "" if name is None else f" of stream {name!r}"
        leaves = jax.tree_util.tree_leaves_with_path(answer)
        if not leaves:
            raise CueError(
                f"the cue source {source} returned {answer!r}{stream}, which has no array; it must return NumPy "
                f"arrays that lead with the requested {rows[name]} rows"
            )
        for path, leaf in leaves:
            where = f"cues{jax.tree_util.keystr(path)}{stream}"
            if not isinstance(leaf, np.ndarray) or leaf.dtype.kind in "OSUMm":
                kind = f"dtype {leaf.dtype}" if isinstance(leaf, np.ndarray) else repr(type(leaf))
                raise CueError(
                    f"the cue source {source} returned {where} of {kind}; all cues must be NumPy arrays of numbers "
                    "or booleans"
                )
            if leaf.ndim == 0 or leaf.shape[0] != rows[name]:
                raise CueError(
                    f"the cue source {source} returned {where} of shape {list(leaf.shape)}, but {rows[name]} rows "
                    "were requested; all cues must lead with these rows, fillers included"
                )
