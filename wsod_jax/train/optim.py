"""Optimisers with multipliers per group of parameters, as the detectors' released solvers had them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wsod_jax.errors import ConfigError
from wsod_jax.train.schedules import Schedule
from wsod_jax.types import Params

Rule = tuple[str, float, float]  # (regular expression, learning-rate multiplier, decay multiplier)


class SgdState(NamedTuple):
    """Updates done ([] int32) and one momentum array per trained parameter."""

    count: jax.Array
    momentum: Any


class LrState(NamedTuple):
    """Updates done ([] int32)."""

    count: jax.Array


def make_optimizer(
    *,
    schedule: Schedule,
    name: Literal["sgd", "adamw"] = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    groups: Sequence[Rule] = (),
    frozen: Sequence[str] = (),
    clip_norm: float | None = None,
    momentum_reset_steps: Sequence[int] = (),
    update_rule: Literal["caffe", "pytorch"] = "caffe",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Make SGD with momentum, or AdamW, with multipliers per parameter and no memory for frozen ones.

    With g the gradient (clipped first), w the parameter, η the scheduled rate, a and d the multipliers
    of the first rule whose expression is found in the parameter's path ("heads/refine/bias"):

      caffe:    v ← μ v + η a (g + λ d w);  w ← w − v     (old steps keep the rate of their time)
      pytorch:  v ← μ v + (g + λ d w);      w ← w − η a v
      adamw:    w ← w − η a (m̂ / (√v̂ + ε) + λ d w)

    Args:
      schedule: update count -> η.
      name: "sgd" or "adamw".
      momentum: μ (SGD only; so are `momentum_reset_steps` and `update_rule`).
      weight_decay: λ.
      groups: ordered rules (expression, a, d), searched anywhere in the path; the first that matches
        wins, a parameter without a match has a = d = 1.
      frozen: expressions of the parameters that never change; these take precedence over groups.
      clip_norm: largest global norm of the trained parameters' gradient, or `None`.
      momentum_reset_steps: updates that start from zero momentum, as a fresh solver would.
      update_rule: which of the two SGD rules.
      betas: decay rates of the two moments (AdamW only).
      eps: ε (AdamW only).

    Returns:
      An optax transformation. Its `init` raises ConfigError for a rule that decides no parameter.

    Raises:
      ConfigError: for an unknown name or rule, or an option that the named optimiser does not have, unless
        at its default.
    Source: Caffe's SGDSolver; torch.optim.SGD; Loshchilov and Hutter 2019, alg. 2.
    """
    if name not in ("sgd", "adamw") or update_rule not in ("caffe", "pytorch"):
        raise ConfigError(
            f"optimiser {name!r} with update rule {update_rule!r} is unknown; "
            "names are 'sgd' and 'adamw', rules 'caffe' and 'pytorch'"
        )
    _check_owner("sgd", name, momentum=momentum, update_rule=update_rule)
    _check_owner("sgd", name, momentum_reset_steps=tuple(momentum_reset_steps))
    _check_owner("adamw", name, betas=tuple(betas), eps=eps)
    _check_expressions([*frozen, *(rule[0] for rule in groups)])
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    if name == "sgd":
        parts.append(
            _sgd(
                schedule,
                momentum,
                weight_decay,
                tuple(groups),
                tuple(momentum_reset_steps),
                update_rule,
            )
        )
    else:
        parts += [
            optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps),
            _decay_and_scale(schedule, weight_decay, tuple(groups)),
        ]
    return _trained_only(optax.chain(*parts), tuple(groups), tuple(frozen))


def path_name(path: tuple) -> str:
    """Return a pytree path as text: "backbone/conv1_1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _multipliers(path: tuple, groups: tuple[Rule, ...]) -> tuple[float, float]:
    name = path_name(path)
    return next(((a, d) for pattern, a, d in groups if re.search(pattern, name)), (1.0, 1.0))


def _sgd(
    schedule: Schedule,
    momentum: float,
    weight_decay: float,
    groups: tuple[Rule, ...],
    reset_steps: tuple[int, ...],
    rule: str,
) -> optax.GradientTransformation:
    """SGD with momentum; see `make_optimizer` for the two rules."""

    def init(params: Params) -> SgdState:
        return SgdState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: SgdState, params: Params) -> tuple[Params, SgdState]:
        rate = schedule(state.count)
        is_reset = jnp.any(state.count == jnp.asarray(reset_steps, jnp.int32))

        def accumulate(path: tuple, grad: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
            lr, decay = _multipliers(path, groups)
            grad = grad + weight_decay * decay * w
            kept = jnp.where(is_reset, jnp.zeros_like(v), momentum * v)
            return kept + (rate * lr * grad if rule == "caffe" else grad)

        def move(path: tuple, v: jax.Array) -> jax.Array:
            return -v if rule == "caffe" else -rate * _multipliers(path, groups)[0] * v

        trace = jax.tree_util.tree_map_with_path(accumulate, grads, state.momentum, params)
        return jax.tree_util.tree_map_with_path(move, trace), SgdState(state.count + 1, trace)

    return optax.GradientTransformation(init, update)


def _decay_and_scale(
    schedule: Schedule, weight_decay: float, groups: tuple[Rule, ...]
) -> optax.GradientTransformation:
    """Add decoupled decay and multiply by the rate, both with their group's multipliers."""

    def init(params: Params) -> LrState:
        del params
        return LrState(jnp.zeros((), jnp.int32))

    def update(updates: Params, state: LrState, params: Params) -> tuple[Params, LrState]:
        rate = schedule(state.count)

        def scale(path: tuple, u: jax.Array, w: jax.Array) -> jax.Array:
            lr, decay = _multipliers(path, groups)
            return -rate * lr * (u + weight_decay * decay * w)

        scaled = jax.tree_util.tree_map_with_path(scale, updates, params)
        return scaled, LrState(state.count + 1)

    return optax.GradientTransformation(init, update)


def _trained_only(
    inner: optax.GradientTransformation, groups: tuple[Rule, ...], frozen: tuple[str, ...]
) -> optax.GradientTransformation:
    """Give the optimiser only the parameters that are not frozen; check the rules against the names."""

    def is_frozen(path: tuple) -> bool:
        return any(re.search(pattern, path_name(path)) for pattern in frozen)

    def labels(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if is_frozen(path) else "trained", params
        )

    split = optax.multi_transform({"trained": inner, "frozen": optax.set_to_zero()}, labels)

    def init(params: Params) -> optax.OptState:
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        _check_rules([path_name(p) for p in paths], groups, frozen)
        if all(is_frozen(path) for path in paths):
            raise ConfigError(
                f"the frozen expressions {list(frozen)} cover all {len(paths)} parameters, so nothing "
                "would be trained; remove or narrow one of them"
            )
        return split.init(params)

    return optax.GradientTransformation(init, split.update)


def _check_owner(owner: str, name: str, **options: Any) -> None:
    """Raise `ConfigError` for options of the optimiser `owner` that are changed while `name` runs."""
    defaults = inspect.signature(make_optimizer).parameters
    changed = [key for key, value in options.items() if value != defaults[key].default]
    if changed and name != owner:
        raise ConfigError(
            f"{', '.join(changed)} belongs to {owner!r}, but the optimiser is {name!r}; drop it or change "
            "the optimiser's name"
        )


def _check_expressions(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from error


def _check_rules(names: list[str], groups: tuple[Rule, ...], frozen: tuple[str, ...]) -> None:
    winners = {
        next((i for i, rule in enumerate(groups) if re.search(rule[0], name)), None)
        for name in names
    }
    idle = [f"group {rule[0]!r}" for i, rule in enumerate(groups) if i not in winners]
    idle += [f"frozen {p!r}" for p in frozen if not any(re.search(p, name) for name in names)]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} decides no parameter: it matches none, or only those that an earlier "
            "group has taken; correct the expression or the order. The parameters are:\n  "
            + "\n  ".join(names)
        )
