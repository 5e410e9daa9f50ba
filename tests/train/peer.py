"""One process of several that train the toy method with cues together; `test_distributed.py` starts them.

    python -m tests.train.peer PORT NUM_PROCESSES PROCESS_ID WORKDIR [name=value …]

It leaves its parameters in WORKDIR/params_<process>.npz.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from tests.train.test_checkpoint import metadata
from tests.train.test_host_stage import Proposing, Weights, cued_batches
from tests.train.test_step import build
from tests.train.toy import part
from wsod_jax.train.checkpoint import Checkpoints
from wsod_jax.train.distributed import check_same, initialize, is_first
from wsod_jax.train.logging import JsonlWriter
from wsod_jax.train.loop import Interrupted, Steps, Watchers, train
from wsod_jax.train.sharding import fetch

IMAGES, TOTAL = 8, 7


def own_rows(batch):
    """Return this process's part of a global micro-batch."""
    share = IMAGES // jax.process_count()
    return part(batch, share * jax.process_index(), share * (jax.process_index() + 1))


def toy(workdir: Path, *, killed: str = "", failing: str = "") -> None:
    """Train the toy method for seven updates, or go on with them.

    Args:
      workdir: shared by all.
      killed: the process that gets SIGTERM at update 3.
      failing: the process whose batches end after update 3.
    """
    check_same("order of batches", "0, 1, 2")
    state, step = build(method=Proposing(), devices=jax.device_count(), ema_decay=0.9)
    checkpoints = Checkpoints(workdir / "checkpoints", metadata())
    state = checkpoints.restore(state) or state
    first = int(fetch(state.step))
    feed = [own_rows(batch) for batch in cued_batches(TOTAL)[first:]]
    own = str(jax.process_index())
    if failing == own:
        feed = feed[:3]
    writers = [JsonlWriter(workdir / "metrics.jsonl", resume_step=first)] if is_first() else []

    def hook(done, state, batches, metrics):
        if done == 3 and killed == own:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        watchers = Watchers(writers=writers, hooks=[hook])
        steps = Steps(total=TOTAL, log_interval=1, checkpoint_interval=3)
        state = train(
            step,
            state,
            feed,
            steps,
            checkpoints=checkpoints,
            watchers=watchers,
            cues=Weights(),
        )
    except Interrupted as stopped:
        print(stopped.message, flush=True)
        raise
    finally:
        checkpoints.close()
    np.savez(workdir / f"params_{own}.npz", *jax.tree.leaves(fetch(state.params)))


if __name__ == "__main__":
    port, processes, process, folder, *options = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    initialize(f"127.0.0.1:{port}", int(processes), int(process))
    toy(Path(folder), **dict(pair.split("=", 1) for pair in options))
