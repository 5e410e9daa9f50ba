"""Training steps with VGG16 at a laptop's size: OIM's, as a whole and part by part; what localization maps add."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from wsod_jax.commands.benchmarks.accelerator import timed
from wsod_jax.commands.benchmarks.programs import Ready, parameters, part_of_step, training_step
from wsod_jax.commands.benchmarks.published import (
    SMALL_SIZES,
    Size,
    make_method,
    parts,
    random_batch,
)
from wsod_jax.commands.benchmarks.timing import Measure, working_mib
from wsod_jax.methods.base import Method
from wsod_jax.methods.ws_jds import WsJds
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.types import Batch, Params

LAPTOP = Size(1, (480, 640), (480, 640), proposals=1000, rows=1000)


def laptop_step(small: bool) -> tuple[Method, Size, str]:
    """Return OIM with the instance-reweighted loss, the size of its batch, and both in words."""
    size = SMALL_SIZES["proposals"][0] if small else LAPTOP
    method = make_method("oim_ir", size.num_classes, "float32", small)
    return method, size, f"OIM + IR, {'tiny backbone' if small else 'VGG16'}, float32, {size}"


def measured(ready: Ready, repeats: int) -> tuple[float, jax.stages.Compiled]:
    """Return the median seconds of a program, and the program."""
    program = ready.function.lower(*ready.arguments).compile()
    return timed(program, ready, repeats), program


def step_on_cpu(*, small: bool, repeats: int) -> list[Measure]:
    """Time an update and its parts at a laptop's size, in float32."""
    method, size, subject = laptop_step(small)
    rounds = repeats if small else min(repeats, 3)  # tens of seconds each
    batch = random_batch(size)
    whole, program = measured(training_step(method, batch), rounds)
    times = {name: measured(part_of_step(method, name, batch), rounds)[0] for name in parts(method)}
    total = sum(times.values())
    share = (times["pooling"] + times["mining"]) / total
    memory = working_mib(program)
    return [
        Measure("whole update", 1e3 * whole, "ms", subject),
        Measure("  working memory", memory, "MiB", "in addition to parameters and momentum"),
        *(
            Measure(f"  {name}", 1e3 * time, "ms", f"{time / total:.1%} of the parts")
            for name, time in times.items()
        ),
        Measure("  pooling + mining, share of the parts", 100 * share, "%"),
    ]


def localization_maps(*, small: bool, repeats: int) -> list[Measure]:
    """Time WSDDN's gradient on a frozen backbone without and with localization maps; one program for any number."""
    size = SMALL_SIZES["proposals"][0] if small else LAPTOP
    backbone = TinyNet(frozen=("conv",)) if small else Vgg16(frozen=("conv",))
    box_head = BoxHead((32, 32) if small else (4096, 4096))
    num_classes = size.num_classes
    method = WsJds(
        backbone=backbone,
        num_classes=num_classes,
        max_classes=4,
        box_head=box_head,
        guidance="none",
    )
    batch = random_batch(size)
    params, on_device = parameters(method, batch), jax.tree.map(jnp.asarray, batch)
    key = jax.random.key(0)

    def gradient(params: Params, batch: Batch) -> Params:
        def objective(params: Params) -> jax.Array:
            return method.mil_term(method.score(params, batch, key), batch).mean()

        return jax.grad(objective)(params)

    def with_maps(params: Params, batch: Batch, classes: jax.Array) -> tuple[Params, jax.Array]:
        pooled, to_image = method.pooled_of_image(params, batch)
        maps = method.maps_of_pooled(params, batch, key, classes, pooled, to_image)
        return gradient(params, batch.replace(pooled=pooled)), maps

    rounds = repeats if small else min(repeats, 3)  # seconds each
    plain, _ = measured(Ready(jax.jit(gradient), (params, on_device)), rounds)
    subject = f"WSDDN, {'tiny backbone' if small else 'VGG16'}, frozen, float32, {size}"
    found = [Measure("gradient without maps", 1e3 * plain, "ms", subject)]
    program = jax.jit(with_maps)
    for count in (0, 1, 2, 4):
        classes = jnp.where(jnp.arange(4) < count, jnp.arange(4), -1)
        classes = jnp.tile(classes, (len(batch.image_size), 1))
        time, _ = measured(Ready(program, (params, on_device, classes)), rounds)
        found.append(Measure(f"  with maps of {count} classes", time / plain, "x", "of that"))
    return found
