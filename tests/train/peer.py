"""One process of several that train the toy method together; `test_distributed.py` starts them.

    python -m tests.train.peer WORKDIR PORT NUM_PROCESSES PROCESS_ID [name=value …]

It prints what it did and leaves the final parameters in WORKDIR/params_<process>.npz.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from tests.train.test_checkpoint import metadata
from tests.train.test_step import build
from tests.train.toy import part, toy_batches
from wsod_jax.train.checkpoint import Checkpoints
from wsod_jax.train.distributed import check_same, initialize, is_first
from wsod_jax.train.logging import JsonlWriter
from wsod_jax.train.loop import Interrupted, Steps, Watchers, train
from wsod_jax.train.sharding import fetch

IMAGES = 8


def own_rows(batch):
    """Return this process's part of a global micro-batch."""
    share = IMAGES // jax.process_count()
    return part(batch, share * jax.process_index(), share * (jax.process_index() + 1))


def main(workdir: Path, **options):
    """Train seven updates, or go on with them."""
    total = int(options.get("total", 7))
    check_same("configuration", json.dumps({"optim": {"lr": options.get("lr", 0.05)}, "seed": 3}))
    state, step = build(devices=jax.device_count(), ema_decay=0.9)
    checkpoints = Checkpoints(workdir / "checkpoints", metadata())
    state = checkpoints.restore(state) or state
    first = int(fetch(state.step))
    feed = map(own_rows, toy_batches(total)[first:])
    writers = [JsonlWriter(workdir / "metrics.jsonl", resume_step=first)] if is_first() else []

    def hook(done, state, batches, metrics):
        if (
            done == int(options.get("kill_at", -1))
            and int(options["killed"]) == jax.process_index()
        ):
            os.kill(os.getpid(), signal.SIGTERM)

    if int(options.get("fails", -1)) == jax.process_index():
        feed = list(feed)[:3]
    try:
        state = train(
            step,
            state,
            feed,
            Steps(total=total, log_interval=1, checkpoint_interval=3),
            checkpoints=checkpoints,
            watchers=Watchers(writers=writers, hooks=[hook]),
        )
    except Interrupted as stopped:
        print(stopped.message, flush=True)
        raise
    finally:
        checkpoints.close()
    leaves = jax.tree.leaves(fetch(state.params))
    np.savez(workdir / f"params_{jax.process_index()}.npz", *leaves)
    print(f"done, {step.num_compilations()} compilation(s)", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    folder, port, processes, process = sys.argv[1:5]
    if processes != "1":
        initialize(f"127.0.0.1:{port}", int(processes), int(process))
    main(Path(folder), **dict(pair.split("=") for pair in sys.argv[5:]))
