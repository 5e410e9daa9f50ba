"""Measure a trained detector: average precision on the test split, CorLoc on the training split.

    python scripts/evaluate.py --workdir runs/oim_ir                 # its newest checkpoint
    python scripts/evaluate.py --workdir runs/oim_ir --all_steps     # every checkpoint, with curves
    python scripts/evaluate.py --workdir runs/oim_ir --watch         # each new one as training writes it
    python scripts/evaluate.py --checkpoint runs/oim_ir/checkpoints/90000
    python scripts/evaluate.py --config configs/oim_ir_vgg16_voc07.py --predictions results.json   # runs no model

Writes predictions.json, then report.md, report.json and pictures into <workdir>/evaluation/<step>/; for a file
of predictions, into --out or <file>_scored/ beside it. A split without boxes, such as VOC 2012 test, is predicted
and not measured; --voc_server writes what its server takes.
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
from tqdm import tqdm

from wsod_jax import build
from wsod_jax.data.proposals import ProposalSet
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.evals.classification import classification_ap
from wsod_jax.evals.coco import coco_box_ap
from wsod_jax.evals.localization import box_quality
from wsod_jax.evals.pictures import picture_detections
from wsod_jax.evals.predictions import read_predictions, write_predictions, write_voc_server
from wsod_jax.evals.report import Picture, write_report
from wsod_jax.evals.selection import Results
from wsod_jax.evals.tables import DetectionTable
from wsod_jax.experiment import (
    Predictor,
    change_config,
    check_classes,
    open_checkpoint,
    score_detections,
    truth_table,
)
from wsod_jax.train.checkpoint import checkpoint_steps
from wsod_jax.viz import plot_training, save_image

# A config may import its base, configs.*
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


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
    if args.predictions and (args.all_steps or args.watch or args.ema):
        parser.error("--predictions scores one file: no --all_steps, --watch or --ema")
    return args


@dataclasses.dataclass
class Findings:
    """What a report holds beside its settings: metrics, numbers, pictures, sentences."""

    parts: dict = dataclasses.field(default_factory=dict)
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Print a sentence, and keep it for the report."""
        print(sentence)
        self.notes.append(sentence)


# -- a file of predictions


def rescore(args: argparse.Namespace) -> None:
    """Score a predictions file; only the configuration and the data are read."""
    config, path, findings = stored_config(args), Path(args.predictions), Findings()
    config = change_config(config, args.set)
    settings = build.eval_settings(config)
    images = build.images(config, test_split(config, args))
    detections = read_predictions(path, image_ids=images.image_ids, class_names=images.class_names)
    folder = Path(args.out) if args.out else path.parent / f"{path.stem}_scored"
    measure_detections(findings, config, settings, images, detections, args, folder)
    if args.voc_server:
        write_server_files(folder, images, detections)
    used = ("ap", "iou_thrs")  # the others were settled when the file was made
    facts = {
        "set": images.name,
        **build.settings_used(config),
        "test": {name: getattr(settings, name) for name in used},
        "predictions": str(path),
    }
    finish(folder, f"{path.name}, {images.name}", images, facts, findings)


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
    images = build.images(config, test_split(config, args))
    check_classes(images, predictor.class_names)
    print(f"step {step}: {len(images)} images of {images.name}, {settings.num_views} views each")
    proposals = build.proposals(config)
    started = time.perf_counter()
    results = predictor.detect(images, proposals, "map", bar)
    findings.scalars["seconds_per_image"] = (time.perf_counter() - started) / max(len(images), 1)
    if (
        proposals is not None
    ):  # before anything is measured: what follows may fail, and this took long
        path = write_predictions(
            folder / "predictions.json",
            results.detections,
            image_ids=images.image_ids,
            class_names=images.class_names,
        )
        print(f"predictions: {path}")
        if args.voc_server:
            write_server_files(folder, images, results.detections)
    note_input(findings, images, results)
    if results.image_scores is not None:
        scores, labels = results.image_scores[results.predicted], images.labels[results.predicted]
        if (labels >= 0).any():
            findings.parts["classification"] = classification_ap(
                scores, labels, ap_mode=settings.ap
            )
    split = corloc_split(args, settings) if build.has_boxes(config) else None
    if proposals is not None:
        measure_detections(findings, config, settings, images, results.detections, args, folder)
        if split is not None:
            measure_corloc(findings, predictor, config, split, proposals)
    findings.note(compilation_note(predictor, split))
    facts = {
        "set": images.name,
        "corloc_split": split,
        "step": step,
        "weights": "ema" if args.ema else "params",
        "seed": metadata["seed"],
        **build.settings_used(config),
        "test": dataclasses.asdict(settings),
    }
    title = f"{metadata['method']}, step {step}, {images.name}"
    return finish(folder, title, images, facts, findings)


# -- what both measure and write


def test_split(config: ConfigDict, args: argparse.Namespace) -> str:
    """Return the split to measure mAP on."""
    return args.split or config.data.test_split


def annotated(config: ConfigDict, images: ImageSet) -> bool:
    """Return whether every image of a set has its boxes, so that detections can be measured."""
    return build.has_boxes(config) and not images.counts.get("no_annotation")


def measure_detections(
    findings: Findings,
    config: ConfigDict,
    settings: build.EvalSettings,
    images: ImageSet,
    detections: DetectionTable,
    args: argparse.Namespace,
    folder: Path,
) -> None:
    """Add average precision to the findings, or a note that there is no ground truth; and pictures."""
    truth = metrics = None
    if annotated(config, images):
        truth = truth_table(images, build.ground_truth(config, test_split(config, args)))
        metrics = score_detections(detections, truth, settings)
        findings.parts["detection"] = metrics
        if args.coco:
            summary = coco_box_ap(detections, truth).summary
            findings.scalars |= {f"COCO {name}": value for name, value in summary.items()}
    else:
        findings.note(f"{images.name} has no boxes to compare with: average precision not measured")
    findings.pictures += picture_detections(
        folder,
        [record.load for record in images.records[: args.pictures]],
        detections,
        truth,
        metrics,
        image_ids=images.image_ids[: args.pictures],
        class_names=images.class_names,
    )
    if args.pictures:
        print(f"pictures: {folder / 'detections.png'}")


def write_server_files(folder: Path, images: ImageSet, detections: DetectionTable) -> None:
    """Write the files of the VOC server."""
    path = write_voc_server(
        folder / "voc_server",
        detections,
        image_ids=images.image_ids,
        class_names=images.class_names,
    )
    print(f"files for the VOC server: {path}")


def finish(
    folder: Path, title: str, images: ImageSet, facts: dict, findings: Findings
) -> dict[str, float]:
    """Write the report, print its summary and return it."""
    report = write_report(
        folder,
        title=title,
        class_names=images.class_names,
        settings=facts,
        scalars=findings.scalars,
        pictures=findings.pictures,
        notes=findings.notes,
        **findings.parts,
    )
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    summary = {name: value for name, value in content["summary"].items() if value is not None}
    print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))
    print(f"report: {report}")
    return summary


def corloc_split(args: argparse.Namespace, settings: build.EvalSettings) -> str | None:
    """Return the split to measure CorLoc on, `None` for none."""
    split = args.corloc_split or settings.corloc_split
    return None if split == "none" else split


def measure_corloc(
    findings: Findings, predictor: Predictor, config: ConfigDict, split: str, proposals: ProposalSet
) -> None:
    """Add the quality of the top boxes of every image's own classes to the findings."""
    images = build.images(config, split)
    if not annotated(config, images):
        findings.note(f"{images.name} has no boxes to compare with: CorLoc not measured")
        return
    results = predictor.detect(images, proposals, "corloc", bar)
    note_input(findings, images, results)
    truth = truth_table(images, build.ground_truth(config, split))
    findings.parts["corloc"] = predictor.localise(results, truth)
    quality = box_quality(top_boxes(results, images), truth)
    findings.scalars["top box size ratio"] = quality.size_ratio


def note_input(findings: Findings, images: ImageSet, results: Results) -> None:
    """Note what the input met in a set: images left out, shrunk or unreadable, proposals merged or dropped."""
    met = {**images.counts, **results.counts}
    met = ", ".join(f"{name} {count}" for name, count in met.items() if count)
    findings.note(f"input of {images.name}, each image counted once per view: {met}")
    missing = np.flatnonzero(~results.predicted)
    if len(missing):
        names = ", ".join(images.image_ids[index] for index in missing[:5])
        findings.note(
            f"{len(missing)} of {len(images)} images of {images.name} could not be read ({names}"
            f"{' ...' if len(missing) > 5 else ''}): their objects count as missed, and image mAP leaves them out"
        )


def top_boxes(results: Results, images: ImageSet) -> DetectionTable:
    """Return the best box of every class that an image is labelled with."""
    rows, classes = np.nonzero((images.labels == 1) & results.top_valid)
    return DetectionTable(
        rows,
        classes,
        results.top_scores[rows, classes],
        results.top_boxes[rows, classes],
        len(images),
        len(images.class_names),
    )


def compilation_note(predictor: Predictor, split: str | None) -> str:
    """Say how often the predict step was compiled, and how often it may be."""
    settings = predictor.settings
    shapes = set(settings.canvases("map").shapes())
    if split is not None:
        shapes |= set(settings.canvases("corloc").shapes())
    return (
        f"compilations of the predict step: {predictor.num_compilations()}, at most {len(shapes)} "
        "(one per canvas and orientation)"
    )


def bar(batches):
    """Show progress over batches on a terminal."""
    return tqdm(batches, total=len(batches), unit="batch", disable=None)


if __name__ == "__main__":
    main()
