"""Runs: train one in its workdir, and open it again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from wsod_jax import build
from wsod_jax.build import CUES, METHODS
from wsod_jax.config.overrides import may_differ
from wsod_jax.config.run_config import LogOptions, RunConfig
from wsod_jax.convert import efficientnet_lite
from wsod_jax.data.input.feature_cache import FeatureCache
from wsod_jax.data.input.loading import Cache
from wsod_jax.data.input.pooled_cache import PooledCache
from wsod_jax.errors import ConfigError
from wsod_jax.evaluation.metrics.average_precision import evaluate_detections
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth
from wsod_jax.methods.base import Method
from wsod_jax.runs.annotated_images import AnnotatedImages, left_out_sentences
from wsod_jax.runs.predictor import Predictor, check_classes
from wsod_jax.runs.training_data import TrainingData, check_streams, read_proposals
from wsod_jax.train import loop
from wsod_jax.train.checkpoint import Checkpoints, checkpoint_steps, load_checkpoint
from wsod_jax.train.distributed import check_same, is_first
from wsod_jax.train.identity import run_metadata
from wsod_jax.train.init_from import init_from, read_sources
from wsod_jax.train.logging import ConsoleWriter, JsonlWriter, TensorBoardWriter
from wsod_jax.train.sharding import fetch, make_mesh
from wsod_jax.train.state import TrainState, init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.types import Params
from wsod_jax.viz.canvas import save_image
from wsod_jax.viz.drawing import draw_pseudo_labels

# What stands in train.init_from for weights that a package brings -> the function that reads them.
INSTALLED_WEIGHTS = {efficientnet_lite.NAME: efficientnet_lite.installed_weights}

__all__ = [
    "Predictor",
    "TrainingData",
    "check_classes",
    "check_streams",
    "load_run",
    "read_proposals",
    "train",
]


def load_run(
    workdir: str | Path,
    step: int | None = None,
    *,
    weights: Literal["params", "ema"] | None = None,
    changes: Sequence[str] = (),
    methods: Mapping[str, type] = METHODS,
    cues: Mapping[str, type] = CUES,
) -> Predictor:
    """Open a trained run, ready to predict.

    Args:
      workdir: of the run, its `checkpoints` folder, or the folder of one step.
      step: which step; `None` takes the newest, or the one that `workdir` names.
      weights: the trained parameters, or their running average; `None` takes those that are the method's detector.
      changes: to how it is tested and where its files lie, such as "nms_thr=0.4" and "data.root=/data/VOCdevkit".
      methods: name -> class, a frozen dataclass each.
      cues: name -> class of the cue sources.

    Raises:
      DataError: if there is no such checkpoint, it is damaged, of version 0.1, or has no running average.
      ConfigError: for a change that is not possible.
    """
    params, extras, metadata = load_checkpoint(workdir, step=step, weights=weights)
    config = build.read_config(metadata["config"], methods=methods, cues=cues)
    config = build.change(config, changes)
    class_names = tuple(metadata["class_names"])
    count = len(class_names)
    method = build.method(config, num_classes=count, max_classes=count, max_targets=1)
    return Predictor.configured(config, method, params, extras, class_names, metadata)


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
    merge = None if checkpoint_steps(folder) else warm_start(config)  # before the workdir is there
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
        warm_start=merge,
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
        say(f"input: {met}")
        stream.close()
        checkpoints.close()
        for writer in writers:
            writer.close()
    say(f"compilations of the training step: {step.num_compilations()}")
    say(f"done: {workdir}; next: wsod-jax evaluate --workdir {workdir}")
    return state


def describe_run(config: RunConfig, method: Method, data: TrainingData) -> dict[str, Any]:
    """Return what is written beside each checkpoint of a run; see `run_metadata`."""
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
    config: RunConfig,
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
        return params, extras

    return merge


def describe(
    say: Callable[[str], None],
    config: RunConfig,
    method: Method,
    data: TrainingData,
    mesh: Mesh,
    state: TrainState,
) -> None:
    """Say what is about to run, and how many compilations it can take."""
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    boxes = "" if data.boxes is None else f" with boxes ({data.boxes.source})"
    say(
        f"{config.method.name}: {len(data.image_set)} images of {data.image_set.name}{boxes}, "
        f"{len(data.image_set.class_names)} classes, {size / 1e6:.1f} M parameters, "
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    )
    canvases = config.train.canvases.shapes()
    say(f"canvases (training compiles once for each): {', '.join(f'{h}x{w}' for h, w in canvases)}")
    describe_schedule(say, config, method)
    if int(fetch(state.step)):
        say(f"resuming at step {int(fetch(state.step))}")


def describe_schedule(say: Callable[[str], None], config: RunConfig, method: Method) -> None:
    """Say at which updates the run changes, and warn of those that it never reaches."""
    num_steps, optim = config.train.num_steps, config.optim
    changes = {
        "optim.warmup_steps": (optim.warmup_steps,),
        "optim.decay_steps": optim.decay_steps,
        "optim.momentum_reset_steps": optim.momentum_reset_steps,
        **{f"method.{option}": steps for option, steps in method.changes_at().items()},
    }
    for number, group in enumerate(optim.groups):
        changes[f"optim.groups[{number}].warmup_steps"] = (group.warmup_steps or 0,)
        changes[f"optim.groups[{number}].decay_steps"] = group.decay_steps or ()
    changes = {name: [n for n in steps if n > 0] for name, steps in changes.items()}
    known = [f"{name} {', '.join(map(str, steps))}" for name, steps in changes.items() if steps]
    say("; ".join([f"schedule: {num_steps} updates", *known]))
    for name, steps in changes.items():
        late = [str(n) for n in steps if n >= num_steps]
        if late:
            say(
                f"warning: config.{name} has update {', '.join(late)}, which a run of {num_steps} updates "
                "never reaches; it does not follow config.train.num_steps, so set both"
            )


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


def validation(
    config: RunConfig, method: Method, class_names: tuple[str, ...]
) -> Callable[[int, TrainState], dict[str, float]]:
    """Return a function that measures a state's mAP50 on the validation split.

    Raises:
      ConfigError: if its detections cannot be measured.
    """
    data = AnnotatedImages.read(config.data, config.data.val_split)
    images, proposals = data.images, read_proposals(config)
    if not data.has_boxes or data.truth.difficult.all():
        raise ConfigError(f"config.data.val_split: {images.name} has no object that counts")
    predictor = Predictor.configured(config, method, {}, {}, class_names)
    check_classes(images, class_names)
    for text in left_out_sentences(data, ()):
        print(f"validation: {text}")
    truth = GroundTruth.from_annotations(data.objects, num_classes=len(class_names))

    def measure(number: int, state: TrainState) -> dict[str, float]:
        del number
        weights = _detector(method, state), state.extras
        results = predictor.with_weights(*weights).predict(
            images, proposals, want=frozenset({"boxes"})
        )
        found = DetectionTable.of_results(results, len(data), len(class_names))
        metrics = evaluate_detections(found, truth, ap_mode=config.eval.ap)
        return {"mAP50": float(metrics.mean_ap[0])}

    return measure


def pseudo_figures(
    step: TrainStep,
    data: TrainingData,
    log: LogOptions,
    folder: Path,
    board: TensorBoardWriter | None,
) -> loop.Hook:
    """Return a hook that draws the pseudo boxes of the last stage on fixed training images."""
    device = jax.local_devices()[0]
    batches = data.fixed_batches(log.num_images)

    def draw(number: int, state: TrainState, micro_batches: Any, metrics: Any) -> None:
        del micro_batches, metrics
        if number % log.image_interval or not is_first():
            return
        # A copy on one device: the batches have one image each.
        copy = jax.device_put(fetch(state.replace(opt_state=())), device)
        for batch in batches:
            pseudo = step.examine(copy, jax.device_put(batch, device)).pseudo
            if pseudo is None:
                return
            last = jax.tree.map(lambda x: np.asarray(x)[0, -1], pseudo)  # first image, last stage
            height, width = batch.image_size[0]
            figure = draw_pseudo_labels(
                batch.image[0, :height, :width],
                last,
                class_names=data.image_set.class_names,
            )
            name = data.image_set.records[int(batch.image_index[0])].image_id
            path = folder / f"{number:06d}_{name}.png"
            save_image(path, figure)
            if board is not None:
                height, width = figure.shape[:2]
                board.write_png(
                    number, f"figures/{name}", path.read_bytes(), height=height, width=width
                )

    return draw


def _say_nothing(line: str) -> None:
    """Take a line for humans in processes that write nothing."""


def _detector(method: Method, state: TrainState) -> Any:
    return state.ema if method.result == "ema" else state.params
