"""Commands for runs with proposals: their pseudo boxes, mining graphs and objectness maps."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from wsod_jax import viz
from wsod_jax.analysis.evolution import draw_score_evolution
from wsod_jax.analysis.mining import MiningRun, draw_class_graphs, draw_mined_stages
from wsod_jax.analysis.opened_run import OpenedRun
from wsod_jax.analysis.quality import pseudo_quality, quality_table
from wsod_jax.commands.visualization.images import choose, class_to_show, write_figures
from wsod_jax.data.records import ImageRecord
from wsod_jax.errors import DataError
from wsod_jax.runs.annotated_images import truth_table
from wsod_jax.train.checkpoint import checkpoint_steps


def show_pseudo(options: argparse.Namespace) -> None:
    """Draw the boxes that a checkpoint mines in training images, a figure per stage."""
    run = MiningRun.open(options.workdir, options.step, options.set)
    images = run.data.image_set
    mined = run.mine(choose(images, options))
    truth = None
    if options.truth:
        truth = truth_table(images, run.objects())

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray | None:
        if index not in mined:
            return None
        objects = None if truth is None else truth.of_image(index).boxes
        return draw_mined_stages(
            image, mined[index], class_names=images.class_names, truth_boxes=objects
        )

    write_figures(images, options, draw, rows=True)


def show_quality(options: argparse.Namespace) -> None:
    """Print the quality of the mined boxes of runs over their checkpoints."""
    found = {}
    for workdir in options.workdir:
        steps = options.steps or [step for step in checkpoint_steps(workdir) if step > 0]
        if not steps:
            raise DataError(
                f"{workdir} has no checkpoint after step 0; train it with wsod-jax train"
            )
        for step in steps:
            run = MiningRun.open(workdir, step, options.set)
            positions = choose(run.data.image_set, options)
            found[str(workdir), step] = pseudo_quality(run, positions)
            print(f"{workdir}, step {step}: {len(positions)} images mined", file=sys.stderr)
    print(quality_table(found))


def show_graphs(options: argparse.Namespace) -> None:
    """Draw the graphs of proposals from which OIM mines, per class and stage of an image."""
    run = MiningRun.open(options.workdir, options.step, options.set)
    images = run.data.image_set
    print(f"step {run.step}, alpha {run.alpha():g}")
    mined = run.mine(choose(images, options))

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray | None:
        if index not in mined:
            return None
        figures = []
        for label in np.flatnonzero(images.labels[index] == 1):
            graphs = [
                run.class_graph(mined[index], stage, label, num_rejected=options.num_rejected)
                for stage in range(mined[index].num_stages)
            ]
            name = images.class_names[label]
            figures.append(draw_class_graphs(image, mined[index], graphs, class_name=name))
        return viz.contact_sheet(figures, columns=1, cell_px=None)

    write_figures(images, options, draw, rows=True)


def show_objectness(options: argparse.Namespace) -> None:
    """Draw objectness maps of images over the checkpoints of one or more runs."""
    runs = [OpenedRun.open(workdir, "boxes", changes=options.set) for workdir in options.workdir]
    reader = runs[0].predictor.config.data
    images = reader.images(options.split or reader.train_split)
    named = class_to_show(images.class_names, options.class_name)
    chosen, scored = choose(images, options), []
    for run in runs:
        steps = options.steps or run.steps()
        print(f"{run.workdir}: {len(chosen)} images at steps {steps}", flush=True)
        scored.append(run.candidates(images, chosen, steps))

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray:
        shown = named
        if shown is None:  # the label with the best score at the last checkpoint of the last run
            last = list(scored[-1].values())[-1][index]
            shown = int(np.argmax(last.scores.max(axis=0) + (np.array(record.labels) == 1)))
        name = images.class_names[shown]
        rows = []
        for run, steps in zip(runs, scored, strict=True):
            of_run = f"{run.workdir.name}, " if len(runs) > 1 else ""
            found = {f"{of_run}step {step}: {name}": steps[step][index] for step in steps}
            rows.append(
                draw_score_evolution(
                    image, run.predictor, found, class_index=shown, max_boxes=options.max_boxes
                )
            )
        return viz.contact_sheet(rows, columns=1, cell_px=None)

    write_figures(images, options, draw, rows=True)
