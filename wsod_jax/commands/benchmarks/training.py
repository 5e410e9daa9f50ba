"""The training step of OIM with VGG16 at a laptop's size: as a whole, and part by part."""

from __future__ import annotations

import jax

from wsod_jax.commands.benchmarks.accelerator import timed
from wsod_jax.commands.benchmarks.programs import Ready, part_of_step, training_step
from wsod_jax.commands.benchmarks.published import (
    SMALL_SIZES,
    Size,
    make_method,
    parts,
    random_batch,
)
from wsod_jax.commands.benchmarks.timing import Measure, working_mib
from wsod_jax.methods.base import Method

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
