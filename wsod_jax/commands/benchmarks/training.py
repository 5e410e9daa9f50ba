"""The training step of OIM with VGG16 at a laptop's size: as a whole, and part by part."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax.commands.benchmarks.kernels import random_boxes
from wsod_jax.commands.benchmarks.timing import Measure, compiled, seconds, working_mib
from wsod_jax.methods.base import RefinementMethod, image_keys, image_term
from wsod_jax.methods.oim import Oim
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.train.optim import Group, Optimizer
from wsod_jax.train.sharding import make_mesh, put
from wsod_jax.train.state import init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Batch, Params, Views


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of a step: one image of `height` by `width` pixels, and the network's widths."""

    height: int
    width: int
    num_proposals: int
    dims: tuple[int, ...] = (4096, 4096)
    num_classes: int = 20
    num_stages: int = 3
    roi_size: int = 7

    def __str__(self) -> str:
        return f"{self.height}x{self.width} px, {self.num_proposals} proposals"


SMALL = Setting(64, 96, 30, dims=(32, 32), num_classes=4)
LAPTOP = Setting(480, 640, 1000)


def make_method(setting: Setting, dtype: jnp.dtype) -> RefinementMethod:
    """Make OIM with the instance-reweighted loss on VGG16, every option as published."""
    return Oim(
        backbone=Vgg16(dtype=dtype),
        num_classes=setting.num_classes,
        max_classes=4,
        box_head=BoxHead(setting.dims, dtype=dtype),
        num_stages=setting.num_stages,
        roi_size=setting.roi_size,
    )


def make_batch(setting: Setting) -> Batch:
    """Draw one image of random pixels that fills its canvas, with two positive classes."""
    rng = np.random.default_rng(0)
    labels = np.zeros((1, setting.num_classes), np.int32)
    labels[0, [0, setting.num_classes // 2]] = 1
    boxes = random_boxes(rng, setting.num_proposals, setting.height, setting.width)
    image = rng.integers(0, 256, (1, setting.height, setting.width, 3), np.uint8)
    return Batch(
        image=image,
        image_size=np.array([[setting.height, setting.width]], np.int32),
        image_mask=np.ones(1, bool),
        image_index=np.zeros(1, np.int32),
        labels=labels,
        proposals=boxes[None],
        proposal_mask=np.ones((1, setting.num_proposals), bool),
        views=Views(
            scale=np.ones((1, 2), np.float32),
            offset=np.zeros((1, 2), np.int32),
            flipped=np.zeros(1, bool),
            original_size=np.array([[setting.height, setting.width]], np.int32),
        ),
    )


# ---------------------------------------------------------------------------------------------------
# The whole step


@dataclasses.dataclass(frozen=True)
class WholeStep:
    """Median seconds of an update, MiB of the compiled program in addition to its state, and the parameters."""

    seconds: float
    working_mib: float
    params: Params


def whole_step(method: RefinementMethod, batch: Batch, repeats: int) -> WholeStep:
    """Time whole updates: forward, backward and SGD as published, the state donated."""
    mesh = make_mesh(1)
    groups = (
        Group(r"(midn|refine).*kernel", 10.0, 1.0),
        Group(r"(midn|refine).*bias", 20.0, 0.0),
        Group("bias", 2.0, 0.0),
    )
    optimizer = Optimizer(learning_rate=1e-3, weight_decay=5e-4, groups=groups)
    frozen = tuple(f"^backbone/{layer}" for layer in method.backbone.frozen)
    tx, _ = optimizer.transformation(1, frozen)
    step = TrainStep(method, tx, seed=0, mesh=mesh)
    state = init_state(method, tx, seed=0, batch=batch, mesh=mesh)
    placed = put(batch, mesh)
    program = jax.jit(step.fused, donate_argnums=0).lower(state, placed).compile()
    durations = []
    for _ in range(1 + repeats):  # the first one warms up
        started = time.perf_counter()
        state, metrics = program(state, placed)
        jax.block_until_ready((state, metrics))
        durations.append(time.perf_counter() - started)
    return WholeStep(float(np.median(durations[1:])), working_mib(program), state.params)


# ---------------------------------------------------------------------------------------------------
# Its parts, each a program of its own: forward and, where gradients flow, backward


def with_backward(forward: Callable, *inputs: jax.Array | Params) -> tuple[Callable, tuple]:
    """Return a function that runs `forward` and its backward pass, and its arguments."""
    outputs = jax.eval_shape(forward, *inputs)
    grads = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), outputs)

    def both(grads, *inputs):
        outputs, pullback = jax.vjp(forward, *inputs)
        return outputs, pullback(grads)

    return both, (grads, *inputs)


def parts(
    method: RefinementMethod, params: Params, batch: Batch
) -> dict[str, tuple[Callable, tuple]]:
    """Cut the step into parts: name -> (function, arguments)."""
    network = method.network
    batch = jax.tree.map(jnp.asarray, batch)
    mask = batch.proposal_mask
    own = {name: params[name] for name in params if name != "backbone"}

    def run(method_name: str, params: Params, *arguments):
        return network.apply({"params": params}, *arguments, method=method_name)

    def backbone(backbone_params: Params) -> jax.Array:
        return method.backbone.apply({"params": backbone_params}, batch)["c5"].features

    maps = jax.jit(method.backbone.apply)({"params": params["backbone"]}, batch)["c5"]
    features = maps.features

    def pooling(features: jax.Array) -> jax.Array:
        return run("pool", params, maps.replace(features=features), batch, mask)

    pooled = jax.jit(pooling)(features)
    keys = image_keys(jax.random.key(0), batch)

    def heads(own: Params, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = run("score", {**params, **own}, pooled, mask, keys)
        return outputs.mil_scores, outputs.refine_logits

    outputs = jax.jit(functools.partial(run, "score"))(params, pooled, mask, keys)

    def mining(outputs):
        return method.mine_stages(outputs, batch, jnp.zeros((), jnp.int32))

    mined = jax.jit(mining)(outputs)

    def losses(mil_scores: jax.Array, refine_logits: jax.Array) -> jax.Array:
        scored = outputs.replace(mil_scores=mil_scores)
        per_stage = jax.vmap(jax.vmap(method.stage_loss, in_axes=(0, 0, None)))
        values = jnp.sum(per_stage(refine_logits, mined, mask), axis=1)
        return method.mil_term(scored, batch).mean() + image_term(values, batch).mean()

    return {
        "backbone": with_backward(backbone, params["backbone"]),
        "pooling": with_backward(pooling, features),
        "heads": with_backward(heads, own, pooled),
        "mining": (mining, (outputs,)),
        "losses": with_backward(losses, outputs.mil_scores, outputs.refine_logits),
    }


def part_seconds(
    method: RefinementMethod, params: Params, batch: Batch, repeats: int
) -> dict[str, float]:
    """Time each part."""
    return {
        name: seconds(compiled(function, *arguments), *arguments, repeats=repeats)
        for name, (function, arguments) in parts(method, params, batch).items()
    }


def step_on_cpu(*, small: bool, repeats: int) -> list[Measure]:
    """Time an update and its parts at a laptop's size, in float32."""
    setting = SMALL if small else LAPTOP
    rounds = repeats if small else min(repeats, 3)  # tens of seconds each
    method, batch = make_method(setting, jnp.float32), make_batch(setting)
    whole = whole_step(method, batch, rounds)
    times = part_seconds(method, whole.params, batch, rounds)
    subject = f"OIM + IR, VGG16, float32, {setting}"
    return [
        Measure("whole update", 1e3 * whole.seconds, "ms", subject),
        Measure(
            "  working memory", whole.working_mib, "MiB", "in addition to parameters and momentum"
        ),
        *part_rows(times),
    ]


def part_rows(times: dict[str, float]) -> list[Measure]:
    """List the parts, and what pooling and mining take of their sum."""
    total = sum(times.values())
    share = (times["pooling"] + times["mining"]) / total
    rows = [
        Measure(f"  {name}", 1e3 * time, "ms", f"{time / total:.1%} of the parts")
        for name, time in times.items()
    ]
    return [*rows, Measure("  pooling + mining, share of the parts", 100 * share, "%")]
