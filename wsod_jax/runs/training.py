"""Train a run in its workdir, or resume it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from wsod_jax import build
from wsod_jax.config.overrides import may_differ
from wsod_jax.config.run_config import RunConfig
from wsod_jax.convert import efficientnet_lite
from wsod_jax.data.input.feature_cache import FeatureCache
from wsod_jax.data.input.loading import Cache
from wsod_jax.data.input.pooled_cache import PooledCache
from wsod_jax.errors import ConfigError
from wsod_jax.methods.base import Method
from wsod_jax.runs.hooks import describe, pseudo_figures, validation
from wsod_jax.runs.training_data import TrainingData
from wsod_jax.train import loop
from wsod_jax.train.checkpoint import Checkpoints, checkpoint_steps
from wsod_jax.train.distributed import check_same, is_first
from wsod_jax.train.identity import run_metadata
from wsod_jax.train.init_from import init_from, read_sources
from wsod_jax.train.logging import ConsoleWriter, JsonlWriter, TensorBoardWriter
from wsod_jax.train.sharding import fetch, make_mesh
from wsod_jax.train.state import TrainState, init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Params

# What stands in train.init_from for weights that a package brings -> the function that reads them.
INSTALLED_WEIGHTS = {efficientnet_lite.NAME: efficientnet_lite.installed_weights}


def train(
    config: RunConfig, workdir: str | Path, *, resume_command: str = "the same command"
) -> TrainState:
    """Train as a configuration says, in a workdir; resume the run that is in it.

    The workdir gets config.json, metrics.jsonl, tensorboard/, checkpoints/ and figures/ of fixed training images
    with their pseudo boxes.

    Args:
      config: from `build.read_config`.
      workdir: folder of the run.
      resume_command: what to type to go on, for messages.

    Returns:
      The state after the last update; of a run that is finished already, the state of its newest checkpoint.

    Raises:
      ConfigError: for a configuration that the data do not suit, or that is not the one of the run in the workdir.
      DataError: if the data, the weights to start from or the checkpoints cannot be read.
      NonFiniteError: if a loss, gradient or parameter became infinite or not a number.
      Interrupted: after a signal, once saved.
    """
    workdir, log, settings = Path(workdir), config.log, config.train
    check_same("configuration", config.to_json())

    # -- data and method
    data = TrainingData.read(config)
    class_names = data.image_set.class_names
    method = build.method(
        config,
        num_classes=len(class_names),
        max_classes=data.max_classes,
        max_targets=data.max_targets,
    )
    tx, schedule = build.optimizer(config)
    validate = validation(config, method, class_names) if log.best else None

    # -- state: resumed, or drawn and warm-started
    mesh = make_mesh()
    folder = workdir / "checkpoints"
    # Read first, so that a missing file leaves no workdir.
    start_from = None if checkpoint_steps(folder) else warm_start(config, method)
    checkpoints = Checkpoints(
        folder,
        describe_run(config, method, data),
        keep_period=log.keep_period or None,
        best=log.best,
        may_differ=tuple(f"config.{name}" for name in may_differ(config)),
    )
    latest = checkpoints.latest
    is_done = latest is not None and latest >= settings.num_steps
    if is_done and is_first():
        print(f"the run is already at step {latest} of {settings.num_steps}; nothing to do")
    elif is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config.to_json(), encoding="utf-8")
    state = init_state(
        method,
        tx,
        seed=config.seed,
        batch=data.example(),
        mesh=mesh,
        ema=settings.ema_decay is not None,
        warm_start=start_from,
    )
    state = checkpoints.restore(state) or state
    if is_done:
        checkpoints.close()
        return state
    start = int(fetch(state.step))

    # -- the step, and what is written
    step = TrainStep(
        method,
        tx,
        seed=config.seed,
        mesh=mesh,
        accumulate=settings.accumulate,
        ema_decay=settings.ema_decay,
        schedule=schedule,
    )
    console, board, writers = ConsoleWriter(settings.num_steps), None, []
    if is_first():
        writers = [console, JsonlWriter(workdir / "metrics.jsonl", resume_step=start)]
    if is_first() and log.tensorboard:
        board = TensorBoardWriter(workdir / "tensorboard", resume_step=start)
        writers.append(board)
    say = console.say if is_first() else _say_nothing
    describe(say, config, method, data, mesh, state)
    cache = open_cache(config, method, data, state)
    if isinstance(cache, PooledCache):
        say(f"pooled proposals are kept in {cache.folder}")
    stream = data.batches(start, cache)
    hooks = []
    if log.image_interval:
        hooks.append(pseudo_figures(step, data, log, workdir / "figures", board))

    # -- loop
    try:
        state = loop.train(
            step,
            state,
            itertools.chain.from_iterable(stream),
            loop.Steps(
                total=settings.num_steps,
                log_interval=log.log_interval,
                checkpoint_interval=log.checkpoint_interval,
                profile=log.profile_steps,
            ),
            checkpoints=checkpoints,
            watchers=loop.Watchers(
                writers=writers,
                hooks=hooks,
                validate=validate,
                profile_folder=workdir / "profile",
                resume_command=resume_command,
                say=say,
            ),
            cues=build.cue_source(config, data.image_set, data.proposals),
        )
    finally:
        met = {name: count for name, count in stream.counts.items() if count}
        if isinstance(cache, PooledCache):
            met["views_pooled"] = cache.num_computed  # the others were read
        say(f"input: {met}")
        stream.close()
        checkpoints.close()
        for writer in writers:
            writer.close()
    say(f"compilations of the training step: {step.num_compilations()}")
    say(f"done: {workdir}; next: wsod-jax evaluate --workdir {workdir}")
    return state


def describe_run(config: RunConfig, method: Method, data: TrainingData) -> dict[str, Any]:
    """Return the metadata written with each checkpoint of a run; see `run_metadata`."""
    metadata = run_metadata(
        method=config.method.name,
        class_names=data.image_set.class_names,
        config=config.to_dict(),
        split=config.data.train_split,
        seed=config.seed,
        result=method.result,
        backbone=config.backbone.description,
    )
    return metadata if data.boxes is None else {**metadata, "boxes": data.boxes.source}


def warm_start(
    config: RunConfig, method: Method
) -> Callable[[Params, dict], tuple[Params, dict]] | None:
    """Return the function that puts other weights into drawn parameters and extras, or `None` for none.

    Raises:
      DataError: if a file or run is missing, damaged, or was made for another network.
    """
    if not config.train.init_from:
        return None
    sources = read_sources(config.train.init_from, config.backbone.description, INSTALLED_WEIGHTS)

    def merge(params: Params, extras: dict) -> tuple[Params, dict]:
        params, extras, report = init_from(params, extras, sources, config.train.reinit)
        if is_first():
            print(f"weights: {report}")
        if method.start_from is not None:
            started = frozenset(name for names in report.taken.values() for name in names)
            params = method.start_from(params, started)
        return params, extras

    return merge


def open_cache(
    config: RunConfig, method: Method, data: TrainingData, state: TrainState
) -> Cache | None:
    """Return what stands in for the pixels of training images.

    Raises:
      ConfigError: if pooled proposals do not fit the disk.
    """
    settings, backbone = config.train, config.backbone
    if settings.cache == "none":
        return None
    params = fetch({"backbone": state.params["backbone"]})
    if settings.cache == "features":
        variables = {"params": jax.device_put(params["backbone"])}
        return FeatureCache(jax.jit(lambda batch: backbone.apply(variables, batch)["c5"]))
    cache = PooledCache(
        method.pool, params, data.image_set, settings.cache_folder, name=backbone.architecture
    )
    num_views = len(settings.scales) * (1 + settings.flip)
    missing = cache.missing_bytes(data.proposals, data.rules.max_proposals, num_views)
    if missing > 0:
        raise ConfigError(
            f"config.train.cache_folder is {settings.cache_folder!r}, whose disk has {missing / 1e9:.1f} GB less than "
            f"the pooled proposals of {num_views} views of {len(data.image_set)} images may need; use another disk, "
            'or set config.train.cache to "features" or "none"'
        )
    return cache


def _say_nothing(line: str) -> None:
    """Take a line for humans in processes that write nothing."""
