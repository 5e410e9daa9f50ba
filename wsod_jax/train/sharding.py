"""Placement of arrays: one mesh over all devices, batches split over images, the state replicated.

Several processes may share the mesh. Each then puts its rows of a batch and can read only those; all other arrays read
on the host are replicated. Only this file fetches arrays that are split.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wsod_jax.errors import ConfigError

DATA_AXIS = "data"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """Make the mesh over the devices of all processes, with the one axis `data`.

    Devices are in the order of their processes, so process p of P has the p-th part of the rows.

    Args:
      num_devices: use only the first ones; `None` uses all. Several processes always use all.

    Returns:
      A mesh with automatic axes (explicit ones reject batched indexing).

    Raises:
      ConfigError: if there are fewer devices, or processes have different numbers of them.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    processes = jax.process_count()
    count = len(devices) if num_devices is None else num_devices
    if processes > 1:
        counts = [sum(d.process_index == p for d in devices) for p in range(processes)]
        if count != len(devices) or len(set(counts)) > 1:
            raise ConfigError(
                f"a mesh of {count} devices was requested, and {processes} processes have {counts}; several "
                "processes must use all of their devices, the same number in each"
            )
    if not 1 <= count <= len(devices):
        raise ConfigError(
            f"a mesh of {count} devices was requested, but this process has {len(devices)} "
            f"({devices[0].platform}); request 1 to {len(devices)}, or None for all"
        )
    return Mesh(np.asarray(devices[:count]), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first axis, the rows of a batch, over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put(batch: Any, mesh: Mesh) -> Any:
    """Move this process's rows of a batch onto the mesh, split along the rows.

    Args:
      batch: any pytree of NumPy arrays whose first axis is rows, one per image. Streams may have different
        numbers of rows, each divisible by this process's devices. With P processes, rows of process p become
        rows p·n … p·n + n - 1 of the global array; n must be the same in all.
      mesh: a mesh with a `data` axis.

    Returns:
      The same pytree of global `jax.Array`s, P times as long.

    Raises:
      ConfigError: if a leaf has no row axis, or its rows cannot be split evenly.
    """
    processes = _num_processes(mesh)
    devices = mesh.shape[DATA_AXIS] // processes
    layout = by_rows(mesh)

    def place(path: Any, leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if array.ndim == 0:
            raise ConfigError(
                f"batch{jax.tree_util.keystr(path)} is a scalar; the first axis of every array of a batch must be "
                "images: repeat the value for each image"
            )
        images = array.shape[0]
        if images % devices:
            fits = [n for n in range(1, images + 1) if images % n == 0 and n <= devices]
            raise ConfigError(
                f"batch{jax.tree_util.keystr(path)} has {images} images, which {devices} devices cannot "
                f"share evenly; make the micro-batch a multiple of {devices} (the next is "
                f"{-(-images // devices) * devices}), or use {fits[-1]} device(s)"
            )
        if processes == 1:
            return jax.device_put(array, layout)
        shape = (images * processes, *array.shape[1:])
        return jax.make_array_from_process_local_data(layout, array, shape)

    return jax.tree_util.tree_map_with_path(place, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a tree to every device of the mesh.

    Args:
      tree: pytree of arrays on the host, or on this mesh already; the same values in every process.
      mesh: the target.

    Returns:
      The same pytree of global `jax.Array`s.
    """
    layout = replicated(mesh)
    if _num_processes(mesh) == 1:
        return jax.device_put(tree, layout)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == layout:
            return leaf
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, layout, lambda index: array[index])

    return jax.tree.map(place, tree)


def fetch(tree: Any) -> Any:
    """Copy arrays that every process can read to the host.

    Args:
      tree: pytree of arrays that are whole on a device of this process: metrics, the state.

    Returns:
      The same pytree of NumPy arrays.

    Raises:
      ValueError: if an array is split over processes.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            raise ValueError(
                f"array{jax.tree_util.keystr(path)} of shape {leaf.shape} is split over processes and cannot "
                "be read by one of them; use `local_rows` for this process's rows, or reduce it on the device"
            )
    return jax.device_get(tree)


def local_rows(tree: Any) -> Any:
    """Copy this process's rows to the host: the inverse of `put`.

    Args:
      tree: pytree of arrays split along their first axis.

    Returns:
      The same pytree of NumPy arrays, with the rows that this process put, in their order.

    Raises:
      ValueError: if an array of several processes is not split by rows alone.
    """

    def rows(path: Any, leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable:
            return np.asarray(leaf)
        shards = {shard.index[0].start: shard for shard in leaf.addressable_shards}
        if leaf.is_fully_replicated or any(
            s.data.shape[1:] != leaf.shape[1:] for s in shards.values()
        ):
            raise ValueError(
                f"array{jax.tree_util.keystr(path)} of shape {leaf.shape} is not split by rows over the "
                "processes, so this process has no rows of it; split it by `by_rows`, or `fetch` it"
            )
        return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])

    return jax.tree_util.tree_map_with_path(rows, tree)


def _num_processes(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})
