"""What `evaluate` does: a file of predictions scored again, or checkpoints evaluated, a report each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsod_jax import build
from wsod_jax.analysis.baselines import comparison, file_energies
from wsod_jax.commands.command_line import load_config
from wsod_jax.config import RunConfig
from wsod_jax.data.records import ImageSet, check_single_label
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evaluation.metrics.classification import classification_ap
from wsod_jax.evaluation.metrics.ilsvrc import read_blacklist
from wsod_jax.evaluation.predictions import read_predictions
from wsod_jax.measuring import boxes, maps
from wsod_jax.measuring.findings import Findings, bar, compilation_note, known_objects
from wsod_jax.measuring.ilsvrc import measure_ilsvrc
from wsod_jax.overrides import locations
from wsod_jax.predictor import Predictor, check_classes
from wsod_jax.runs import load_run
from wsod_jax.train.checkpoint import checkpoint_steps
from wsod_jax.training_data import read_proposals
from wsod_jax.viz import plot_training, save_image

# -- a file of predictions


def rescore(args: argparse.Namespace) -> None:
    """Score a predictions file; only the configuration and the data are read."""
    config, path, findings = (
        build.change(stored_config(args), args.set),
        Path(args.predictions),
        Findings(),
    )
    split = args.split or config.data.test_split
    images = config.data.images(split)
    detections = read_predictions(path, image_ids=images.image_ids, class_names=images.class_names)
    folder = Path(args.out) if args.out else path.parent / f"{path.stem}_scored"
    boxes.measure_detections(
        findings,
        config.eval,
        images,
        detections,
        known_objects(config.data, images, split),
        pictures=boxes.Pictures(folder, args.pictures),
        coco=args.coco,
    )
    if args.voc_server:
        boxes.write_server_files(folder, images, detections)
    used = ("ap", "iou_thrs")  # the others were settled when the file was made
    facts = {
        "set": images.name,
        **without(config.to_dict(), "eval"),
        "test": {name: getattr(config.eval, name) for name in used},
        "predictions": str(path),
    }
    findings.write(folder, f"{path.name}, {images.name}", images, facts)


def stored_config(args: argparse.Namespace) -> RunConfig:
    """Return the configuration: of a Python file, or as a run has stored it."""
    if args.config:
        return build.read_config(load_config(args.config))
    return read_workdir(Path(args.workdir or args.checkpoint))


def read_workdir(source: Path) -> RunConfig:
    """Return the configuration that a run has stored in its workdir."""
    path = workdir_of(source) / "config.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the workdir of a run, or --config")
    return build.read_config(json.loads(path.read_text(encoding="utf-8")))


# -- checkpoints


def evaluate_run(args: argparse.Namespace) -> None:
    """Evaluate the checkpoints asked for, one report each, and draw curves over them."""
    source = Path(args.workdir or args.checkpoint)
    out = Path(args.out) if args.out else workdir_of(source) / "evaluation"
    history, predictor = {}, None
    for step in steps_of(source, args):
        try:
            opened = load_run(
                source,
                None if source.name.isdigit() else step,
                weights=args.weights,
                changes=args.set,
            )
        except (ValueError, OSError):
            if source.name.isdigit() or step in checkpoint_steps(source):
                raise
            print(f"step {step}: left out, training has deleted this checkpoint")
            continue
        if predictor is not None:  # compiled once for all checkpoints
            opened = dataclasses.replace(opened, predict_step=predictor.predict_step)
        predictor = opened
        history[step] = evaluate_step(predictor, args, out / str(step))
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
    return read_workdir(source).train.num_steps


def evaluate_step(predictor: Predictor, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Evaluate one checkpoint, write its predictions and its report, and return the report's summary."""
    config, metadata, settings = predictor.config, predictor.metadata, predictor.settings
    step, findings = metadata["step"], Findings()
    images = config.data.images(split_to_test(predictor, args))
    check_classes(images, predictor.class_names)
    print(f"step {step}: {len(images)} images of {images.name}, {settings.num_views} views each")
    corloc_split = args.corloc_split or settings.corloc_split
    if corloc_split == "none" or not config.data.has_boxes:
        corloc_split = None
    if "maps" in predictor.method.outputs:
        evaluate_maps(findings, predictor, images, corloc_split, args, folder)
    else:
        refuse_options_of_maps(config.method.name, args)
        evaluate_boxes(findings, predictor, images, corloc_split, args, folder)
    findings.note(compilation_note(predictor, corloc_split))
    test = dataclasses.asdict(settings)
    facts = {
        "set": images.name,
        "corloc_split": corloc_split,
        "step": step,
        "weights": args.weights or predictor.method.result,
        **({"boxes": metadata["boxes"]} if "boxes" in metadata else {}),
        **without(config.to_dict(), "eval"),
        "test": without(test, "maps"),
        "changes": list(args.set),
    }
    if "maps" in predictor.method.outputs:
        facts["maps"] = test["maps"]
    return findings.write(
        folder, f"{config.method.name}, step {step}, {images.name}", images, facts
    )


def without(values: dict, key: str) -> dict:
    """Return a dict without one of its keys."""
    return {name: value for name, value in values.items() if name != key}


def evaluate_boxes(
    findings: Findings,
    predictor: Predictor,
    images: ImageSet,
    corloc_split: str | None,
    args: argparse.Namespace,
    folder: Path,
) -> None:
    """Evaluate a method that predicts boxes, or an image classifier."""
    proposals, settings = read_proposals(predictor.config), predictor.settings
    has_boxes = "boxes" in predictor.method.outputs
    started = time.perf_counter()
    results = predictor.detect(images, proposals, "map", bar)
    findings.scalars["seconds_per_image"] = (time.perf_counter() - started) / max(len(images), 1)
    if has_boxes:  # before anything is measured: what follows may fail
        boxes.write_detections(folder, images, results.detections, voc_server=args.voc_server)
    findings.note_input(images, results.counts, results.predicted)
    if results.image_scores is not None:
        scores, labels = results.image_scores[results.predicted], images.labels[results.predicted]
        if (labels >= 0).any():
            findings.parts["classification"] = classification_ap(
                scores, labels, ap_mode=settings.ap
            )
    if not has_boxes:
        return
    boxes.measure_detections(
        findings,
        settings,
        images,
        results.detections,
        known_objects(predictor.config.data, images, split_to_test(predictor, args)),
        pictures=boxes.Pictures(folder, args.pictures),
        coco=args.coco,
    )
    if corloc_split is not None:
        boxes.measure_corloc(findings, predictor, corloc_split, proposals)


def evaluate_maps(
    findings: Findings,
    predictor: Predictor,
    images: ImageSet,
    corloc_split: str | None,
    args: argparse.Namespace,
    folder: Path,
) -> None:
    """Evaluate a method that localises without proposals."""
    reader = predictor.config.data
    split = maps.MapSplit.read(reader, split_to_test(predictor, args))
    # what may be wrong with other files is found before the long part
    places = locations(predictor.config)
    moved = [change for change in args.set if change.partition("=")[0] in places]
    others = [maps.open_other(run, images, moved) for run in args.together_with]
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
            pictures=boxes.Pictures(folder, args.pictures),
            coco=args.coco,
        )
    if single_label:
        measure_ilsvrc(findings, located, split, blacklist)
    train_split = None if corloc_split is None else maps.MapSplit.read(reader, corloc_split)
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
    for name in args.of_maps:
        raise ConfigError(f"--{name} is for methods with maps, such as spn; this is {method!r}")


def split_to_test(predictor: Predictor, args: argparse.Namespace) -> str:
    """Return the split to measure mAP on."""
    return args.split or predictor.config.data.test_split
