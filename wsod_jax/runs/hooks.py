"""What a training run tells and measures on the way: its description, validation, figures of pseudo boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wsod_jax.config.run_config import LogOptions, RunConfig
from wsod_jax.errors import ConfigError
from wsod_jax.evaluation.metrics.average_precision import evaluate_detections
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth
from wsod_jax.methods.base import Method
from wsod_jax.runs.annotated_images import AnnotatedImages, left_out_sentences
from wsod_jax.runs.predictor import Predictor, check_classes
from wsod_jax.runs.training_data import TrainingData, read_proposals
from wsod_jax.train import loop
from wsod_jax.train.distributed import is_first
from wsod_jax.train.logging import TensorBoardWriter
from wsod_jax.train.sharding import fetch
from wsod_jax.train.state import TrainState
from wsod_jax.train.step import TrainStep
from wsod_jax.viz.canvas import save_image
from wsod_jax.viz.drawing import draw_pseudo_labels


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


def _detector(method: Method, state: TrainState) -> Any:
    return state.ema if method.result == "ema" else state.params
