"""Optimizers with multipliers and schedules per group of parameters, as in the detectors' released solvers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wsod_jax.errors import ConfigError
from wsod_jax.options import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SHARE
from wsod_jax.types import Params

Schedule = Callable[[jax.Array | int], jax.Array]  # update count, starting at 0 -> [] float32
_ADAM = ("adam", "adamw")
_OWNERS = {  # option -> the optimizers that have it
    "momentum": ("sgd",),
    "update_rule": ("sgd",),
    "momentum_reset_steps": ("sgd",),
    "betas": _ADAM,
    "eps": _ADAM,
}
_OF_SCHEDULES = ("decay_steps", "decay_factor", "warmup_steps")  # options that a group may override


class SgdState(NamedTuple):
    """Updates done ([] int32) and one momentum array per trained parameter."""

    count: jax.Array
    momentum: Any


class LrState(NamedTuple):
    """Updates done ([] int32)."""

    count: jax.Array


@dataclass(frozen=True)
class Group:
    """Parameters with their own learning rate, weight decay or schedule.

    Attributes:
      pattern: regular expression, searched anywhere in a parameter's path ("refine/head/bias").
      lr: multiplies the learning rate.
      decay: multiplies the weight decay.
      decay_steps, decay_factor, warmup_steps: the group's schedule, as in `Optimizer`; `None` takes the
        optimizer's. With `decay_steps` its shape is "steps", whatever the optimizer's.
      least_by_position: least number of values in a configuration's tuple, so that a missing `decay` is an error.
    """

    pattern: str
    lr: Annotated[float, NOT_NEGATIVE] = 1.0
    decay: Annotated[float, NOT_NEGATIVE] = 1.0
    decay_steps: tuple[int, ...] | None = None
    decay_factor: Annotated[float | None, NOT_NEGATIVE] = None
    warmup_steps: Annotated[int | None, NOT_NEGATIVE] = None

    least_by_position: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """SGD with momentum, Adam or AdamW, with multipliers per parameter and no optimizer state for frozen ones.

    With g the gradient (clipped first), w the parameter, η the scheduled rate of its group, a and d the multipliers
    of the first group whose expression matches its path (a = d = 1 without one), λ the weight decay:

      sgd, caffe:    v ← μ v + η a (g + λ d w);  w ← w − v     (momentum keeps the rate of earlier steps)
      sgd, pytorch:  v ← μ v + (g + λ d w);      w ← w − η a v
      adam:          w ← w − η a m̂ / (√v̂ + ε), with moments of g + λ d w
      adamw:         w ← w − η a (m̂ / (√v̂ + ε) + λ d w), with moments of g

    Attributes:
      name: of the optimizer.
      learning_rate: η after the warm-up and before the first drop.
      shape: of the schedule: "steps", constant with drops, or "cosine", half a cosine that ends at 0.
      decay_steps: updates (ascending) from which on η is multiplied once more by `decay_factor`.
      decay_factor: of shape "steps"; it may exceed 1.
      warmup_steps: η rises linearly over this many updates, from `warmup_factor` · η.
      warmup_factor: in [0, 1].
      momentum: μ (SGD only; so are `momentum_reset_steps` and `update_rule`).
      momentum_reset_steps: updates that start from zero momentum, as in a restarted solver.
      update_rule: of SGD: "caffe" multiplies by the rate before momentum, "pytorch" after it.
      betas: decay rates of the two moments (Adam and AdamW only).
      eps: ε (Adam and AdamW only).
      weight_decay: λ.
      clip_norm: largest global norm of the trained parameters' gradient, or `None`.
      groups: ordered; the first one that matches a parameter applies.

    Raises:
      ConfigError: for an unknown name, rule or shape, a changed option that the optimizer or shape does not have,
        and invalid steps or factors.
    Source: Caffe's SGDSolver; torch.optim.SGD, torch.optim.Adam; Loshchilov and Hutter 2019, alg. 2.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, NOT_NEGATIVE]
    shape: Literal["steps", "cosine"] = "steps"
    decay_steps: tuple[int, ...] = ()
    decay_factor: Annotated[float, NOT_NEGATIVE] = 0.1
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 0
    warmup_factor: Annotated[float, SHARE] = 1 / 3
    momentum: Annotated[float, BELOW_ONE] = 0.9
    momentum_reset_steps: tuple[int, ...] = ()
    update_rule: Literal["caffe", "pytorch"] = "caffe"
    betas: Annotated[tuple[float, float], BELOW_ONE] = (0.9, 0.999)
    eps: Annotated[float, NOT_NEGATIVE] = 1e-8
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    clip_norm: Annotated[float | None, POSITIVE] = None
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that contradict each other."""
        if self.name not in ("sgd", *_ADAM) or self.update_rule not in ("caffe", "pytorch"):
            raise ConfigError(
                f"config.optim: optimizer {self.name!r} with update rule {self.update_rule!r} is unknown; "
                "names are 'sgd', 'adam' and 'adamw', rules 'caffe' and 'pytorch'"
            )
        for key, owners in _OWNERS.items():
            if self.name not in owners and self._is_changed(key):
                raise ConfigError(
                    f"config.optim.{key} belongs to {' and '.join(map(repr, owners))}, but the optimizer is "
                    f"{self.name!r}; remove it or change config.optim.name"
                )
        self._check_schedule()
        names = [f"config.optim.groups[{i}]" for i in range(len(self.groups))]
        check_expressions(
            {f"{name}.pattern": g.pattern for name, g in zip(names, self.groups, strict=True)}
        )
        for name, group in zip(names, self.groups, strict=True):
            try:
                self._as_group(group)
            except ConfigError as error:
                raise ConfigError(f"{name}, {group.pattern!r}: {error}") from error

    def transformation(
        self, num_steps: int, frozen: Sequence[str] = ()
    ) -> tuple[optax.GradientTransformation, Schedule]:
        """Make the optax transformation, and the schedule of the parameters outside all groups.

        Args:
          num_steps: updates of the whole run, the length of a cosine.
          frozen: expressions of the parameters that never change; these take precedence over groups.

        Returns:
          The transformation, whose `init` raises ConfigError for an expression that applies to no parameter, and
          the schedule: update count -> [] float32.

        Raises:
          ConfigError: for a cosine without updates, or an invalid regular expression.
        """
        check_expressions({f"frozen[{i}]": pattern for i, pattern in enumerate(frozen)})
        schedule = self._schedule(num_steps)
        schedules = (
            self._as_group(g)._schedule(num_steps) if _has_schedule(g) else schedule
            for g in self.groups
        )
        rules = _Rules(self.groups, tuple(schedules), schedule)
        parts = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        if self.name == "sgd":
            parts.append(_sgd(self, rules))
        else:
            moments = optax.scale_by_adam(b1=self.betas[0], b2=self.betas[1], eps=self.eps)
            decay = _add_decay(self.weight_decay, rules)
            parts += [decay, moments] if self.name == "adam" else [moments, decay]
            parts.append(_scale_by_rate(rules))
        return _trained_only(optax.chain(*parts), self.groups, tuple(frozen)), schedule

    def _is_changed(self, key: str) -> bool:
        return getattr(self, key) != getattr(type(self), key)

    def _check_schedule(self) -> None:
        if self.shape not in ("steps", "cosine"):
            raise ConfigError(
                f"config.optim.shape is {self.shape!r}; allowed are 'steps' and 'cosine'"
            )
        for key in ("decay_steps", "decay_factor"):
            if self.shape == "cosine" and self._is_changed(key):
                raise ConfigError(
                    f"config.optim.{key} belongs to shape 'steps', but the shape is 'cosine'; remove it or change "
                    "config.optim.shape"
                )
        if any(b <= a for a, b in zip((0, *self.decay_steps), self.decay_steps, strict=False)):
            raise ConfigError(
                f"config.optim.decay_steps must increase from above 0, found {self.decay_steps}; sort them"
            )
        if self.decay_factor < 0:
            raise ConfigError(
                f"config.optim.decay_factor is {self.decay_factor}; it must be at least 0"
            )
        if self.warmup_steps < 0 or not 0 <= self.warmup_factor <= 1:
            raise ConfigError(
                "config.optim.warmup_steps must be 0 or more and config.optim.warmup_factor in [0, 1], found "
                f"{self.warmup_steps} and {self.warmup_factor}"
            )

    def _as_group(self, group: Group) -> Optimizer:
        """Return these options with the group's schedule."""
        changes = {k: v for k in _OF_SCHEDULES if (v := getattr(group, k)) is not None}
        shape = "steps" if "decay_steps" in changes else self.shape
        return dataclasses.replace(self, groups=(), shape=shape, **changes)

    def _schedule(self, num_steps: int) -> Schedule:
        """Return update count -> learning rate [] float32; a drop applies from its step on (`>=`)."""
        if self.shape == "cosine":
            if num_steps < 1:
                raise ConfigError(
                    f"config.optim.shape 'cosine' needs config.train.num_steps >= 1, found {num_steps}; use 'steps'"
                )
            half_wave = optax.cosine_decay_schedule(self.learning_rate, 1, exponent=1)

            def shaped(step: jax.Array | int) -> jax.Array:
                return half_wave(jnp.asarray(step, jnp.float32) / num_steps)
        else:
            # Constants are rounded to float32 once; optax.piecewise_constant_schedule multiplies rounded factors.
            count = len(self.decay_steps) + 1
            values = [self.learning_rate * self.decay_factor**i for i in range(count)]
            shaped = optax.join_schedules(
                list(map(optax.constant_schedule, values)), list(self.decay_steps)
            )

        def schedule(step: jax.Array | int) -> jax.Array:
            rate = jnp.asarray(shaped(step), jnp.float32)
            if self.warmup_steps == 0:
                return rate
            # optax.linear_schedule subtracts from 1, which loses small values.
            share = jnp.clip(jnp.asarray(step, jnp.float32) / self.warmup_steps, 0.0, 1.0)
            return rate * (self.warmup_factor + (1.0 - self.warmup_factor) * share)

        return schedule


def path_name(path: tuple) -> str:
    """Return a pytree path as text: "backbone/conv1_1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_expressions(patterns: Mapping[str, str]) -> None:
    """Raise `ConfigError` for an invalid regular expression, given by option name."""
    for name, pattern in patterns.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{name} is {pattern!r}, which is not a valid regular expression: {error}"
            ) from error


class _Rate(NamedTuple):
    """A parameter's scheduled rate [] float32 at an update, and its group's multipliers."""

    rate: jax.Array
    lr: float
    decay: float


@dataclass(frozen=True)
class _Rules:
    """Groups, a schedule for each, and the schedule of all other parameters."""

    groups: tuple[Group, ...]
    schedules: tuple[Schedule, ...]
    default: Schedule

    def at(self, count: jax.Array) -> Callable[[tuple], _Rate]:
        """Return the function from a parameter's path to its rate at update `count`."""
        rates = {s: s(count) for s in dict.fromkeys((self.default, *self.schedules))}

        def of(path: tuple) -> _Rate:
            i = _winner(path_name(path), self.groups)
            if i is None:
                return _Rate(rates[self.default], 1.0, 1.0)
            return _Rate(rates[self.schedules[i]], self.groups[i].lr, self.groups[i].decay)

        return of

    def decay(self, path: tuple) -> float:
        """Return the multiplier of a parameter's weight decay."""
        i = _winner(path_name(path), self.groups)
        return 1.0 if i is None else self.groups[i].decay


def _winner(name: str, groups: tuple[Group, ...]) -> int | None:
    """Return the position of the first group that matches a parameter's path."""
    return next((i for i, g in enumerate(groups) if re.search(g.pattern, name)), None)


def _has_schedule(group: Group) -> bool:
    return any(getattr(group, key) is not None for key in _OF_SCHEDULES)


def _sgd(options: Optimizer, rules: _Rules) -> optax.GradientTransformation:
    """SGD with momentum; see `Optimizer` for the two rules."""
    is_caffe = options.update_rule == "caffe"

    def init(params: Params) -> SgdState:
        return SgdState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: SgdState, params: Params) -> tuple[Params, SgdState]:
        of = rules.at(state.count)
        resets = jnp.asarray(options.momentum_reset_steps, jnp.int32)
        is_reset = jnp.any(state.count == resets)

        def accumulate(path: tuple, grad: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
            rate, lr, decay = of(path)
            grad = grad + options.weight_decay * decay * w
            momentum = jnp.where(is_reset, jnp.zeros_like(v), options.momentum * v)
            return momentum + (rate * lr * grad if is_caffe else grad)

        def move(path: tuple, v: jax.Array) -> jax.Array:
            rate, lr, _ = of(path)
            return -v if is_caffe else -rate * lr * v

        trace = jax.tree_util.tree_map_with_path(accumulate, grads, state.momentum, params)
        return jax.tree_util.tree_map_with_path(move, trace), SgdState(state.count + 1, trace)

    return optax.GradientTransformation(init, update)


def _add_decay(weight_decay: float, rules: _Rules) -> optax.GradientTransformation:
    """Add every parameter times its weight decay."""

    def add(updates: Params, params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, u, w: u + weight_decay * rules.decay(path) * w, updates, params
        )

    return optax.stateless(add)


def _scale_by_rate(rules: _Rules) -> optax.GradientTransformation:
    """Multiply by the negative rate, each parameter by its group's."""

    def init(params: Params) -> LrState:
        del params
        return LrState(jnp.zeros((), jnp.int32))

    def update(updates: Params, state: LrState, params: Params) -> tuple[Params, LrState]:
        del params
        of = rules.at(state.count)

        def scale(path: tuple, u: jax.Array) -> jax.Array:
            rate, lr, _ = of(path)
            return -rate * lr * u

        return jax.tree_util.tree_map_with_path(scale, updates), LrState(state.count + 1)

    return optax.GradientTransformation(init, update)


def _trained_only(
    inner: optax.GradientTransformation, groups: tuple[Group, ...], frozen: tuple[str, ...]
) -> optax.GradientTransformation:
    """Apply the optimizer only to parameters that are not frozen; check the expressions against the names."""

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
                f"the frozen expressions {list(frozen)} match all {len(paths)} parameters, so nothing would be "
                "trained; remove or narrow one of them"
            )
        return split.init(params)

    return optax.GradientTransformation(init, split.update)


def _check_rules(names: list[str], groups: tuple[Group, ...], frozen: tuple[str, ...]) -> None:
    winners = {_winner(name, groups) for name in names}
    idle = [
        f"config.optim.groups[{i}], {g.pattern!r},"
        for i, g in enumerate(groups)
        if i not in winners
    ]
    idle += [f"frozen {p!r}," for p in frozen if not any(re.search(p, name) for name in names)]
    if idle:
        raise ConfigError(
            f"{' '.join(idle)} matches no parameter (or only ones already matched by an earlier group); "
            "correct the expression or the order. The parameters are:\n  " + "\n  ".join(names)
        )
