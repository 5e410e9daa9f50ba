"""The identity of a run: metadata stored with its checkpoints, and their comparison."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import jax
from etils import epath

import wsod_jax
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.train.optim import path_name

FORMAT = 2  # of checkpoints; those of wsod_jax 0.1 have no number
BOX_CONVENTION = "xyxy, absolute pixels, continuous edges (width = x2 - x1)"


def run_metadata(
    *,
    method: str,
    class_names: Sequence[str],
    config: Mapping[str, Any],
    split: str,
    seed: int,
    result: Literal["params", "ema"] = "params",
    backbone: Mapping[str, Any] | None = None,
) -> dict:
    """Return the metadata stored as JSON with each checkpoint.

    Args:
      method: the method's name.
      class_names: foreground classes in the order of the scores.
      config: the whole configuration, plain values only.
      split: name of the training split.
      seed: the run's seed.
      result: the weights used for prediction, trained ones or their running average.
      backbone: the backbone's `description`; `None` for methods without.

    Returns:
      A dict of JSON types, with package versions and the box convention added.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    described = {
        "format": FORMAT,
        "method": method,
        "result": result,
        "backbone": backbone,
        "class_names": list(class_names),
        "box_convention": BOX_CONVENTION,
        "split": split,
        "seed": seed,
        "config": config,
        "versions": {
            "python": platform.python_version(),
            "wsod_jax": wsod_jax.__version__,
            **{name: version(name) for name in packages},
        },
    }
    return json.loads(json.dumps(described))


def check_format(metadata: Mapping[str, Any], folder: epath.Path) -> None:
    """Raise for a checkpoint of another format.

    Raises:
      DataError: names the version that wrote it.
    """
    if metadata.get("format") != FORMAT:
        writer = metadata.get("versions", {}).get("wsod_jax", "another version")
        raise DataError(
            f"checkpoint {folder} was written by wsod_jax {writer}, whose checkpoints this version cannot read; "
            "train again, or use the version that wrote it"
        )


def compare_runs(
    stored: dict, current: dict, may_differ: Sequence[str], folder: epath.Path
) -> None:
    """Raise for the checkpoint of another run; warn if only package versions changed.

    Args:
      stored: metadata read from the checkpoint; names that `current` lacks at its top level are ignored.
      current: metadata of this run.
      may_differ: dotted names that may change, each with everything below it.
      folder: for the message.

    Raises:
      ConfigError: lists the differences (only the method if that differs) and what to do.
    """
    before, now = dotted(stored), dotted(current)
    ours = {name for name in before.keys() | now.keys() if name.split(".")[0] in current}
    changed = sorted(name for name in ours if before.get(name) != now.get(name))
    versions = [name for name in changed if name.startswith("versions.")]
    ignored = [*may_differ, "versions"]
    wrong = [n for n in changed if not any(n == i or n.startswith(i + ".") for i in ignored)]
    if "method" in wrong:
        wrong = ["method"]  # another method has other options
    if wrong:
        texts = {name: f"{_shown(before, name)} there, {_shown(now, name)} now" for name in wrong}
        of_config = {text for name, text in texts.items() if name.startswith("config.")}
        lines = [
            f"  {name}: {text}"
            for name, text in texts.items()
            if name.startswith("config.") or text not in of_config  # the seed is in both
        ]
        more = f"\n  and {len(lines) - 12} more" if len(lines) > 12 else ""
        raise ConfigError(
            f"{folder} has checkpoints of another run:\n"
            + "\n".join(lines[:12])
            + more
            + "\nUse another --workdir for this run, restore these values to resume that one, or delete its folder"
        )
    if versions:
        lines = [f"{n[9:]} {before.get(n)} -> {now.get(n)}" for n in versions]
        warnings.warn(
            f"resuming with other versions, so results may not be bit-identical: {', '.join(lines)}",
            stacklevel=4,
        )


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "absent"


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts (and empty inner dicts) under names such as "config.optim.name"."""
    if not isinstance(tree, dict) or (prefix and not tree):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= dotted(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def layout(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of every array of a pytree, such as "float32[3, 4]", by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def compare_layouts(stored: dict, wanted: dict, folder: epath.Path) -> None:
    """Raise for a checkpoint whose arrays differ in name, shape or dtype from this run's.

    Args:
      stored: nested dict of arrays or their specs with `shape` and `dtype`, from the checkpoint.
      wanted: likewise, of this run.
      folder: for the message.

    Raises:
      ConfigError: lists the arrays.
    """
    before, now = layout(stored), layout(wanted)
    wrong = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if wrong:
        lines = [
            f"  {n}: {before.get(n, 'absent')} there, {now.get(n, 'absent')} now"
            for n in wrong[:12]
        ]
        raise ConfigError(
            f"checkpoint {folder} does not fit this network ({len(wrong)} arrays differ):\n"
            + "\n".join(lines)
            + "\nUse the code and configuration that wrote it, or another --workdir"
        )
