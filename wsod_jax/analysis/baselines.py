"""A localizing classifier and its baselines: other proposal maps, image centers, gradients, proposal files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from wsod_jax.analysis import energy
from wsod_jax.data.proposals.proposal_set import ProposalSet, check_proposals
from wsod_jax.evaluation.image_evaluators import OFF_THE_IMAGE
from wsod_jax.evaluation.metrics.object_energy import EnergyMetrics
from wsod_jax.evaluation.metrics.pointing import difficult_subset, pointing_accuracy
from wsod_jax.evaluation.report import Table
from wsod_jax.methods.base import Method
from wsod_jax.ops.cam import cam_point
from wsod_jax.ops.soft_proposal import Solver
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.predictor import Predictor, bar
from wsod_jax.runs.scoring import evaluate_pass
from wsod_jax.types import Batch, Params

SOLVERS = {"walk": "M of the walk", "stationary": "M stationary", "uniform": "M uniform (CAM)"}
COLUMNS = (
    "classification mAP",
    "pointing",
    "pointing difficult",
    "pointing AP",
    "CorLoc",
    "CorLoc any",
    "energy",
)


def comparison(
    predictors: Sequence[Predictor],
    splits: tuple[AnnotatedImages, AnnotatedImages | None],
    measured: Mapping[str, float],
    folder: Path,
    *,
    maps: bool,
    proposal_energies: Mapping[str, np.ndarray],
) -> Table:
    """Return a table of the detector and its baselines.

    Args:
      predictors: the detector as it was evaluated, and those whose boxes join its own in "CorLoc any".
      splits: the test split, with annotated objects, and the split of CorLoc.
      measured: the detector's own numbers by name.
      folder: keeps finished images of baselines.
      maps: compare with other proposal maps under the same weights, and the points of image centers and gradients.
      proposal_energies: name of a proposals file -> its [n] energies, see `file_energies`.
    """
    predictor, test = predictors[0], splits[0]
    own = predictor.method.soft_proposal.solver
    rows = [_row(f"{SOLVERS[own]}: as tested", measured)]
    if maps:
        for solver in (name for name in SOLVERS if name != own):
            print(f"comparing with {SOLVERS[solver]}")
            others = [with_solver(one, solver) for one in predictors]
            rows.append(_row(SOLVERS[solver], _measure(others, splits, folder)))
        centers = center_points(test.sizes, len(predictor.class_names))
        points = {"Center: the middle of the image": centers}
        print("comparing with gradients: a backward pass per image and class")
        points["Grad: largest |∂y / ∂image|"] = gradient_points(predictor, test)
        rows += [_row(name, _pointing(found, test, predictor)) for name, found in points.items()]
    for name, energies in proposal_energies.items():
        mean = EnergyMetrics(energies).mean
        rows.append(_row(f"proposals of {name}", {"energy": mean}))
    return Table("Comparison with baselines", ("", *COLUMNS), rows)


def with_solver(predictor: Predictor, solver: Solver) -> Predictor:
    """Return the same weights with another way to find the proposal map."""
    return predictor.changed([f"method.soft_proposal.solver={solver}"])


def center_points(sizes: np.ndarray, num_classes: int) -> np.ndarray:
    """Return [n, c, 2] the center (x, y) of images of `sizes` [n, 2] for every class."""
    return np.repeat(sizes[:, None, ::-1] / 2, num_classes, axis=1)


def gradient_points(predictor: Predictor, split: AnnotatedImages) -> np.ndarray:
    """Return [n, c, 2] where the gradient of a class's score with respect to the pixels is largest.

    Every image is seen once, at the first scale; NaN for classes it neither contains nor is labeled with.
    """
    views = predictor.one_view().views(split.images, None)
    gradient = jax.jit(functools.partial(saliency, predictor.method))
    points = np.full((*split.query.shape, 2), np.nan)
    for batch in bar(views):
        real = np.asarray(batch.image_mask)
        wanted = split.query[batch.image_index] & real[:, None]  # [b, c]
        for slot in range(int(wanted.sum(axis=1).max(initial=0))):
            has = wanted.sum(axis=1) > slot
            # the slot-th wanted class of every image; class 0, unused, where there are fewer
            chosen = np.where(has, (np.cumsum(wanted, axis=1) == slot + 1).argmax(axis=1), 0)
            maps = np.asarray(
                gradient(predictor.params, predictor.extras, batch, chosen.astype(np.int32))
            )
            for row in np.flatnonzero(has):
                height, width = batch.image_size[row]
                point = cam_point(maps[row, :height, :width])
                place = batch.image_index[row], chosen[row]
                points[place] = np.array(point) / np.asarray(batch.views.scale[row])
    return points


def _measure(
    predictors: Sequence[Predictor],
    splits: tuple[AnnotatedImages, AnnotatedImages | None],
    folder: Path,
) -> dict[str, float]:
    """Return the first detector's numbers on the test split and, joined by the others, on the split of CorLoc."""
    tested = [predictors[0].with_settings(evaluators=("classification", "pointing", "energy"))]
    passes = [(tested, splits[0])]
    if splits[1] is not None and splits[1].has_boxes:
        passes.append(([one.of_pass("corloc") for one in predictors], splits[1]))
    found: dict[str, float] = {}
    for number, (those, data) in enumerate(passes):
        outcome = evaluate_pass(f"baseline_{number}", those, data, None, folder, progress=bar)
        found |= outcome.summary
        outcome.discard()
    return found


def _row(name: str, numbers: Mapping[str, float]) -> list[str | float | None]:
    return [name, *(numbers.get(column) for column in COLUMNS)]


def _pointing(points: np.ndarray, data: AnnotatedImages, predictor: Predictor) -> dict[str, float]:
    """Return pointing accuracy of points [n, c, 2]; those that are not finite miss."""
    points = np.where(np.isfinite(points), points, OFF_THE_IMAGE)
    subsets = {"pointing": None, "pointing difficult": difficult_subset(data.truth, data.sizes)}
    tolerance = predictor.settings.maps.pointing_px
    return {
        name: pointing_accuracy(points, data.truth, tolerance_px=tolerance, subset=subset).mean
        for name, subset in subsets.items()
    }


def file_energies(path: Path, split: AnnotatedImages) -> np.ndarray:
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


IMAGE_SCORES = frozenset({"image_scores"})


def saliency(
    method: Method, params: Params, extras: dict, batch: Batch, classes: Int[Array, " b"]
) -> Float[Array, "b H W"]:
    """Return max over channels of |∂s_c / ∂image|, the Grad baseline of the SPN paper's Table 2.

    Args:
      method: predicts "image_scores".
      params: its parameters.
      extras: its extras.
      batch: images [b, H, W, 3]; proposals, if there are any, are kept as they are.
      classes: [b] int32, which class c of each image.

    Returns:
      [b, H, W] float32, >= 0.

    Source: Simonyan et al. 2014, here of the probability s_c.
    """

    def chosen(image: Float[Array, "b H W 3"]) -> Float[Array, ""]:
        seen = batch.replace(image=image)
        scores = method.predict(params, extras, seen, IMAGE_SCORES).image_scores  # [b, c]
        return jnp.sum(jnp.take_along_axis(scores, classes[:, None], axis=1))

    gradient = jax.grad(chosen)(jnp.asarray(batch.image, jnp.float32))  # [b, H, W, 3]
    return jnp.max(jnp.abs(gradient), axis=-1)
