"""Initialize a new run from other runs and weight files, by the names of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from wsod_jax.errors import ConfigError, DataError
from wsod_jax.train.checkpoint import load_checkpoint
from wsod_jax.train.optim import check_expressions, path_name
from wsod_jax.train.weights import SUFFIXES, check_meta, load_weights
from wsod_jax.types import Params

# Prefixes to try for a source's names; converted files name the layers of backbone and box head without their module.
_PREFIXES = ("", "backbone/", "box_head/")
_EXTRAS = "extras/"  # prefix of the names of extras


class InitSource(NamedTuple):
    """Weights to start from.

    Attributes:
      name: the file or folder.
      arrays: parameter path -> NumPy array; paths of extras begin with "extras/".
    """

    name: str
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class InitReport:
    """The use of every array; all names are sorted.

    Attributes:
      taken: source -> parameters that it initialized (a later source may have replaced their values).
      unused: source -> its arrays without a parameter.
      drawn: parameters and extras that keep their random initialization.
    """

    taken: Mapping[str, tuple[str, ...]]
    unused: Mapping[str, tuple[str, ...]]
    drawn: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for source, names in self.taken.items():
            left = self.unused[source]
            rest = f"; {len(left)} not used: {_shortened(left)}" if left else ""
            lines.append(f"{source}: {len(names)} arrays taken{rest}")
        if self.drawn:
            lines.append(f"{len(self.drawn)} randomly initialized: {_shortened(self.drawn)}")
        return "\n".join(lines)


class Started(NamedTuple):
    """Initialized parameters and extras, and the report."""

    params: Params
    extras: dict
    report: InitReport


def read_sources(
    paths: Sequence[str],
    backbone: Mapping[str, Any] | None = None,
    named: Mapping[str, Callable[[], tuple[Params, dict[str, Any]]]] = MappingProxyType({}),
) -> tuple[InitSource, ...]:
    """Read weights into host memory and check that they fit the backbone.

    Args:
      paths: each a weights file (.npz, .safetensors), or a run: its workdir (the newest step) or the folder of one
        step. A run gives the weights that it predicts with, trained ones or their running average, and its extras.
      backbone: the `description` of the run's backbone; `None` for methods without one.
      named: name to use instead of a path -> function that returns parameters and their description.

    Raises:
      DataError: if one is missing or damaged, or was made for other preprocessing or another architecture.
    """
    return tuple(_read_source(str(path), backbone, named) for path in paths)


def init_from(
    params: Params, extras: dict, sources: Sequence[InitSource], reinit: Sequence[str] = ()
) -> Started:
    """Replace randomly initialized parameters and extras by the sources' arrays of the same path and shape.

    Later sources override earlier ones. An array "fc6/kernel" of a file is for "fc6/kernel", "backbone/fc6/kernel" or
    "box_head/fc6/kernel", the first that exists.

    Args:
      params: initial parameters; unchanged.
      extras: initial extras; unchanged.
      sources: from `read_sources`.
      reinit: regular expressions, searched in the paths of parameters ("refine/head/kernel") and extras
        ("extras/centers"); those that match keep their initial values, such as heads for other classes.

    Returns:
      `Started`, with trees of the given structure, shapes and dtypes. Arrays are copies.

    Raises:
      ConfigError: if a shape differs, or an expression in `reinit` is invalid or matches nothing.
      DataError: if no array of a source fits.
    """
    check_expressions({f"config.train.reinit[{i}]": p for i, p in enumerate(reinit)})
    leaves, structure = jax.tree_util.tree_flatten_with_path((params, extras))
    targets = {_target_name(path): leaf for path, leaf in leaves}
    idle = [p for p in reinit if not any(re.search(p, name) for name in targets)]
    if idle:
        raise ConfigError(
            f"config.train.reinit: {idle[0]!r} matches no parameter; correct or remove it. The parameters are:\n  "
            + "\n  ".join(targets)
        )
    kept = {name for name in targets if any(re.search(p, name) for p in reinit)}
    values, taken, unused = dict(targets), {}, {}
    for source in sources:
        places = {name: _place(name, targets) for name in source.arrays}
        used = {name: at for name, at in places.items() if at is not None and at not in kept}
        _check_shapes(source, used, targets)
        for name, at in used.items():
            values[at] = jnp.array(source.arrays[name], targets[at].dtype)
        if not used:
            raise DataError(
                f"none of the arrays of {source.name} ({_shortened(sorted(source.arrays))}) belongs to this network, "
                f"whose parameters are {_shortened(sorted(targets.keys() - kept))}; remove it from "
                "config.train.init_from, or give the weights of a network with such layers"
            )
        taken[source.name] = tuple(sorted(used.values()))
        unused[source.name] = tuple(sorted(source.arrays.keys() - used.keys()))
    drawn = targets.keys() - {name for names in taken.values() for name in names}
    merged = jax.tree.unflatten(structure, [values[name] for name in targets])
    return Started(*merged, InitReport(taken, unused, tuple(sorted(drawn))))


def _read_source(
    path: str, backbone: Mapping[str, Any] | None, named: Mapping[str, Callable]
) -> InitSource:
    if path in named or epath.Path(path).suffix in SUFFIXES:
        params, meta = named[path]() if path in named else load_weights(path)
        if backbone is not None:
            check_meta(meta, backbone, path=path)
        return InitSource(path, _named(params))
    if not epath.Path(path).is_dir():
        raise DataError(
            f"there is no run at {path}; config.train.init_from takes workdirs, folders of checkpoints, "
            f"weight files ending in {' or '.join(SUFFIXES)} (wsod-jax convert_weights makes them of other "
            f"frameworks' files) and the names of installed weights ({', '.join(named) or 'none here'})"
        )
    loaded = load_checkpoint(path, weights=None)
    made_for = loaded.metadata.get("backbone")
    if backbone is not None and made_for is not None:
        check_meta(made_for, backbone, path=path)
    arrays = {**_named(loaded.params), **_named(loaded.extras, _EXTRAS)}
    return InitSource(path, arrays)


def _named(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {prefix + path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _target_name(path: tuple) -> str:
    """Return the name of a leaf of (params, extras)."""
    return ("", _EXTRAS)[path[0].idx] + path_name(path[1:])


def _place(name: str, targets: Mapping[str, Any]) -> str | None:
    return next((prefix + name for prefix in _PREFIXES if prefix + name in targets), None)


def _check_shapes(
    source: InitSource, used: Mapping[str, str], targets: Mapping[str, jax.Array]
) -> None:
    """Raise `ConfigError` for arrays (name in the source -> name here) that have another shape here."""
    lines = [
        f"  {at}: {source.arrays[name].shape} there, {tuple(targets[at].shape)} here"
        for name, at in sorted(used.items())
        if source.arrays[name].shape != targets[at].shape
    ]
    if lines:
        more = f"\n  and {len(lines) - 12} more" if len(lines) > 12 else ""
        layer = lines[0].strip().partition(":")[0].rpartition("/")[0]
        raise ConfigError(
            f"config.train.init_from: arrays of {source.name} have other shapes than this network's:\n"
            + "\n".join(lines[:12])
            + f"{more}\nBuild the network as the weights need it, or initialize these layers randomly by expressions "
            f'in config.train.reinit, such as "^{layer}/"'
        )


def _shortened(names: Iterable[str], limit: int = 6) -> str:
    """Join the first names and append the number of others."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
