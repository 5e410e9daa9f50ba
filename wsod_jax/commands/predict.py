"""Detect objects in images with a trained detector.

    wsod-jax predict --workdir runs/oim_ir --images my_images --out found
    wsod-jax predict --workdir runs/oim_ir/checkpoints/90000 --images a.jpg b.jpg --out found
    wsod-jax predict --workdir runs/oim_ir --images my_images --out found --set "scales=(480,688)"

No labels and no boxes are needed. The proposals that the detector chooses among are computed here, as those it was
trained with were, and kept in the output folder; --proposals takes a file of wsod-jax make_proposals instead.

Written into --out: predictions.json (all boxes, and masks where the method predicts them, in COCO's results format)
with predictions.index.json (which numbers mean which image and class), detections.coco.json (the same as a COCO data
set), image_scores.csv (a score per image and class), figures/ (each image with its best boxes) and sheet.jpg (all
of them at a glance). Methods without proposals, such as SPN, also write points.csv, and draw the proposal map and the
activations to classes; an image in which no class is predicted has no boxes, and shows the best class's activation.
WS-JDS also writes label_maps/ (PNG, a pixel is 0 for background, else the class's number in predictions.index.json)
and guidance/ (localization map, seeds and segmentation of the three most confident classes of the first images; with
--cam, the activations of another run too). A classifier writes image_scores.csv alone. Images that cannot be read are
named and left out.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        run,
        parse_arguments(arguments),
        interrupted="interrupted; what was found so far is kept, run again to go on",
    )


def run(options: argparse.Namespace) -> None:
    """Predict as the arguments say."""
    from wsod_jax.commands import predicting  # brings JAX, which --help does without

    predicting.predict(options)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--workdir",
        required=True,
        help="folder of a training run (its newest checkpoint), or of one checkpoint",
    )
    parser.add_argument(
        "--images", nargs="+", type=Path, required=True, help="image files, or folders of them"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--proposals", type=Path, help="an .npz file of proposals (default: computed)"
    )
    parser.add_argument(
        "--score_thr",
        type=float,
        help="draw boxes with at least this score (default: half of the image's best); "
        "predictions.json holds all of them anyway",
    )
    parser.add_argument(
        "--max_boxes", type=int, help="highest number of boxes drawn in an image (20)"
    )
    parser.add_argument(
        "--max_figures", type=int, default=200, help="highest number of images drawn (200)"
    )
    parser.add_argument(
        "--max_guidance", type=int, default=20, help="highest number of images in guidance/ (20)"
    )
    parser.add_argument(
        "--cam",
        type=Path,
        help="a run of CAM or SPN, whose activations are drawn next to WS-JDS's maps",
    )
    add_weights_arguments(parser)
    add_set_argument(
        parser,
        'change a test setting, e.g. --set nms_thr=0.4 or --set "scales=(480,)" (repeatable)',
    )
    return parser.parse_args(arguments)
