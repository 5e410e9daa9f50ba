"""Make proposals, the candidate boxes that a weakly supervised detector chooses among.

Selective search on a data set in VOC or COCO layout, on several processes:

  wsod-jax make_proposals --data VOCdevkit/VOC2007 --split trainval test --out voc07_fast.npz --workers 8

on a plain folder of images:

  wsod-jax make_proposals --data my_images --out my_images.npz

An interrupted run goes on where it stopped when started again. Images that cannot be read are named and left out.

Proposals that others have published (Selective Search or MCG .mat, Detectron-style .pkl) are converted instead; of
MCG's superpixels, and of a JSON list of run-length encodings such as SAM's, masks are written too, to voc07.masks.npz:

  wsod-jax make_proposals --data VOCdevkit/VOC2007 --split trainval --import ss_voc07.mat --out voc07.npz
  wsod-jax make_proposals --data VOCdevkit/VOC2007 --split trainval --import MCG-main --out voc07.npz

A trained soft proposal network makes proposals without segmentation: the receptive fields where its proposal map is
highest, each in several sizes:

  wsod-jax make_proposals --data VOCdevkit/VOC2007 --split trainval test --workdir runs/spn --out spn.npz

With --report, the share of annotated objects that the proposals cover is printed, where the data has boxes;
--compare_with names other files of proposals to compare with.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from wsod_jax.commands.command_line import make_parser, run_command
from wsod_jax.convert.proposal_import import import_proposals
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.proposals.selective_search import SearchOptions, run_selective_search
from wsod_jax.data.readers.coco import Coco
from wsod_jax.data.readers.folder import list_images
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import ConfigError, DataError

LINE_SECONDS = 10  # between progress lines where the output is not a terminal


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for; exit with status 2 if options do not go together."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a folder in VOC or COCO layout, or a folder of images",
    )
    parser.add_argument(
        "--split",
        nargs="+",
        help='of a data set: names of its splits, like "trainval test"; images in several count once',
    )
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    search = parser.add_argument_group("selective search")
    search.add_argument(
        "--method",
        choices=("fast", "quality"),
        default="fast",
        help="quality finds several times as many boxes and takes several times as long (fast)",
    )
    search.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (one per CPU core)"
    )
    search.add_argument(
        "--min_side",
        type=float,
        default=SearchOptions.min_side,
        help="drop boxes with a side shorter than this many pixels (8; published VOC files used 20)",
    )
    search.add_argument(
        "--max_side",
        type=int,
        default=SearchOptions.max_side,
        help="search images shrunk to this longer side, 0 never shrinks (500)",
    )
    fields = parser.add_argument_group("receptive fields of a run's proposal maps")
    fields.add_argument(
        "--workdir", type=Path, metavar="RUN", help="folder of a training run, or of a checkpoint"
    )
    fields.add_argument("--step", type=int, help="which checkpoint (the newest)")
    fields.add_argument(
        "--num",
        type=int,
        help="the most boxes per image (100; with --import all), the best-scored",
    )
    fields.add_argument(
        "--sizes",
        type=float,
        nargs="+",
        help="sides of a cell's boxes, as factors of its receptive field's side (0.25 0.5 1)",
    )
    fields.add_argument(
        "--aspects", type=float, nargs="+", help="width / height of a cell's boxes (1)"
    )
    fields.add_argument(
        "--nms_thr",
        type=float,
        help="leave out boxes with IoU > this to one of a better cell; 1 keeps all (0.7)",
    )
    fields.add_argument(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help='change a test setting of the run, e.g. --set "scales=(224,448)" (repeatable)',
    )
    parser.add_argument(
        "--import",
        dest="source",
        type=Path,
        metavar="FILE",
        help="convert this .mat, .pkl or .json, or folder of .mat files, instead of searching",
    )
    parser.add_argument(
        "--report", action="store_true", help="print the recall of annotated objects"
    )
    parser.add_argument(
        "--compare_with",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="with --report: also print the recall of these files of proposals, by number of boxes",
    )
    options = parser.parse_args(arguments)
    if options.workdir and options.source:
        parser.error("--workdir and --import make proposals in different ways; choose one")
    names = ("step", "num", "sizes", "aspects", "nms_thr", "set")
    given = [name for name in names if getattr(options, name) is not None]
    given = [name for name in given if not (name == "num" and options.source)]
    if given and not options.workdir:
        parser.error(f"--{given[0]} needs --workdir")
    if options.source and options.num is not None and options.num < 1:
        parser.error(f"--num must be 1 or more, found {options.num}")
    if options.compare_with and not options.report:
        parser.error("--compare_with needs --report")
    return options


def reader_of(folder: Path) -> tuple[Voc | Coco | None, list[str]]:
    """Return what reads a data set in VOC or COCO layout, `None` for a plain folder; and its splits."""
    if (folder / "ImageSets").is_dir():
        return Voc(root=folder), sorted(
            p.stem for p in (folder / "ImageSets" / "Main").glob("*.txt")
        )
    files = sorted(p.stem for p in (folder / "annotations").glob("instances_*.json"))
    return Coco(root=folder) if files else None, [name.removeprefix("instances_") for name in files]


def read_images(data: Path, splits: list[str] | None) -> ImageSet:
    """Return the images to work on, each once."""
    if not data.is_dir():
        raise DataError(
            f"--data {data}: no such folder; give one in VOC or COCO layout, or a folder of images."
        )
    reader, found = reader_of(data)
    if reader is None:
        if splits:
            raise DataError(
                f"--split needs VOC or COCO layout, but {data} has no folder ImageSets and no "
                "annotations/instances_*.json."
            )
        return list_images(data)
    if not splits:
        raise DataError(f"{data} is a data set: choose --split out of {', '.join(found[:20])}.")
    sets = [reader.images(split) for split in splits]
    records = {r.image_id: r for s in sets for r in s.records}
    missing = {image_id: None for s in sets for image_id in s.missing}
    name = f"{data} {' '.join(splits)}"
    return ImageSet(name, sets[0].class_names, tuple(records.values()), missing=tuple(missing))


class Progress:
    """A bar on a terminal, else a line with the time left every few seconds."""

    def __init__(self):
        self.bar = None
        self.start = self.last = time.monotonic()
        self.first_done = 0

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(total=total, unit="image", initial=done - 1)
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
            return
        now = time.monotonic()
        self.first_done = self.first_done or done
        if now - self.last >= LINE_SECONDS or done == total:
            rate = (done - self.first_done + 1) / max(now - self.start, 1e-6)
            left = (total - done) / rate
            print(f"{done}/{total} images, {rate:.1f} images/s, {left:.0f} s left", flush=True)
            self.last = now


def search(images: ImageSet, options: argparse.Namespace) -> ProposalSet:
    """Search proposals by selective search, write them to `options.out` and return them."""
    result = run_selective_search(
        images,
        options.out,
        options=SearchOptions(options.method, options.min_side, options.max_side),
        workers=max(1, options.workers or 1),
        report=Progress(),
    )
    name_failures(result.failures)
    return result.proposals


def name_failures(failures: Sequence[tuple[str, str]]) -> None:
    """Print the images that could not be read, the first twenty with the reason."""
    for image_id, reason in failures[:20]:
        print(f"left out {image_id}: {reason}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} images could not be read.", file=sys.stderr)


def receptive_fields(images: ImageSet, options: argparse.Namespace) -> ProposalSet:
    """Make proposals of the receptive fields of a run's proposal maps, write them to `options.out` and return them."""
    from wsod_jax.analysis.map_proposals import (
        FieldOptions,  # brings JAX, which workers do without
        propose_fields,
    )

    given = {k: getattr(options, k) for k in ("num", "sizes", "aspects", "nms_thr")}
    result = propose_fields(
        options.workdir,
        images,
        options.out,
        options=FieldOptions(**{k: v for k, v in given.items() if v is not None}),
        step=options.step,
        changes=options.set or (),
        report=Progress(),
    )
    name_failures(result.failures)
    return result.proposals


def convert(images: ImageSet, options: argparse.Namespace) -> ProposalSet:
    """Convert the published proposals in `options.source`, write them to `options.out` and return them.

    Masks are written next to it. Those of an older file would be refused: their checksum is another.
    """
    result = import_proposals(options.source, images, num=options.num, report=Progress())
    print(f"Converted {options.source}: {result.summary}")
    result.proposals.save(options.out)
    if result.masks is not None:
        from wsod_jax.data.proposals.mask_set import masks_path

        path = masks_path(options.out)
        result.masks.save(path)
        print(f"Wrote {path}: a mask for each of {len(result.proposals.boxes)} proposals.")
    return result.proposals


def print_recall(
    proposals: ProposalSet, others: dict[str, ProposalSet], options: argparse.Namespace
) -> None:
    """Print the recall of annotated objects, of each split by class and by number of boxes next to other files."""
    from wsod_jax.data.proposals.recall import (  # brings JAX, which workers do without
        measure_recall,
        recall_by_count,
    )

    reader, _ = reader_of(options.data)
    if reader is None:
        print("No recall report: the folder has no annotated boxes.")
        return
    for split in options.split:
        truth = reader.annotated_boxes(split)
        print(f"\n{split}")
        print(measure_recall(proposals, truth).table())
        print()
        print(recall_by_count({str(options.out): proposals, **others}, truth))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        run,
        parse_arguments(arguments),
        interrupted="interrupted; finished images are kept, run the same command to go on",
    )


def run(options: argparse.Namespace) -> None:
    """Make the file, and say what is in it."""
    if options.out.suffix != ".npz":
        raise ConfigError(f"--out must end in .npz, found {options.out}.")
    images = read_images(options.data, options.split)
    others = {str(path): ProposalSet.load(path) for path in options.compare_with}
    make = receptive_fields if options.workdir else convert if options.source else search
    try:
        proposals = make(images, options)
    except OSError as error:
        raise OSError(f"{error}; finished images are kept, run again") from error
    counts = proposals.counts
    print(
        f"Wrote {options.out}: {len(proposals)} images, {counts.mean():.0f} proposals per image "
        f"({counts.min()} to {counts.max()})."
    )
    if images.missing:
        total = len(images) + len(images.missing)
        print(f"{len(images.missing)} of {total} images are not in it: they cannot be read.")
    if options.report:
        print_recall(proposals, others, options)
