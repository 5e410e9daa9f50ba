"""Is a configuration's value one that its setting can have? Types come from annotations, ranges from one table."""

from __future__ import annotations

import difflib
import itertools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from wsod_jax.errors import ConfigError

# Lowest and highest value, both allowed, of settings that would otherwise fail late, or silently do something else.
_SHARE, _COUNT, _NOT_NEGATIVE, _POSITIVE = (0, 1), (1, math.inf), (0, math.inf), (1e-12, math.inf)
RANGES: Mapping[str, tuple[float, float]] = {
    "method.fg_iou_thr": _SHARE,
    "method.ignore_iou_thr": _SHARE,
    "method.overlap_thr": _SHARE,
    "method.graph_iou_thr": _SHARE,
    "method.top_fraction": (1e-12, 1),
    "method.max_nodes": _NOT_NEGATIVE,
    "method.max_boxes": _COUNT,
    "method.max_centres": _COUNT,
    "method.num_kmeans_clusters": _COUNT,
    "method.beta": _NOT_NEGATIVE,
    "method.first_stage_scale": _NOT_NEGATIVE,
    "method.mil_scale": _NOT_NEGATIVE,
    "method.spatial_weight": _NOT_NEGATIVE,
    "network.num_stages": _NOT_NEGATIVE,
    "network.roi_size": _COUNT,
    "network.det_temperature": _POSITIVE,
    "network.score_gate": _NOT_NEGATIVE,
    "network.extra_channels": _COUNT,
    "network.extra_groups": _COUNT,
    "network.dropout_rate": (0, 0.999),
    "soft_proposal.epsilon_factor": _POSITIVE,
    "soft_proposal.num_steps": _NOT_NEGATIVE,
    "soft_proposal.tolerance": _NOT_NEGATIVE,
    "soft_proposal.block_nodes": _COUNT,
    "neck.dims": _COUNT,
    "neck.dropout_rate": (0, 0.999),
    "backbone.widths": _COUNT,
    "train.num_steps": _NOT_NEGATIVE,
    "train.micro_batch": _COUNT,
    "train.accumulate": _COUNT,
    "train.crop_margin": _NOT_NEGATIVE,
    "train.ema_decay": (0, 0.999999999),
    "optim.learning_rate": _NOT_NEGATIVE,
    "optim.decay_factor": _NOT_NEGATIVE,
    "optim.momentum": (0, 0.999999999),
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.clip_norm": _POSITIVE,
    "optim.betas": (0, 0.999999999),
    "optim.eps": _NOT_NEGATIVE,
    "optim.groups.lr": _NOT_NEGATIVE,
    "optim.groups.decay": _NOT_NEGATIVE,
    "log.every": _COUNT,
    "log.checkpoint_every": _COUNT,
    "log.milestones_every": _NOT_NEGATIVE,
    "log.pictures_every": _NOT_NEGATIVE,
    "log.num_pictures": _NOT_NEGATIVE,
    "log.profile_steps": _NOT_NEGATIVE,
    "eval.micro_batch": _COUNT,
    "eval.top_k": _COUNT,
    "eval.average_per_image": _COUNT,
    "eval.nms_thr": _SHARE,
    "eval.iou_thrs": _SHARE,
    "localization.threshold": _NOT_NEGATIVE,
    "localization.nms_thr": _SHARE,
    "localization.min_side_px": _NOT_NEGATIVE,
    "localization.predicted_thr": _SHARE,
    "localization.pointing_px": _NOT_NEGATIVE,
    "localization.prediction_px": _NOT_NEGATIVE,
}
_NAMES = {bool: "True, False", int: "whole numbers", float: "numbers", str: "text", Path: "text"}


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raise `ConfigError` unless a value fits its setting's annotation, and its range in `RANGES`.

    Checked are annotations of bool, int, float, str, `None`, literals, and unions and tuples of these; anything
    fits another annotation. A whole number is a number; `True` and `False` are not.

    Args:
      name: section and key, such as "eval.nms_thr".
      value: with tuples for lists.
      hint: the annotation.
    """
    if not _fits(value, hint):
        raise ConfigError(
            f"config.{name} is {value!r}; allowed are {_described(hint)}"
            + suggestion(str(value), [str(choice) for choice in _choices(hint)])
        )
    low, high = RANGES.get(name, (-math.inf, math.inf))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            bounds = f"from {low:g} to {high:.10g}" if high < math.inf else f"from {low:g} up"
            raise ConfigError(f"config.{name} is {value!r}; allowed are numbers {bounds}")


def suggestion(word: str, choices: Sequence[str]) -> str:
    """Return the end of a message: the choice that is close to a word, or nothing."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1:] == (Ellipsis,):
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is Sequence:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint in (int, float):
        kinds = int if hint is int else int | float
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, Path) else True


def _described(hint: Any) -> str:
    """Return what an annotation allows, in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(repr, parts))
    if origin in (typing.Union, types.UnionType):
        return ", ".join(dict.fromkeys(map(_described, parts)))
    if origin is tuple and parts[-1:] != (Ellipsis,):
        return f"tuples ({'; '.join(map(_described, parts))})"
    if origin in (tuple, Sequence):
        return f"tuples of {_described(parts[0])}"
    return "None" if hint is type(None) else _NAMES.get(hint, str(hint))


def _choices(hint: Any) -> tuple:
    """Return the literals in an annotation."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return parts
    return tuple(itertools.chain.from_iterable(map(_choices, parts)))
