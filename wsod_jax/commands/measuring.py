"""What `evaluate` does: checkpoints evaluated, or a file of results scored again, a report each."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax import build
from wsod_jax.analysis.baselines import comparison, file_energies
from wsod_jax.analysis.figures import draw_outcome
from wsod_jax.commands.command_line import load_config
from wsod_jax.config.overrides import locations
from wsod_jax.config.run_config import RunConfig
from wsod_jax.data.records import ImageSet
from wsod_jax.data.training_labels import check_single_label
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evaluation.formats import (
    write_coco_set,
    write_points,
    write_results,
    write_voc_server,
)
from wsod_jax.evaluation.metrics.ilsvrc import read_blacklist
from wsod_jax.evaluation.report import Report, write_report
from wsod_jax.evaluation.results_reading import read_results
from wsod_jax.files import atomic_write
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.evaluator_choice import check_passes, outputs_with, reads_of
from wsod_jax.runs.mask_baselines import MaskBaseline, masks_notes
from wsod_jax.runs.predictor import Predictor, bar, check_classes, load_run
from wsod_jax.runs.scoring import (
    PassOutcome,
    distinct,
    evaluate_pass,
    score_file,
)
from wsod_jax.runs.training_data import read_proposals
from wsod_jax.train.checkpoint import checkpoint_steps
from wsod_jax.viz import plot_training, save_image

# -- a file of results


def rescore(args: argparse.Namespace) -> None:
    """Score a results file; only the configuration and the data are read."""
    config = build.change(stored_config(args), args.set)
    path = Path(args.predictions or args.pseudo)
    split = args.split or (config.data.train_split if args.pseudo else config.data.test_split)
    data = AnnotatedImages.read(config.data, split, frozenset({"masks"}))
    extra = ("pseudo",) if args.pseudo else ("coco", "coco_masks") * args.coco
    masks = MaskBaseline.open(args.masks) if args.masks else None
    results = read_results(path, data.images)
    outcome = score_file(results, data, config.eval, extra, bool(args.pseudo), masks)
    folder = Path(args.out) if args.out else path.parent / f"{path.stem}_scored"
    write_files(outcome, folder, args, source=str(path))
    facts = {
        "set": data.images.name,
        **without(config.to_dict(), "eval"),
        "test": {name: getattr(config.eval, name) for name in ("ap", "iou_thrs")},
        "predictions": str(path),
        **({"masks": masks.description} if masks else {}),
    }
    replaced = "of the file" if any(result.masks is not None for result in results) else None
    report = Report(
        f"{path.name}, {data.images.name}",
        data.images.class_names,
        facts,
        [*outcome.evaluations.values()],
        left_out=outcome.left_out,
        notes=[*masks_notes(masks, replaced), *outcome.notes],
    )
    finish(report, folder, draw_outcome(outcome, folder, args.figures))


def stored_config(args: argparse.Namespace) -> RunConfig:
    """Return the configuration: of a Python file, or as a run has stored it."""
    if args.config:
        return build.read_config(load_config(args.config))
    return read_workdir(Path(args.workdir))


def read_workdir(source: Path) -> RunConfig:
    """Return the configuration that a run has stored in its workdir."""
    path = workdir_of(source) / "config.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the workdir of a run, or --config")
    return build.read_config(json.loads(path.read_text(encoding="utf-8")))


# -- checkpoints


def evaluate_run(args: argparse.Namespace) -> None:
    """Evaluate the checkpoints asked for, one report each, and draw curves over them."""
    source = Path(args.workdir)
    out = Path(args.out) if args.out else workdir_of(source) / "evaluation"
    history, predictor = {}, None
    for step in steps_of(source, args):
        try:
            opened = load_run(
                source,
                None if is_checkpoint(source) else step,
                weights=args.weights,
                changes=args.set,
            )
        except (ValueError, OSError):
            if is_checkpoint(source) or step in checkpoint_steps(source):
                raise
            print(f"step {step}: left out, training has deleted this checkpoint")
            continue
        if predictor is not None:  # compiled once for all checkpoints
            steps = dict(predict_step=predictor.predict_step, mask_step=predictor.mask_step)
            opened = dataclasses.replace(opened, **steps)
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
    with atomic_write(out / "history.json") as file:
        file.write(json.dumps(history, indent=1) + "\n")
    path = save_image(out / "curves.png", plot_training({name: series}))
    print(f"curves over {len(history)} checkpoints: {path}")


def is_checkpoint(source: Path) -> bool:
    """Return whether a folder is that of one checkpoint, not of a run."""
    return source.name.isdigit() and not (source / "checkpoints").is_dir()


def workdir_of(source: Path) -> Path:
    """Return the workdir of a run, of its folder of checkpoints, or of one checkpoint."""
    if is_checkpoint(source):
        return source.parent.parent
    return source.parent if source.name == "checkpoints" else source


def steps_of(source: Path, args: argparse.Namespace) -> Iterator[int]:
    """Yield the steps to evaluate; with --watch, as they appear, until the run's last one.

    Training deletes old checkpoints meanwhile, so they are listed again before each.
    """
    if is_checkpoint(source):
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
                f"no checkpoints in {source}; train with wsod-jax train --workdir {source}"
            )
        if not args.watch or (seen and max(seen) >= last_step(source)):
            return
        time.sleep(10)


def last_step(source: Path) -> int:
    """Return the step at which the run will end."""
    return read_workdir(source).train.num_steps


def evaluate_step(predictor: Predictor, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Evaluate one checkpoint, write its results and its report, and return the report's summary."""
    config, metadata = predictor.config, predictor.metadata
    refuse_files_of_boxes(predictor, args)
    reader, proposals = config.data, read_proposals(config)
    split = args.split or predictor.settings.split or reader.test_split
    names = [*predictor.settings.passes] if args.passes is None else args.passes
    masks = MaskBaseline.open(args.masks) if args.masks else None
    check_passes(predictor, names, masks)
    outputs = outputs_with(predictor.method.outputs, masks)
    data = AnnotatedImages.read(reader, split, outputs)
    check_classes(data.images, predictor.class_names)
    others, blacklist, energies = options_of_maps(predictor, data, args)
    passes = predictor.settings.passes
    detectors = [one.with_settings(passes=passes) for one in (predictor, *others)]
    further = {name: [one.of_pass(name) for one in detectors] for name in names}
    print(
        f"step {metadata['step']}: {len(data.images)} images of {data.images.name}, "
        f"{predictor.settings.num_views} views each"
    )
    extra = ("coco", "coco_masks") * args.coco
    test = evaluate_pass(
        "test",
        [predictor, *others],
        data,
        proposals,
        folder,
        extra=extra,
        blacklist=blacklist,
        progress=bar,
        masks=masks,
    )
    write_files(test, folder, args, source=f"{config.method.name}, step {metadata['step']}")
    outcomes = [test]
    for name, detectors in further.items():
        settings = detectors[0].settings
        reads = reads_of(settings, outputs)
        images = AnnotatedImages.read(reader, settings.split or split, reads)
        found = evaluate_pass(name, detectors, images, proposals, folder, progress=bar, masks=masks)
        outcomes.append(found)
    predicts_masks = "masks" in predictor.method.outputs
    tables = []
    if args.compare or energies:
        tables = compare(predictor, others, outcomes, energies, folder, args)
    report = Report(
        f"{config.method.name}, step {metadata['step']}, {data.images.name}",
        data.images.class_names,
        facts(predictor, data.images, args) | ({"masks": masks.description} if masks else {}),
        distinct(outcomes),
        numbers={"seconds_per_image": test.seconds_per_image},
        left_out=[text for outcome in outcomes for text in outcome.left_out],
        notes=masks_notes(masks, "that the method predicts" if predicts_masks else None)
        + [note for outcome in outcomes for note in outcome.notes]
        + [compilation_note(predictor, outcomes)],
        tables=tables,
    )
    finish(report, folder, draw_outcome(test, folder, args.figures))
    for outcome in outcomes:
        outcome.discard()
    return known(report.summary)


def refuse_files_of_boxes(predictor: Predictor, args: argparse.Namespace) -> None:
    """Raise `ConfigError` for files of boxes where the method predicts none."""
    outputs = predictor.method.outputs
    for name in ("coco_set", "voc_server"):
        if getattr(args, name) and not outputs & {"boxes", "maps"}:
            raise ConfigError(
                f"--{name} writes boxes, but {predictor.config.method.name!r} predicts "
                f"{', '.join(sorted(outputs))}; leave it out"
            )


def options_of_maps(
    predictor: Predictor, data: AnnotatedImages, args: argparse.Namespace
) -> tuple[list[Predictor], Sequence[int], dict[str, np.ndarray]]:
    """Return further detectors, the blacklist, and energies of files of proposals.

    Files are checked here, before the long computation.

    Raises:
      ConfigError: for options that the method would ignore.
    """
    method, name = predictor.method, predictor.config.method.name
    if "maps" not in method.outputs:
        for option in args.of_maps:
            raise ConfigError(f"{option} is for methods with maps, such as spn; this is {name!r}")
        return [], (), {}
    places = locations(predictor.config)
    moved = [change for change in args.set if change.partition("=")[0] in places]
    others = [open_other(run, data.images, moved) for run in args.joined]
    energies = {}
    if data.has_boxes:
        energies = {path.name: file_energies(path, data) for path in args.energy_of}
    if method.single_label and data.has_boxes:
        check_single_label(data.images)
    elif args.blacklist:
        raise ConfigError(
            "--blacklist is for runs that learn one class per image, with annotated test images"
        )
    blacklist = read_blacklist(args.blacklist, data.images.image_ids) if args.blacklist else ()
    return others, blacklist, energies


def open_other(run: Path, images: ImageSet, changes: Sequence[str]) -> Predictor:
    """Return the detector of another run, whose boxes are to join those of the one evaluated.

    Raises:
      ConfigError: its method makes no maps.
      DataError: it was trained for other classes.
    """
    other = load_run(run, changes=changes)
    if "maps" not in other.method.outputs:
        raise ConfigError(
            f"--workdir {run}: boxes of several runs are joined for methods with maps, such as spn; this is "
            f"{other.config.method.name!r}"
        )
    check_classes(images, other.class_names)
    return other


def compare(
    predictor: Predictor,
    others: Sequence[Predictor],
    outcomes: Sequence[PassOutcome],
    energies: Mapping[str, np.ndarray],
    folder: Path,
    args: argparse.Namespace,
) -> list[Any]:
    """Return the table of the detector and its baselines; none for a split without boxes."""
    if not outcomes[0].data.has_boxes:
        outcomes[0].notes.append(
            "nothing is compared with baselines: there are no boxes to measure them by"
        )
        return []
    training = next((o.data for o in outcomes[1:] if o.name == "corloc"), None)
    measured = {k: v for outcome in outcomes for k, v in outcome.summary.items()}
    return [
        comparison(
            (predictor, *others),
            (outcomes[0].data, training),
            measured,
            folder,
            maps=args.compare,
            proposal_energies=energies,
        )
    ]


def write_files(
    outcome: PassOutcome, folder: Path, args: argparse.Namespace, *, source: str
) -> None:
    """Write what was predicted."""
    images, results = outcome.data.images, outcome.results
    if outcome.outputs & {"boxes", "maps"} and not (args.predictions or args.pseudo):
        print(f"predictions: {write_results(folder / 'predictions.json', results, images)}")
    if "maps" in outcome.outputs:
        print(f"points: {write_points(folder / 'points.csv', results, images)}")
    if args.voc_server:
        path = write_voc_server(folder / "voc_server", results, images)
        print(f"files for the VOC server: {path}")
    if args.coco_set:
        path = write_coco_set(folder / "detections.coco.json", results, images, source=source)
        print(f"COCO data set of the detections: {path}")


def finish(report: Report, folder: Path, figures: Sequence[Any]) -> None:
    """Write the report, and print its summary and where it lies."""
    path = write_report(folder, report, figures)
    for text in (*report.left_out, *report.content()["notes"]):
        print(text)
    print("  ".join(f"{name} {value:.4g}" for name, value in known(report.summary).items()))
    print(f"report: {path}")


def known(summary: Mapping[str, float]) -> dict[str, float]:
    """Return the finite numbers of a summary."""
    return {name: float(value) for name, value in summary.items() if np.isfinite(value)}


def facts(predictor: Predictor, images: ImageSet, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings on which the numbers depend."""
    config, metadata = predictor.config, predictor.metadata
    test = config.to_dict()["eval"]
    return {
        "set": images.name,
        "step": metadata["step"],
        "weights": args.weights or predictor.method.result,
        **({"boxes": metadata["boxes"]} if "boxes" in metadata else {}),
        **without(config.to_dict(), "eval"),
        "test": test if "maps" in predictor.method.outputs else without(test, "maps"),
        "changes": list(args.set),
    }


def without(values: dict, key: str) -> dict:
    """Return a dict without one of its keys."""
    return {name: value for name, value in values.items() if name != key}


def compilation_note(predictor: Predictor, outcomes: Sequence[PassOutcome]) -> str:
    """Return a note on the number of compilations of the predict step, and its bound."""
    outputs = predictor.method.outputs
    programs = {
        (shape, want)
        for outcome in outcomes
        for shape in outcome.settings.canvases.shapes()
        for want in outcome.settings.wants(outputs if outcome.want is None else outcome.want)
    }
    return (
        f"compilations of the predict step: {predictor.num_compilations()}, at most {len(programs)} "
        "(one per canvas, orientation and set of outputs)"
    )
