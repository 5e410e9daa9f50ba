"""Where arrays live: one mesh over the devices, batches split over images, the state on every device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wsod_jax.errors import ConfigError

DATA_AXIS = "data"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Make the mesh over the devices of this machine, with the one axis `data`.

    Args:
      num_devices: use only the first so many; `None` uses all.

    Returns:
      A mesh with automatic axes (explicit ones reject batched indexing).

    Raises:
      ConfigError: if there are not so many devices, or several processes share the run.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"the run is spread over {jax.process_count()} processes, but training uses the devices of one; "
            "start a single process, without jax.distributed"
        )
    devices = jax.local_devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ConfigError(
            f"a mesh of {count} devices was asked for, but this process has {len(devices)} "
            f"({devices[0].platform}); ask for 1 to {len(devices)}, or leave it out to use all"
        )
    return jax.make_mesh(
        (count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the layout that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(batch: Any, mesh: Mesh) -> Any:
    """Move a host batch onto the mesh, split along the images.

    Args:
      batch: any pytree of NumPy arrays whose first axis is images. Parts may hold different numbers of
        images (two streams), each divisible by the devices on the data axis.
      mesh: a mesh with a `data` axis.

    Returns:
      The same pytree of global `jax.Array`s.

    Raises:
      ConfigError: if a leaf has no image axis, or its images cannot be dealt out evenly.
    """
    devices = mesh.shape[DATA_AXIS]
    layout = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def place(path: Any, leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim == 0:
            raise ConfigError(
                f"batch{jax.tree_util.keystr(path)} is a scalar; every array of a batch leads with the "
                "image axis: repeat the value for each image"
            )
        images = array.shape[0]
        if images % devices:
            fits = [n for n in range(1, images + 1) if images % n == 0 and n <= devices]
            raise ConfigError(
                f"batch{jax.tree_util.keystr(path)} holds {images} images, which {devices} devices cannot "
                f"share evenly; make the micro-batch a multiple of {devices} (the next is "
                f"{-(-images // devices) * devices}), or use {fits[-1]} device(s)"
            )
        return jax.device_put(array, layout)

    return jax.tree_util.tree_map_with_path(place, batch)
