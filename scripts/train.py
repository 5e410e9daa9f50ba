"""Train a detector from image-level labels.

    python scripts/train.py --config configs/oim_ir_vgg16_voc07.py --workdir runs/oim_ir
    python scripts/train.py --config configs/synthetic.py:oicr --workdir runs/oicr --config.optim.learning_rate=2e-4

The same command resumes an interrupted run where it stopped. The workdir gets config.json, metrics.jsonl,
tensorboard/, checkpoints/ and pictures/ of fixed training images with their pseudo boxes. A config may take a
variant after a colon, and every value in it can be set on the command line as --config.section.key=value.
"""

import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from wsod_jax import build
from wsod_jax.data.arrays import FeatureCache
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evals.voc import evaluate_detections
from wsod_jax.experiment import LOCATIONS, Predictor, TrainingData, check_classes, truth_table
from wsod_jax.methods.base import Method
from wsod_jax.train.checkpoint import Checkpoints
from wsod_jax.train.identity import run_metadata
from wsod_jax.train.logging import ConsoleWriter, JsonlWriter, TensorBoardWriter
from wsod_jax.train.loop import Steps, Watchers, train
from wsod_jax.train.progress import NonFiniteError
from wsod_jax.train.sharding import make_mesh
from wsod_jax.train.state import TrainState, init_state
from wsod_jax.train.step import TrainStep
from wsod_jax.viz.canvas import save_image
from wsod_jax.viz.pictures import draw_pseudo_labels

# A config may import its base, configs.*
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Options that the file leaves at their defaults can be set too; build.py knows which there are.
config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file, and :variant if it has any.",
    lock_config=False,
    accept_new_attributes=True,
)
flags.DEFINE_string("workdir", None, "Folder of this run; an existing one is resumed.")
flags.mark_flags_as_required(["config", "workdir"])

# What a resumed run may change without becoming another run.
MAY_DIFFER = (
    "config.log",
    "config.eval",
    "config.localization",
    "config.data.val_split",
    "config.train.num_steps",
    "config.train.loader",
    *(f"config.{name}" for name in LOCATIONS),
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected arguments {argv[1:]}; settings look like --config.train.num_steps=100"
        )
    logging.set_verbosity(logging.WARNING)  # else every checkpoint brings a page of messages
    try:
        run(flags.FLAGS.config, Path(flags.FLAGS.workdir))
    except (ConfigError, DataError, NonFiniteError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # outside the loop over updates, or a second one
        again = resume_command()
        print(f"\ninterrupted; to go on from the last checkpoint: {again}", file=sys.stderr)
        sys.exit(130)


def resume_command() -> str:
    return shlex.join([sys.executable, *sys.argv])


def run(config, workdir: Path) -> None:
    """Train as `config` says, in `workdir`."""
    # -- data and method
    build.check_sections(config)
    log, settings = build.log_settings(config), build.train_settings(config)
    data = TrainingData.read(config)
    class_names = data.image_set.class_names
    method = build.method(config, num_classes=len(class_names), max_classes=data.max_classes)
    tx, schedule = build.optimizer(config)
    validate = validation(config, method, class_names) if log.best else None
    if log.pictures_every and data.rules is None:
        raise ConfigError(
            f"config.log.pictures_every is {log.pictures_every}, but {config.method.name} mines no boxes to draw; "
            "set it to 0. scripts/visualize.py proposal_maps draws what SPN's maps became during training"
        )

    # -- state: resumed, or drawn and warm-started
    mesh = make_mesh()
    metadata = run_metadata(
        method=config.method.name,
        class_names=class_names,
        config=config.to_dict(),
        split=config.data.train_split,
        seed=config.seed,
        result=method.result,
        backbone=method.backbone.description,
    )
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        metadata,
        keep_period=log.milestones_every or None,
        best=log.best,
        may_differ=may_differ(config),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=1) + "\n"
    (workdir / "config.json").write_text(text, encoding="utf-8")
    state = init_state(
        method,
        tx,
        seed=config.seed,
        batch=data.example(),
        mesh=mesh,
        ema=settings.ema_decay is not None,
        warm_start=None if checkpoints.latest is not None else build.warm_start(config),
    )
    state = checkpoints.restore(state) or state
    start = int(state.step)

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
    console = ConsoleWriter(settings.num_steps)
    writers = [console, JsonlWriter(workdir / "metrics.jsonl", resume_step=start)]
    board = None
    if log.tensorboard:
        board = TensorBoardWriter(workdir / "tensorboard", resume_step=start)
        writers.append(board)
    describe(console.say, config, data, mesh, start, state)

    stream, batches = open_stream(method, settings, data, state, start)
    hooks = []
    if log.pictures_every:
        hooks.append(pseudo_pictures(step, data, log, workdir / "pictures", board))

    # -- loop
    try:
        state = train(
            step,
            state,
            batches,
            Steps(
                total=settings.num_steps,
                log_interval=log.every,
                checkpoint_interval=log.checkpoint_every,
                profile=log.profile_steps or None,
            ),
            checkpoints=checkpoints,
            watchers=Watchers(
                writers=writers,
                hooks=hooks,
                validate=validate,
                profile_folder=workdir / "profile",
                resume_command=resume_command(),
                say=console.say,
            ),
        )
    finally:
        met = {name: count for name, count in stream.counts.items() if count}
        console.say(f"input: {met}")
        stream.close()
        checkpoints.close()
        for writer in writers:
            writer.close()
    console.say(f"compilations of the training step: {step.num_compilations()}")
    console.say(f"done: {workdir}; next: python scripts/evaluate.py --workdir {workdir}")


def may_differ(config: ConfigDict) -> tuple[str, ...]:
    """Return what a resumed run may change; a cosine is stretched over `num_steps`, which then has to stay."""
    fixed = {"config.train.num_steps"} if config.optim.get("shape") == "cosine" else set()
    return tuple(name for name in MAY_DIFFER if name not in fixed)


def describe(say, config, data: TrainingData, mesh, start: int, state) -> None:
    """Say what is about to run, and how many compilations it can take."""
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    canvases = data.settings.canvases.shapes()
    say(
        f"{config.method.name}: {len(data.image_set)} images of {data.image_set.name}, "
        f"{len(data.image_set.class_names)} classes, {size / 1e6:.1f} M parameters, "
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    )
    say(f"canvases (training compiles once for each): {', '.join(f'{h}x{w}' for h, w in canvases)}")
    describe_schedule(say, config)
    if start:
        say(f"resuming at step {start}")


def describe_schedule(say, config: ConfigDict) -> None:
    """Say at which updates the run changes, and warn of those that it never reaches."""
    num_steps, optim = config.train.num_steps, config.optim
    changes = {
        "optim.warmup_steps": (optim.get("warmup_steps", 0),),
        "optim.decay_steps": optim.get("decay_steps", ()),
        "optim.momentum_reset_steps": optim.get("momentum_reset_steps", ()),
        "method.alpha": [first for first, _ in config.method.get("alpha", ())],
    }
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


def open_stream(method, settings: build.TrainSettings, data: TrainingData, state, start: int):
    """Return the input stream, and the micro-batches drawn from it with cached features if asked for."""
    if not settings.cache_features:
        stream = data.batches(start)
        return stream, itertools.chain.from_iterable(stream)
    backbone = method.backbone
    if not all(layer.startswith(tuple(backbone.frozen)) for layer in backbone.layers):
        raise ConfigError(
            "config.train.cache_features needs a wholly frozen backbone; "
            f"config.backbone.frozen is {backbone.frozen}, its layers are {', '.join(backbone.layers)}"
        )
    params = jax.device_put(jax.device_get(state.params["backbone"]))
    features = jax.jit(lambda b: backbone.apply({"params": params}, b)["c5"])
    cache = FeatureCache(features)
    stream = data.batches(start, skip_pixels=cache.has)
    return stream, map(cache, itertools.chain.from_iterable(stream))


def validation(
    config: ConfigDict, method: Method, class_names: tuple[str, ...]
) -> Callable[[int, TrainState], dict[str, float]]:
    """Return a function that measures a state's mAP50 on the validation split.

    Raises:
      ConfigError: if the configuration has no such split, or its detections cannot be measured.
    """
    split = config.data.get("val_split")
    if split is None:
        raise ConfigError(
            f"config.log.best is {config.log.best!r}, but nothing says on which images; set "
            "config.data.val_split to a split that is neither trained on nor tested on"
        )
    if "proposals" not in config:
        raise ConfigError(
            f"config.log.best is {config.log.best!r}, which is measured of boxes chosen among proposals, but "
            f"{config.method.name} has none; set config.log.best to None"
        )
    images, proposals = build.images(config, split), build.proposals(config)
    truth = truth_table(images, build.ground_truth(config, split))
    if truth.difficult.all():
        raise ConfigError(f"config.data.val_split: {images.name} has no object that counts")
    predictor = Predictor.configured(config, method, {}, {}, class_names)
    check_classes(images, class_names)

    def measure(number: int, state: TrainState) -> dict[str, float]:
        del number
        # A copy on one device: evaluation is not spread over the mesh.
        params, extras = jax.device_put(jax.device_get((state.params, state.extras)))
        detections = predictor.with_weights(params, extras).detect(images, proposals).detections
        metrics = evaluate_detections(detections, truth, ap_mode=predictor.settings.ap)
        return {"mAP50": float(metrics.mean_ap[0])}

    return measure


def pseudo_pictures(
    step: TrainStep,
    data: TrainingData,
    log: build.LogSettings,
    folder: Path,
    board: TensorBoardWriter | None,
):
    """Return a hook that draws the pseudo boxes of the last stage on fixed training images."""
    device = step.mesh.devices.flat[0]
    batches = data.fixed_batches(log.num_pictures)

    def draw(number: int, state, micro_batches, metrics) -> None:
        del micro_batches, metrics
        if number % log.pictures_every:
            return
        # A copy on one device: the batches have one image each.
        copy = jax.device_put(state.replace(opt_state=()), device)
        for batch in batches:
            pseudo = step.examine(copy, jax.device_put(batch, device)).pseudo
            if pseudo is None:
                return
            last = jax.tree.map(lambda x: np.asarray(x)[0, -1], pseudo)  # first image, last stage
            height, width = batch.image_size[0]
            picture = draw_pseudo_labels(
                batch.image[0, :height, :width],
                last.boxes,
                last.classes,
                last.scores,
                last.is_core,
                mask=last.mask,
                class_names=data.image_set.class_names,
            )
            name = data.image_set.records[int(batch.image_index[0])].image_id
            path = folder / f"{number:06d}_{name}.png"
            save_image(path, picture)
            if board is not None:
                height, width = picture.shape[:2]
                board.write_png(
                    number, f"pictures/{name}", path.read_bytes(), height=height, width=width
                )

    return draw


def check_overrides(arguments: list[str]) -> None:
    """Exit on a setting of a section that does not exist, which the flags library meets with a traceback."""
    for argument in arguments:
        found = re.match(r"--?config\.(\w+)", argument)
        if found:
            try:
                build.check_section_name(found[1])
            except ConfigError as error:
                sys.exit(f"error: {error}")


if __name__ == "__main__":
    check_overrides(sys.argv[1:])
    app.run(main)
