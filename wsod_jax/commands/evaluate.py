"""Measure a trained detector, or a file of detections: mAP, CorLoc, pointing accuracy and more.

    wsod-jax evaluate --workdir runs/oim_ir                 # its newest checkpoint
    wsod-jax evaluate --workdir runs/oim_ir --all_steps     # every checkpoint, with curves
    wsod-jax evaluate --workdir runs/oim_ir --watch         # each new one as training writes it
    wsod-jax evaluate --workdir runs/oim_ir/checkpoints/90000
    wsod-jax evaluate --config oim_ir_vgg16_voc07 --predictions results.json   # runs no model
    wsod-jax evaluate --config oim_ir_vgg16_voc07 --pseudo boxes.json   # on the training split
    wsod-jax evaluate --workdir runs/oim_ir --masks ellipse             # masks made of boxes, as a baseline
    wsod-jax evaluate --workdir runs/spn --compare --energy_of voc07.npz     # SPN and its baselines
    wsod-jax evaluate --workdir runs/spn_560 runs/spn_224 runs/spn_112   # their boxes joined

Output goes to <workdir>/evaluation/<step>/ (--out replaces <workdir>/evaluation), for a file of results to --out or
<file>_scored/ next to it:

  report.md, report.json, figures
  predictions.json              boxes, and masks as RLE where the method predicts them or --masks makes them, in
                                COCO's results format
  predictions.index.json        the image and the class that each number in predictions.json stands for
  points.csv                    methods with maps: the point of each class
  detections.coco.json          with --coco_set: the detections as a COCO data set
  voc_server/                   with --voc_server
  history.json, curves.png      of several checkpoints, next to their folders

These files hold the predictions on the test split; further passes, such as corloc, appear in the report only. A file
of results is not written again, and a classifier has no boxes to write. On a split without boxes, such as VOC 2012
test, predictions are written but not measured. After Ctrl-C the same command continues with the unfinished images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from wsod_jax.commands.command_line import (
    add_set_argument,
    add_weights_arguments,
    make_parser,
    run_command,
)

MAP_OPTIONS = ("compare", "energy_of", "blacklist")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        run,
        parse_arguments(arguments),
        interrupted="interrupted; finished images are kept, the same command goes on with the others",
    )


def run(options: argparse.Namespace) -> None:
    """Evaluate as the arguments say."""
    from wsod_jax.commands import measuring  # brings JAX, which --help does without

    from_file = options.predictions or options.pseudo
    measuring.rescore(options) if from_file else measuring.evaluate_run(options)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for; exit with status 2 if options do not go together."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--workdir",
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help="folder of a training run or of one checkpoint; methods with maps take further runs, such as those of "
        "other image sizes, whose boxes join those of the first",
    )
    source.add_argument(
        "--config",
        metavar="CONFIG[:VARIANT]",
        help="with --predictions or --pseudo: whose data and settings",
    )
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--all_steps", action="store_true", help="every checkpoint of the workdir")
    steps.add_argument(
        "--watch", action="store_true", help="wait for new checkpoints until training ends"
    )
    add_weights_arguments(parser)
    add("--split", help="measure mAP on this split (default: config.data.test_split)")
    add(
        "--passes",
        nargs="*",
        metavar="NAME",
        help="further passes of eval.passes, such as corloc (default: all; no name for none)",
    )
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument(
        "--predictions",
        help="score this COCO results file or data set of boxes or masks, of any program; no model is needed",
    )
    scored.add_argument(
        "--pseudo",
        help="the same as pseudo boxes: precision, recall, best overlap and size by class",
    )
    add("--coco", action="store_true", help="also COCO's AP and AR of boxes, and of masks")
    add("--coco_set", action="store_true", help="also the detections as a COCO data set")
    add("--voc_server", action="store_true", help="also the files the VOC server takes")
    add(
        "--masks",
        metavar="box|ellipse|FILE",
        help="measure masks made of the boxes, in place of predicted ones: the whole box, the largest ellipse in it, "
        "or the mask of the proposal of FILE, such as voc07.masks.npz, whose box has the highest IoU with it",
    )
    add("--out", help="folder of the report (default: <workdir>/evaluation)")
    add(
        "--compare",
        action="store_true",
        help="methods with maps: also other proposal maps of the same weights (uniform is CAM), and the points of "
        "image centers and of gradients",
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
        "--blacklist",
        type=Path,
        metavar="FILE",
        help="single-label methods with maps: images that do not count, as in ILSVRC",
    )
    add("--figures", type=int, default=12, help="images to draw (default 12)")
    add_set_argument(
        parser,
        "change a test setting, e.g. --set nms_thr=0.4, or where the data lie now, "
        "e.g. --set data.root=/data/VOCdevkit --set proposals.path=/data/voc07.npz (repeatable)",
    )
    args = parser.parse_args(arguments)
    args.workdir, args.joined = next(iter(args.workdir), None), [Path(p) for p in args.workdir[1:]]
    args.of_maps = [f"--{name}" for name in MAP_OPTIONS if getattr(args, name)]
    args.of_maps += ["a second run in --workdir"] * bool(args.joined)
    from_file = args.predictions or args.pseudo
    if args.config and not from_file:
        parser.error("--config goes with --predictions; a model needs --workdir")
    ignored = ("all_steps", "watch", "weights", "passes", *MAP_OPTIONS)
    if from_file and (args.joined or any(getattr(args, name) for name in ignored)):
        parser.error(
            f"--predictions and --pseudo score one file: no --{', --'.join(ignored)}, and one --workdir"
        )
    if args.pseudo and args.masks:
        parser.error("--masks makes masks to measure; --pseudo measures boxes alone")
    return args
