"""One optimizer update, on one batch or accumulated over several micro-batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from wsod_jax.errors import ConfigError
from wsod_jax.ops.color import apply_photometric
from wsod_jax.train.optim import Schedule
from wsod_jax.train.sharding import by_rows, replicated
from wsod_jax.train.state import TrainState
from wsod_jax.types import LossOutput, Params, Term

Metrics = dict[str, jax.Array]
MISMATCH = "normalizer_mismatch"
_READ_A_BATCH = ("train", "propose", "examine")  # programs compiled per shape of their batch


@struct.dataclass
class Sums:
    """Sums over micro-batches, before normalization.

    Attributes:
      grads: normalizer name -> gradient of the sum of its terms' totals.
      terms: term name -> `Term` with [] total and [] weight.
      metrics: metric name -> likewise.
    """

    grads: dict[str, Params]
    terms: dict[str, Term]
    metrics: dict[str, Term]


class TrainStep:
    r"""Compiled updates of one method with one optimizer.

    The objective is the sum over terms of mean(term) = Σ_i total_i / Σ_i weight_i over the images i of
    all micro-batches of the update, so it does not depend on how they were split. Sums are divided once;
    terms of one normalizer (`Term.per`) share one gradient accumulator. Every micro-batch of an update
    gets the same key, fold_in(seed key, step): the method folds in the image. Photometric jitter of a batch
    (`Views.photometric`) is applied to its pixels first, so the method sees jittered ones.

    The state given to `update` is donated: use only the one returned. A program is compiled once per
    distinct layout of a micro-batch, before its first run; an array in another layout is an error,
    never a silent second compilation.

    A normalizer of 0 (only filler images) gives its terms value 0 and gradient 0.
    Gradient: to `params` only; weights are constants.

    Attributes:
      accumulate: micro-batches per update.
      mesh: for batches and state.
      compile_seconds: duration of each compilation so far, in order.
    """

    def __init__(
        self,
        method: Any,
        tx: optax.GradientTransformation,
        *,
        seed: int,
        mesh: Mesh,
        accumulate: int = 1,
        ema_decay: float | Callable[[jax.Array], jax.Array] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        """Check the arguments; nothing is compiled yet.

        Args:
          method: `loss(params, extras, batch, key, step) -> LossOutput`, and `propose` if it requests cues
            from the host. A batch is a `Batch`, or a dict of them by stream.
          tx: the optimizer.
          seed: the run's seed.
          mesh: for state and batches.
          accumulate: micro-batches per update, >= 1.
          ema_decay: d in EMA ← d·EMA + (1 − d)·params after each update, or a function of the step.
            The loss can read the average as `extras["ema"]`. Needed if, and only if, the state was made
            with `ema=True`.
          schedule: learning rate by update, for the metric "lr".

        Raises:
          ConfigError: if `accumulate` < 1, a number for `ema_decay` is not in [0, 1), or the method
            predicts with the average but none is kept.
        """
        if accumulate < 1:
            raise ConfigError(
                f"accumulate, the number of micro-batches per update, is {accumulate}; use 1 or more"
            )
        if ema_decay is None and getattr(method, "result", "params") == "ema":
            raise ConfigError(
                f"{type(method).__name__} predicts with the running average of its parameters, but "
                "config.train.ema_decay is None, so none is kept; set it, for instance to 0.9996"
            )
        if ema_decay is not None and not callable(ema_decay) and not 0.0 <= ema_decay < 1.0:
            raise ConfigError(
                f"ema_decay, the fraction of the average that an update keeps, is {ema_decay}; use a number from "
                "0 to below 1, a function of the step, or None"
            )
        self.accumulate = accumulate
        self.mesh = mesh
        self.compile_seconds: list[float] = []
        self._method = method
        self._tx = tx
        self._seed = seed
        self._ema_decay = ema_decay
        self._schedule = schedule
        self._programs: dict[tuple, Any] = {}

    @property
    def proposes(self) -> bool:
        """Whether the method requests cues from the host before an update."""
        return getattr(self._method, "propose", None) is not None

    def update(self, state: TrainState, micro_batches: Sequence[Any]) -> tuple[TrainState, Metrics]:
        """Do one update.

        Args:
          state: donated.
          micro_batches: `accumulate` of them, each on the mesh (`sharding.put`); their shapes may differ.

        Returns:
          The new state, and scalars on the device: "loss" (the objective), "loss/<term>", every metric's
          mean over the update, "lr" if a schedule was given, "grad_norm", "param_norm" (after the update),
          "normalizer_mismatch" (0 unless terms that share a normalizer disagree on its value).

        Raises:
          ConfigError: if the number of micro-batches is not `accumulate`.
        """
        if len(micro_batches) != self.accumulate:
            raise ConfigError(
                f"an update takes {self.accumulate} micro-batch(es), found {len(micro_batches)}"
            )
        after = (_layout(state), replicated(self.mesh))
        if self.accumulate == 1:
            return self._run("train", self.fused, after, (state, micro_batches[0]))
        fixed, extras = (state.params, state.ema, state.step), state.extras
        sums = self._empty(fixed, extras, micro_batches[0])
        within = (_layout(sums), _layout(extras))
        for batch in micro_batches:
            sums, extras = self._run("train", self.add, within, (sums, fixed, extras, batch))
        return self._run("apply", self.apply, after, (state.replace(extras=extras), sums))

    def propose(self, state: TrainState, batch: Any) -> tuple[Any, Any]:
        """Return the method's request to the host stage, and the batch to train on.

        The method gets the parameters and extras before the update, and the key that its loss will get.

        Args:
          state: before the update; not donated.
          batch: one micro-batch on the mesh.

        Returns:
          The request, and the batch, to which the method may have added features; both split by rows.

        Raises:
          TypeError: if an array of either does not lead with the rows of the batch.
        """

        def ask(state: TrainState, batch: Any) -> tuple[Any, Any]:
            extras, key = self._with_average((state.ema, state.step), state.extras)
            batch = apply_photometric(batch)
            asked = self._method.propose(state.params, extras, batch, key, state.step)
            _check_rows(asked, batch, type(self._method).__name__)
            return asked

        return self._run("propose", ask, by_rows(self.mesh), (state, batch), donate=False)

    def examine(self, state: TrainState, batch: Any) -> LossOutput:
        """Return the loss's whole output, pseudo boxes and figures included, without an update.

        Args:
          state: not donated; `opt_state` is not needed.
          batch: one micro-batch, on the devices of the state; each new layout compiles the forward pass.
        """

        def forward(state: TrainState, batch: Any) -> LossOutput:
            return self._loss(state.params, (state.ema, state.step), state.extras, batch)

        return self._run("examine", forward, None, (state, batch), donate=False)

    def num_compilations(self, kind: Literal["train", "propose", "examine"] = "train") -> int:
        """Return the number of micro-batch layouts that a program has been compiled for."""
        return sum(compiled == kind for compiled, _ in self._programs)

    # The pure functions behind `update`, traceable for export, cost analysis and custom gradients.

    def fused(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """Do one update from one batch: one forward and one backward pass."""

        def objective(params: Params) -> tuple[jax.Array, LossOutput]:
            out = self._loss(params, (state.ema, state.step), state.extras, batch)
            sums = _reduced(out.terms)
            return sum(_means(sums).values(), jnp.zeros(())), out

        grads, out = jax.grad(objective, has_aux=True)(state.params)
        terms, metrics = _reduced(out.terms), _reduced(out.metrics)
        return self._finish(state.replace(extras=out.extras), grads, terms, metrics)

    def add(self, sums: Sums, fixed: tuple, extras: dict, batch: Any) -> tuple[Sums, dict]:
        """Add one micro-batch: one forward pass, and one backward pass per normalizer."""
        params, *rest = fixed

        def totals(params: Params) -> tuple[dict[str, jax.Array], LossOutput]:
            out = self._loss(params, rest, extras, batch)
            sums = _reduced(out.terms).values()
            return {
                per: sum((t.total for t in sums if t.per == per), jnp.zeros(()))
                for per in _normalizers(out.terms)
            }, out

        primal, pullback, out = jax.vjp(totals, params, has_aux=True)
        grads = {
            per: pullback({name: jnp.asarray(name == per, x.dtype) for name, x in primal.items()})[
                0
            ]
            for per in primal
        }
        new = Sums(grads, _reduced(out.terms), _reduced(out.metrics))
        return jax.tree.map(jnp.add, sums, new), out.extras

    def apply(self, state: TrainState, sums: Sums) -> tuple[TrainState, Metrics]:
        """Divide the sums by their normalizers, and take the optimizer's step."""
        scales = {per: _reciprocal(_normalizer(sums.terms, per)) for per in sums.grads}
        grads = jax.tree.map(
            lambda *leaves: sum(g * s for g, s in zip(leaves, scales.values(), strict=True)),
            *sums.grads.values(),
        )
        return self._finish(state, grads, sums.terms, sums.metrics)

    def _finish(
        self, state: TrainState, grads: Params, terms: dict[str, Term], metrics: dict[str, Term]
    ) -> tuple[TrainState, Metrics]:
        updates, opt_state = self._tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        means = _means(terms)
        report = {
            "loss": sum(means.values(), jnp.zeros(())),
            **{f"loss/{name}": mean for name, mean in means.items()},
            **{name: m.total * _reciprocal(m.weight) for name, m in metrics.items()},
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            MISMATCH: _mismatch(terms),
        }
        if self._schedule is not None:
            report["lr"] = self._schedule(state.step)
        ema = self._averaged(state, params)
        step = state.step + 1
        return state.replace(step=step, params=params, opt_state=opt_state, ema=ema), report

    def _averaged(self, state: TrainState, params: Params) -> Params | None:
        """EMA ← d·EMA + (1 − d)·parameters after the update."""
        if (state.ema is None) != (self._ema_decay is None):
            raise ConfigError(
                "a running average of the parameters needs both init_state(ema=True) and a value for "
                f"TrainStep(ema_decay=…); found a state {'without' if state.ema is None else 'with'} "
                f"one and ema_decay={self._ema_decay}"
            )
        if state.ema is None:
            return None
        decay = self._ema_decay(state.step) if callable(self._ema_decay) else self._ema_decay
        return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)

    def _loss(self, params: Params, fixed: Sequence, extras: dict, batch: Any) -> LossOutput:
        """Call the method's loss on the jittered batch, and check the extras that it returns."""
        all_extras, key = self._with_average(fixed, extras)
        out = self._method.loss(params, all_extras, apply_photometric(batch), key, fixed[1])
        new_extras = {name: value for name, value in out.extras.items() if name != "ema"}
        if _signature(new_extras) != _signature(extras):
            raise ConfigError(
                "the method's loss must return extras of the same names, shapes and dtypes that it was "
                f"given; given {_signature(extras)}, returned {_signature(new_extras)}"
            )
        return out.replace(extras=new_extras)

    def _with_average(self, fixed: Sequence, extras: dict) -> tuple[dict, jax.Array]:
        """Return the extras with the average, read only, as `extras["ema"]`, and the update's key."""
        ema, step = fixed
        key = jax.random.fold_in(jax.random.key(self._seed), step)
        return extras if ema is None else {**extras, "ema": ema}, key

    def _empty(self, fixed: tuple, extras: dict, batch: Any) -> Sums:
        """Return zero sums with the sharding of the parameters; only shapes of `batch` are read."""
        params, *rest = fixed
        layout = _layout(params)

        def zeros(params: Params) -> Sums:
            out = jax.eval_shape(self._loss, params, rest, extras, batch)
            none = {
                kind: {name: Term(jnp.zeros(()), jnp.zeros(()), t.per) for name, t in terms.items()}
                for kind, terms in (("terms", out.terms), ("metrics", out.metrics))
            }
            like = jax.tree.map(jnp.zeros_like, params)
            like = jax.lax.with_sharding_constraint(like, layout)
            none = jax.lax.with_sharding_constraint(none, replicated(self.mesh))
            return Sums({per: like for per in _normalizers(out.terms)}, **none)

        return self._run("empty", zeros, None, (params,), donate=False)

    def _run(
        self, kind: str, function: Callable, outputs: Any, arguments: tuple, *, donate: bool = True
    ) -> Any:
        """Run `function`, compiled for these arguments; the first one is donated.

        Args:
          kind: name of the function among the compiled programs.
          function: to compile.
          outputs: shardings of its results; `None` leaves them to the compiler.
          arguments: of the function.
          donate: whether the first argument is donated.
        """
        # Shapes of sums and states do not depend on the micro-batch.
        shapes = _signature(arguments[-1]) if kind in _READ_A_BATCH else None
        if (kind, shapes) not in self._programs:
            started = time.perf_counter()
            jitted = jax.jit(function, donate_argnums=0 if donate else (), out_shardings=outputs)
            self._programs[kind, shapes] = jitted.lower(*arguments).compile()
            self.compile_seconds.append(time.perf_counter() - started)
        return self._programs[kind, shapes](*arguments)


def num_rows(batch: Any) -> dict[str | None, int]:
    """Return the number of rows of each stream of a batch; a batch without streams has the name `None`."""
    streams = batch if isinstance(batch, dict) else {None: batch}
    return {name: jax.tree.leaves(part)[0].shape[0] for name, part in streams.items()}


def _check_rows(asked: tuple, batch: Any, method: str) -> None:
    """Raise, while tracing, if an array in the result of `propose` does not lead with rows."""
    rows = set(num_rows(batch).values())
    for path, leaf in jax.tree_util.tree_leaves_with_path(asked):
        if leaf.ndim == 0 or leaf.shape[0] not in rows:
            part, *rest = path
            name = ("the request", "the batch")[part.idx] + jax.tree_util.keystr(tuple(rest))
            raise TypeError(
                f"{method}.propose returned {name} of shape {list(leaf.shape)}; the first axis of every array of the "
                f"request and of the batch must be the rows of the micro-batch, here {sorted(rows)}"
            )


def _layout(tree: Any) -> Any:
    """Return the sharding of each array of a tree."""
    return jax.tree.map(lambda x: x.sharding, tree)


def _signature(tree: Any) -> tuple:
    """Return a tree's structure, shapes and dtypes, to compare."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((tuple(x.shape), str(x.dtype)) for x in leaves)


def _normalizers(terms: dict[str, Term]) -> list[str]:
    return sorted({term.per for term in terms.values()})


def _means(terms: dict[str, Term]) -> dict[str, jax.Array]:
    """Return each term's total over its normalizer."""
    return {
        name: term.total * _reciprocal(_normalizer(terms, term.per)) for name, term in terms.items()
    }


def _reduced(terms: dict[str, Term]) -> dict[str, Term]:
    """Sum each term over images, in float32; the weight carries no gradient."""
    return {
        name: Term(
            jnp.sum(term.total.astype(jnp.float32)),
            jax.lax.stop_gradient(jnp.sum(term.weight.astype(jnp.float32))),
            term.per,
        )
        for name, term in terms.items()
    }


def _reciprocal(weight: jax.Array) -> jax.Array:
    """1 / weight, and 0 where weight is 0."""
    return jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)


def _normalizer(terms: dict[str, Term], per: str) -> jax.Array:
    """Return the value of the normalizer `per`: the weight of the first term (by name) that has it."""
    return terms[min(name for name, term in terms.items() if term.per == per)].weight


def _mismatch(terms: dict[str, Term]) -> jax.Array:
    """Return the largest relative difference between weights that share a normalizer."""
    worst = jnp.zeros(())
    for term in terms.values():
        shared = _normalizer(terms, term.per)
        gap = jnp.abs(term.weight - shared) * _reciprocal(jnp.maximum(term.weight, shared))
        worst = jnp.maximum(worst, gap)
    return worst
