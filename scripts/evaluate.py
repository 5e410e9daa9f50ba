"""Measure a trained detector: average precision on the test split, CorLoc on the training split; and for methods
that localise without proposals, pointing accuracy and Object Energy.

    python scripts/evaluate.py --workdir runs/oim_ir                 # its newest checkpoint
    python scripts/evaluate.py --workdir runs/oim_ir --all_steps     # every checkpoint, with curves
    python scripts/evaluate.py --workdir runs/oim_ir --watch         # each new one as training writes it
    python scripts/evaluate.py --checkpoint runs/oim_ir/checkpoints/90000
    python scripts/evaluate.py --config configs/oim_ir_vgg16_voc07.py --predictions results.json   # runs no model
    python scripts/evaluate.py --workdir runs/spn --compare --energy_of voc07.npz     # SPN beside its baselines
    python scripts/evaluate.py --workdir runs/spn_560 --together_with runs/spn_224 runs/spn_112

Writes predictions.json (and points.csv), then report.md, report.json and pictures into
<workdir>/evaluation/<step>/; for a file of predictions, into --out or <file>_scored/ beside it. A split without
boxes, such as VOC 2012 test, is predicted and not measured; --voc_server writes what its server takes.
"""

import argparse
import dataclasses
import json
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from wsod_jax import build
from wsod_jax.data.records import check_single_label
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evals.classification import classification_ap
from wsod_jax.evals.ilsvrc import read_blacklist
from wsod_jax.evals.predictions import read_predictions
from wsod_jax.evaluation import boxes, maps
from wsod_jax.evaluation.baselines import comparison, file_energies
from wsod_jax.evaluation.findings import Findings, bar, compilation_note, known_objects
from wsod_jax.evaluation.ilsvrc import measure_ilsvrc
from wsod_jax.experiment import (
    Predictor,
    change_config,
    check_classes,
    open_checkpoint,
)
from wsod_jax.train.checkpoint import checkpoint_steps
from wsod_jax.viz import plot_training, save_image

# A config may import its base, configs.*
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


MAP_OPTIONS = ("compare", "energy_of", "together_with", "blacklist")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        if args.predictions:
            rescore(args)
        else:
            evaluate_run(args)
    except (ConfigError, DataError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="folder of a training run")
    source.add_argument("--checkpoint", help="folder of one checkpoint")
    source.add_argument(
        "--config", metavar="FILE[:VARIANT]", help="with --predictions: whose data and settings"
    )
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--all_steps", action="store_true", help="every checkpoint of the workdir")
    steps.add_argument(
        "--watch", action="store_true", help="wait for new checkpoints until training ends"
    )
    add("--ema", action="store_true", help="the running average of the weights (ema_decay)")
    add("--split", help="measure mAP on this split (default: config.data.test_split)")
    add("--corloc_split", help="measure CorLoc on this split, 'none' for not at all")
    add("--predictions", help="score this COCO results file; no model or checkpoint is needed")
    add("--coco", action="store_true", help="also COCO's box AP and AR")
    add("--voc_server", action="store_true", help="also the files the VOC server takes")
    add("--out", help="folder of the report (default: <workdir>/evaluation)")
    add(
        "--compare",
        action="store_true",
        help="methods with maps: also other proposal maps of the same weights (uniform is CAM), and the points of "
        "image centres and of gradients",
    )
    add(
        "--energy_of",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="methods with maps: also the Object Energy of these files of proposals",
    )
    add(
        "--together_with",
        nargs="+",
        type=Path,
        default=[],
        metavar="RUN",
        help="methods with maps: further runs whose boxes join this one's, such as those of other image sizes",
    )
    add(
        "--blacklist",
        type=Path,
        metavar="FILE",
        help="single-label methods with maps: images that do not count, as in ILSVRC",
    )
    add("--pictures", type=int, default=12, help="images to draw (default 12)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a test setting, e.g. --set nms_thr=0.4, or where the data lie now, "
        "e.g. --set data.root=/data/VOCdevkit --set proposals.path=/data/voc07.npz (repeatable)",
    )
    args = parser.parse_args(arguments)
    if args.config and not args.predictions:
        parser.error("--config goes with --predictions; a model needs --workdir or --checkpoint")
    ignored = ("all_steps", "watch", "ema", *MAP_OPTIONS)
    if args.predictions and any(getattr(args, name) for name in ignored):
        parser.error(f"--predictions scores one file: no --{', --'.join(ignored)}")
    return args


# -- a file of predictions


def rescore(args: argparse.Namespace) -> None:
    """Score a predictions file; only the configuration and the data are read."""
    config, path, findings = stored_config(args), Path(args.predictions), Findings()
    config = change_config(config, args.set)
    settings = build.eval_settings(config)
    images = build.images(config, split_to_test(config, args))
    detections = read_predictions(path, image_ids=images.image_ids, class_names=images.class_names)
    folder = Path(args.out) if args.out else path.parent / f"{path.stem}_scored"
    boxes.measure_detections(
        findings,
        settings,
        images,
        detections,
        known_objects(config, images, split_to_test(config, args)),
        folder=folder,
        num_pictures=args.pictures,
        coco=args.coco,
    )
    if args.voc_server:
        boxes.write_server_files(folder, images, detections)
    used = ("ap", "iou_thrs")  # the others were settled when the file was made
    facts = {
        "set": images.name,
        **build.settings_used(config),
        "test": {name: getattr(settings, name) for name in used},
        "predictions": str(path),
    }
    findings.write(folder, f"{path.name}, {images.name}", images, facts)


def stored_config(args: argparse.Namespace) -> ConfigDict:
    """Return the configuration: of a Python file, or as a run has stored it."""
    if not args.config:
        path = workdir_of(Path(args.workdir or args.checkpoint)) / "config.json"
        if not path.is_file():
            raise DataError(f"{path} does not exist; give the workdir of a run, or --config")
        return build.load_config(path)
    path, _, variant = args.config.partition(":")
    if not Path(path).is_file():
        raise DataError(f"{path}: no such configuration file")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ConfigError(f"{path} has no function get_config; configs/debug_tiny.py shows one")
    config = get_config(variant) if variant else get_config()
    build.check_sections(config)
    return config


# -- checkpoints


def evaluate_run(args: argparse.Namespace) -> None:
    """Evaluate the checkpoints asked for, one report each, and draw curves over them."""
    source = Path(args.workdir or args.checkpoint)
    out = Path(args.out) if args.out else workdir_of(source) / "evaluation"
    history, predictor = {}, None
    for step in steps_of(source, args):
        try:
            opened, config, metadata = open_checkpoint(
                source,
                None if source.name.isdigit() else step,
                weights="ema" if args.ema else "params",
                changes=args.set,
            )
        except (ValueError, OSError):
            if source.name.isdigit() or step in checkpoint_steps(source):
                raise
            print(f"step {step}: left out, training has deleted this checkpoint")
            continue
        if predictor is None:
            predictor = opened
        else:  # compiled once for all checkpoints
            predictor = predictor.with_weights(opened.params, opened.extras)
        history[step] = evaluate_step(predictor, config, metadata, args, out / str(step))
    if len(history) > 1:
        write_history(out, source.name, history)


def write_history(out: Path, name: str, history: dict[int, dict[str, float]]) -> None:
    """Write the numbers of all checkpoints, and draw them over steps."""
    series = {
        key: (np.array(list(history)), np.array([s.get(key, np.nan) for s in history.values()]))
        for key in next(iter(history.values()))
    }
    (out / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    path = save_image(out / "curves.png", plot_training({name: series}))
    print(f"curves over {len(history)} checkpoints: {path}")


def workdir_of(source: Path) -> Path:
    """Return the workdir of a run, of its folder of checkpoints, or of one checkpoint."""
    if source.name.isdigit():
        return source.parent.parent
    return source.parent if source.name == "checkpoints" else source


def steps_of(source: Path, args: argparse.Namespace) -> Iterator[int]:
    """Yield the steps to evaluate; with --watch, as they appear, until the run's last one.

    Training deletes old checkpoints meanwhile, so they are listed anew before each.
    """
    if args.checkpoint and source.name.isdigit():
        yield int(source.name)
        return
    seen, expected = set(), set()
    while True:
        present = checkpoint_steps(source)
        for step in sorted(expected - set(present)):
            print(f"step {step}: left out, training has deleted this checkpoint")
        waiting = [step for step in present if step not in seen]
        if waiting:
            step = waiting[0] if args.all_steps or args.watch else waiting[-1]
            seen.add(step)
            expected = set(waiting) - {step}
            yield step
            if not args.all_steps and not args.watch:
                return
            continue
        expected = set()
        if not seen and not args.watch:
            raise DataError(
                f"no checkpoints in {source}; train with scripts/train.py --workdir {source}"
            )
        if not args.watch or (seen and max(seen) >= last_step(source)):
            return
        time.sleep(10)


def last_step(source: Path) -> int:
    """Return the step at which the run will end."""
    return build.load_config(workdir_of(source) / "config.json").train.num_steps


def evaluate_step(
    predictor: Predictor, config: ConfigDict, metadata: dict, args: argparse.Namespace, folder: Path
) -> dict[str, float]:
    """Evaluate one checkpoint, write its predictions and its report, and return the report's summary."""
    step, settings, findings = metadata["step"], predictor.settings, Findings()
    images = build.images(config, split_to_test(config, args))
    check_classes(images, predictor.class_names)
    print(f"step {step}: {len(images)} images of {images.name}, {settings.num_views} views each")
    corloc_split = args.corloc_split or settings.corloc_split
    if corloc_split == "none" or not build.has_boxes(config):
        corloc_split = None
    if predictor.localization is None:
        refuse_options_of_maps(metadata["method"], args)
        evaluate_boxes(findings, predictor, config, images, corloc_split, args, folder)
    else:
        evaluate_maps(findings, predictor, config, images, corloc_split, args, folder)
    findings.note(compilation_note(predictor, corloc_split))
    facts = {
        "set": images.name,
        "corloc_split": corloc_split,
        "step": step,
        "weights": "ema" if args.ema else "params",
        "seed": metadata["seed"],
        **build.settings_used(config),
        "test": dataclasses.asdict(settings),
    }
    if predictor.localization is not None:
        facts["localization"] = dataclasses.asdict(predictor.localization)
    return findings.write(
        folder, f"{metadata['method']}, step {step}, {images.name}", images, facts
    )


def evaluate_boxes(findings, predictor, config, images, corloc_split, args, folder) -> None:
    """Evaluate a method that scores proposals, or an image classifier."""
    proposals, settings = build.proposals(config), predictor.settings
    started = time.perf_counter()
    results = predictor.detect(images, proposals, "map", bar)
    findings.scalars["seconds_per_image"] = (time.perf_counter() - started) / max(len(images), 1)
    if proposals is not None:  # before anything is measured: what follows may fail
        boxes.write_detections(folder, images, results.detections, voc_server=args.voc_server)
    findings.note_input(images, results.counts, results.predicted)
    if results.image_scores is not None:
        scores, labels = results.image_scores[results.predicted], images.labels[results.predicted]
        if (labels >= 0).any():
            findings.parts["classification"] = classification_ap(
                scores, labels, ap_mode=settings.ap
            )
    if proposals is None:
        return
    boxes.measure_detections(
        findings,
        settings,
        images,
        results.detections,
        known_objects(config, images, split_to_test(config, args)),
        folder=folder,
        num_pictures=args.pictures,
        coco=args.coco,
    )
    if corloc_split is not None:
        boxes.measure_corloc(findings, predictor, config, corloc_split, proposals)


def evaluate_maps(findings, predictor, config, images, corloc_split, args, folder) -> None:
    """Evaluate a method that localises without proposals."""
    split = maps.MapSplit.read(config, split_to_test(config, args))
    # what may be wrong with other files is found before the long part
    others = [maps.open_other(run, images, args.set) for run in args.together_with]
    of_files = {}
    if split.truth is not None:
        of_files = {path.name: file_energies(path, split) for path in args.energy_of}
    blacklist = read_blacklist(args.blacklist, images.image_ids) if args.blacklist else ()
    single_label = predictor.method.single_label and split.truth is not None
    if single_label:
        check_single_label(images)
    elif args.blacklist:
        raise ConfigError(
            "--blacklist is for runs that learn one class per image, with annotated test images"
        )
    started = time.perf_counter()
    located = split.locate(predictor, "map", keep_responses=args.pictures)
    findings.scalars["seconds_per_image"] = (time.perf_counter() - started) / max(len(images), 1)
    found = [located, *(split.locate(other, "map") for other in others)]
    detections = maps.predicted_boxes(found, predictor)
    boxes.write_detections(folder, images, detections, voc_server=args.voc_server)
    path = maps.write_points(folder / "points.csv", images, located, predictor.class_names)
    print(f"points: {path}")
    findings.note_input(images, located.counts, located.predicted)
    measured = maps.measure_maps(
        findings, predictor, split, located, folder=folder, num_pictures=args.pictures
    )
    if measured is not None:
        boxes.measure_detections(
            findings,
            predictor.settings,
            images,
            detections,
            split.truth,
            folder=folder,
            num_pictures=args.pictures,
            coco=args.coco,
        )
    if single_label:
        measure_ilsvrc(findings, located, split, blacklist)
    train_split = None if corloc_split is None else maps.MapSplit.read(config, corloc_split)
    corloc = maps.measure_training_split(findings, predictor, train_split, others)
    if not args.compare and not args.energy_of:
        return
    if measured is None:
        findings.note("nothing is compared with baselines: there are no boxes to measure them by")
    else:
        findings.tables.append(
            comparison(
                (predictor, *others),
                (split, train_split),
                (measured, corloc),
                maps=args.compare,
                proposal_energies=of_files,
            )
        )


def refuse_options_of_maps(method: str, args: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that a method without maps would ignore."""
    for name in MAP_OPTIONS:
        if getattr(args, name):
            raise ConfigError(f"--{name} is for methods with maps, such as spn; this is {method!r}")


# -- what both measure and write


def split_to_test(config: ConfigDict, args: argparse.Namespace) -> str:
    """Return the split to measure mAP on."""
    return args.split or config.data.test_split


if __name__ == "__main__":
    main()
