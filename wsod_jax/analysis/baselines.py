"""A localising classifier beside its baselines: other proposal maps, image centres, gradients, proposal files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from wsod_jax.analysis.saliency import saliency
from wsod_jax.data.proposals import ProposalSet, check_proposals
from wsod_jax.evaluation.metrics import object_energy as energy
from wsod_jax.evaluation.metrics.average_precision import mean_over_classes
from wsod_jax.evaluation.metrics.corloc import CorLocMetrics
from wsod_jax.evaluation.metrics.pointing import centre_points, difficult_subset, pointing_accuracy
from wsod_jax.evaluation.report import Table
from wsod_jax.evaluation.response import response_point
from wsod_jax.measuring.findings import bar
from wsod_jax.measuring.maps import OFF_THE_IMAGE, MapSplit, SplitMetrics, measure_corloc
from wsod_jax.ops.soft_proposal import Solver
from wsod_jax.predictor import Predictor

SOLVERS = {"walk": "M of the walk", "stationary": "M stationary", "uniform": "M uniform (CAM)"}
COLUMNS = (
    "image mAP",
    "pointing",
    "pointing difficult",
    "pointing AP",
    "CorLoc",
    "CorLoc any",
    "energy",
)


def comparison(
    predictors: Sequence[Predictor],
    splits: tuple[MapSplit, MapSplit | None],
    measured: tuple[SplitMetrics, tuple[CorLocMetrics, CorLocMetrics] | None],
    *,
    maps: bool,
    proposal_energies: Mapping[str, np.ndarray],
) -> Table:
    """Return a table of the detector and its baselines.

    Args:
      predictors: the detector as it was evaluated, and those whose boxes join its own in "CorLoc any".
      splits: the test split, with annotated objects, and the split of CorLoc.
      measured: the detector's own numbers on them.
      maps: compare with other proposal maps under the same weights, and the points of image centres and gradients.
      proposal_energies: name of a proposals file -> its [n] energies, see `file_energies`.
    """
    predictor = predictors[0]
    own = predictor.method.soft_proposal.solver
    rows = [_row(f"{SOLVERS[own]}: as tested", *measured)]
    if maps:
        for solver in (name for name in SOLVERS if name != own):
            print(f"comparing with {SOLVERS[solver]}")
            others = [with_solver(one, solver) for one in predictors]
            rows.append(_row(SOLVERS[solver], *_measure(others, splits)))
        test = splits[0]
        centres = centre_points(test.sizes, len(predictor.class_names))
        rows.append(_pointing_row("Center: the middle of the image", centres, test, predictor))
        print("comparing with gradients: a backward pass per image and class")
        gradients = gradient_points(predictor, test)
        rows.append(_pointing_row("Grad: largest |∂y / ∂image|", gradients, test, predictor))
    for name, energies in proposal_energies.items():
        empty = [None] * (len(COLUMNS) - 1)
        rows.append([f"proposals of {name}", *empty, energy.EnergyMetrics(energies).mean])
    return Table("Beside its baselines", ("", *COLUMNS), rows)


def with_solver(predictor: Predictor, solver: Solver) -> Predictor:
    """Return the same weights with another way to find the proposal map."""
    return predictor.changed([f"method.soft_proposal.solver={solver}"])


def gradient_points(predictor: Predictor, split: MapSplit) -> np.ndarray:
    """Return [n, c, 2] where the gradient of a class's score with respect to the pixels is largest.

    Every image is seen once, at the first scale; NaN for classes it neither contains nor is labelled with.
    """
    views = predictor.one_view().views(split.images, None)
    gradient = jax.jit(functools.partial(saliency, predictor.method))
    points = np.full((*split.wanted.shape, 2), np.nan)
    for batch in bar(views):
        real = np.asarray(batch.image_mask)
        wanted = split.wanted[batch.image_index] & real[:, None]  # [b, c]
        for slot in range(int(wanted.sum(axis=1).max(initial=0))):
            has = wanted.sum(axis=1) > slot
            # the slot-th wanted class of every image; class 0, unused, where there are fewer
            chosen = np.where(has, (np.cumsum(wanted, axis=1) == slot + 1).argmax(axis=1), 0)
            maps = np.asarray(
                gradient(predictor.params, predictor.extras, batch, chosen.astype(np.int32))
            )
            for row in np.flatnonzero(has):
                height, width = batch.image_size[row]
                point = response_point(maps[row, :height, :width])
                place = batch.image_index[row], chosen[row]
                points[place] = np.array(point) / np.asarray(batch.views.scale[row])
    return points


def _measure(
    predictors: Sequence[Predictor], splits: tuple[MapSplit, MapSplit | None]
) -> tuple[SplitMetrics, tuple[CorLocMetrics, CorLocMetrics] | None]:
    """Return the first detector's numbers on the test split and, joined by the others, on the split of CorLoc."""
    predictor, (test, training) = predictors[0], splits
    metrics = SplitMetrics.of(test.locate(predictor, "map"), test, predictor)
    if training is None or training.truth is None:
        return metrics, None
    located = [training.locate(one, "corloc") for one in predictors]
    return metrics, measure_corloc(located, training.truth, predictor)


def _row(
    name: str, metrics: SplitMetrics, corloc: tuple[CorLocMetrics, CorLocMetrics] | None
) -> list[str | float | None]:
    shares = [float(mean_over_classes(values)) for values in metrics.shares.values()]
    found = [None, None] if corloc is None else [one.mean for one in corloc]
    return [name, *shares, *found, metrics.energy.mean]


def _pointing_row(
    name: str, points: np.ndarray, split: MapSplit, predictor: Predictor
) -> list[str | float | None]:
    points = np.where(np.isfinite(points), points, OFF_THE_IMAGE)
    difficult = difficult_subset(split.truth, split.sizes)
    tolerance = predictor.settings.maps.pointing_px
    both = [
        pointing_accuracy(points, split.truth, tolerance_px=tolerance, subset=subset).mean
        for subset in (None, difficult)
    ]
    return [name, None, *both, None, None, None, None]


def file_energies(path: Path, split: MapSplit) -> np.ndarray:
    """Return [n] the Object Energy of every image's proposals in a file; NaN for images without objects.

    Raises:
      DataError: the file is not of these images.
    """
    proposals = ProposalSet.load(path)
    check_proposals(proposals, split.images)
    ids = split.images.image_ids
    scores = None
    if proposals.scores is not None:
        scores = [proposals.get_scores(image_id) for image_id in ids]
    boxes = [proposals.get(image_id) for image_id in ids]
    return energy.proposal_energies(boxes, scores, split.truth, split.sizes)
