"""Commands for runs without proposals: their proposal maps over training, random walks and Object Energy.

Object Energy is measured of files of proposals too, with or without runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.analysis.baselines import file_energies
from wsod_jax.analysis.edges import edge_shares, edge_table
from wsod_jax.analysis.energy import EnergyCurve, run_energies, write_energy
from wsod_jax.analysis.evolution import draw_map_evolution
from wsod_jax.analysis.opened_run import OpenedRun
from wsod_jax.analysis.walk import FOLLOWED, draw_walk, follow_walks, walk_table
from wsod_jax.commands.visualization.images import (
    choose,
    class_to_show,
    read_images,
    spread,
    write_figures,
)
from wsod_jax.data.records import ImageRecord
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.runs.annotated_images import AnnotatedImages


def show_proposal_maps(options: argparse.Namespace) -> None:
    """Draw the proposal maps and activations of images over the checkpoints of one or more runs."""
    runs = [OpenedRun.open(workdir, "maps", changes=options.set) for workdir in options.workdir]
    split = read_split(runs[0], options.split)
    images, names = split.images, short_names(options.workdir)
    named = class_to_show(images.class_names, options.class_name)
    chosen, looks = choose(images, options), []
    for run in runs:
        steps = options.steps or run.steps()
        print(f"{run.workdir}: {len(chosen)} images at steps {steps}", flush=True)
        looks.append(run.maps(images, chosen, steps))

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray:
        shown = named
        if shown is None:  # the label with the best score at the last checkpoint of the last run
            last = list(looks[-1].values())[-1][index]
            shown = int(np.argmax(last.image_scores + (np.array(record.labels) == 1)))
        objects = None
        if split.has_boxes:
            objects = split.truth.of_image(index)
            objects = objects.boxes[objects.classes == shown]
        rows = []
        for name, look in zip(names, looks, strict=True):
            rows.append(
                draw_map_evolution(
                    image,
                    {step: found[index] for step, found in look.items()},
                    class_index=shown,
                    class_name=images.class_names[shown],
                    objects=objects,
                    run_name=name if len(runs) > 1 else "",
                )
            )
        sheet = viz.contact_sheet(rows, columns=1, cell_px=None)
        return viz.add_color_key(
            sheet,
            "lowest value of a map",
            "highest value of the same map",
            "ring: strongest activation   red: box around the foreground   green: annotated objects",
        )

    write_figures(images, options, draw, rows=True)


def show_walk(options: argparse.Namespace) -> None:
    """Draw the random walk of a checkpoint on images step by step, and print how it converges."""
    run = OpenedRun.open(options.workdir, "maps", options.step, options.set)
    images = read_split(run, options.split).images
    module = run.predictor.method.soft_proposal
    longest = max([FOLLOWED, module.num_steps, *options.walk_steps])
    walks = follow_walks(run.predictor, images, choose(images, options), longest)
    if not walks:
        raise DataError(f"none of the images chosen out of {images.name} can be read")
    upsampling = run.predictor.settings.maps.upsampling

    def draw(image: np.ndarray, index: int, record: ImageRecord) -> np.ndarray | None:
        if index not in walks:
            return None
        figure = draw_walk(image, walks[index], options.walk_steps, upsampling)
        return viz.add_color_key(
            figure,
            "0",
            "highest value of all these maps",
            "numbers: the highest value of a map, as a multiple of the uniform map",
        )

    write_figures(images, options, draw, rows=True)
    chart = viz.plot_walks(
        np.stack([walk.moved for walk in walks.values()]),
        np.stack([walk.apart for walk in walks.values()]),
        tolerance=module.tolerance,
        num_steps=module.num_steps,
    )
    print(f"Wrote {viz.save_image(options.out / 'walks.png', chart)}\n")
    by_id = {images.image_ids[index]: walk for index, walk in walks.items()}
    print(walk_table(by_id, num_steps=module.num_steps, tolerance=module.tolerance))


def show_energy(options: argparse.Namespace) -> None:
    """Measure Object Energy of runs over training and of proposals files; write the chart and print tables."""
    runs = [OpenedRun.open(workdir, "maps", changes=options.set) for workdir in options.workdir]
    split = read_split(runs[0], options.split) if runs else read_data(options)
    if not split.has_boxes:
        raise DataError(
            f"{split.images.name} has no boxes of objects to measure Object Energy with; "
            "choose a --split that has, or data with annotations"
        )
    names = short_names([*options.workdir, *options.proposals])
    of_files = [
        EnergyCurve.of(f"proposals of {name}", (), [file_energies(path, split)], split)
        for name, path in zip(names[len(runs) :], options.proposals, strict=True)
    ]
    of_runs = [
        run_energies(run, name, split, options.steps or run.all_steps())
        for name, run in zip(names, runs, strict=False)
    ]
    write_energy(options.out, split, of_runs, of_files)
    if runs:
        positions = spread(split.images, options.num)
        shares = {
            name: list(edge_shares(run.at(run.steps()[-1]), split, positions))
            for name, run in zip(names, runs, strict=False)
        }
        print("\nedges of the graph, newest checkpoint: on objects + half of across = energy")
        print(edge_table(shares))


def read_data(options: argparse.Namespace) -> AnnotatedImages:
    """Read the images in which proposals files are measured where there are no runs."""
    if not options.proposals:
        raise ConfigError(
            "--data without --proposals: nothing to measure; name .npz files, or give --workdir"
        )
    if options.steps or options.set:
        raise ConfigError("--steps and --set are of runs; with --data, leave them out")
    return read_images(options.data, options.split)


def read_split(run: OpenedRun, split: str | None) -> AnnotatedImages:
    """Read the split asked for, or the one that the run is tested on."""
    reader = run.predictor.config.data
    return AnnotatedImages.read(reader, split or reader.test_split)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of every path; whole paths where these are not distinct."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
