"""Several processes train one model: how they find each other, agree, and share what one of them does."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from wsod_jax.train.sharding import by_rows, fetch, replicated


def is_first() -> bool:
    """Return whether this process writes logs and images; the only one always does."""
    return jax.process_index() == 0


class Votes:
    """Lets processes agree on a number without waiting for it.

    Each casts one number an update, which a tiny program turns into the largest of all; it is counted an
    update later, when the device has long been past it. So all know the same after the same update.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Prepare for the processes of a mesh."""
        self._layout = by_rows(mesh)
        self._largest = jax.jit(jax.numpy.max, out_shardings=replicated(mesh))
        self._devices = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        self._cast: list[jax.Array] = []

    def cast(self, number: int) -> None:
        """Give this process's number."""
        own = np.full(self._devices, number, np.int32)
        self._cast.append(self._largest(jax.make_array_from_process_local_data(self._layout, own)))

    def count(self) -> int:
        """Return the largest number of the cast before the newest one, or 0 if there is none."""
        if len(self._cast) < 2:
            return 0
        return int(fetch(self._cast.pop(0)))
