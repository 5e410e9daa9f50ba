"""How a proposal map and a class activation map evolved over training, in single images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.analysis.scores import spread_steps
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import DataError
from wsod_jax.runs.predictor import Predictor, check_classes, load_run
from wsod_jax.train.checkpoint import checkpoint_steps, load_checkpoint
from wsod_jax.types import ImageResult


@dataclasses.dataclass(frozen=True)
class MapRun:
    """A run of a method that localizes by maps.

    Attributes:
      workdir: of the run, or the folder of one of its checkpoints.
      predictor: of the checkpoint that was opened; it is compiled once for all of them.
      step: of the checkpoint that was opened.
    """

    workdir: Path
    predictor: Predictor
    step: int

    @classmethod
    def open(
        cls, workdir: str | Path, step: int | None = None, changes: Sequence[str] = ()
    ) -> MapRun:
        """Load a checkpoint of a run.

        Args:
          workdir: of the run, or the folder of one checkpoint.
          step: which checkpoint; `None` takes the newest.
          changes: to test settings and locations, see `runs.load_run`.

        Raises:
          DataError: if there is no such checkpoint, or its method makes no proposal map.
        """
        predictor = load_run(workdir, step, changes=changes)
        if "maps" not in predictor.method.outputs:
            raise DataError(
                f"{workdir} is a run of {predictor.config.method.name}, which makes no proposal map; "
                "give a run of spn"
            )
        predictor = predictor.with_settings(loader="threads")
        return cls(Path(workdir), predictor, predictor.metadata["step"])

    def steps(self) -> list[int]:
        """Return a few of the run's checkpoints, evenly spread, the first and the last among them."""
        return spread_steps(self.workdir) or [self.step]

    def all_steps(self) -> list[int]:
        """Return the run's checkpoints, ascending."""
        return checkpoint_steps(self.workdir) or [self.step]

    def at(self, step: int) -> Predictor:
        """Return the predictor with the weights of another checkpoint; nothing is compiled again.

        Raises:
          DataError: there is no such checkpoint.
        """
        params, extras, _ = load_checkpoint(self.workdir, step=step)
        return self.predictor.with_weights(params, extras)

    def look(
        self, images: ImageSet, positions: Sequence[int], steps: Sequence[int]
    ) -> dict[int, dict[int, ImageResult]]:
        """Return the maps that checkpoints make of some images.

        Args:
          images: a set of the run's classes.
          positions: of the images to look at, in the set.
          steps: of the checkpoints.

        Returns:
          Step -> position -> maps and class scores; images that cannot be read are left out.

        Raises:
          DataError: for other classes, or a step without checkpoint.
        """
        check_classes(images, self.predictor.class_names)
        chosen, found = images.select(positions), {}
        for step in steps:
            predictor = self.at(step)
            every = np.ones((len(chosen), len(images.class_names)), bool)
            results = predictor.results(predictor.views(chosen), every)
            found[step] = {positions[result.image_index]: result for result in results}
        return found


def draw_map_evolution(
    pixels: np.ndarray,
    found: Mapping[int, ImageResult],
    *,
    class_index: int,
    class_name: str,
    objects: np.ndarray | None = None,
    run_name: str = "",
) -> np.ndarray:
    """Draw an image's proposal map and the class activation map of a class at several checkpoints, one row each.

    Every map has its own colors, from its lowest to its highest value. Proposal maps tell these in multiples of their
    mean, so 1.0 to 1.0 is the map that prefers no place; a ring marks the strongest activation.

    Args:
      pixels: [H, W, 3] uint8 RGB, the original image.
      found: step -> the image's maps at that checkpoint, in the order to show.
      class_index, class_name: of which class the activations are.
      objects: [n, 4] annotated objects of the class, drawn into the image; `None` where they are not known.
      run_name: written into the first column, where several runs are compared.

    Returns:
      [H', W', 3] uint8 RGB, the image first in both rows.

    Source: Zhu et al. 2017 (SPN), figure 3.
    """
    proposal_cells, cam_cells = [pixels], [pixels]
    of_run = f"{run_name}: " if run_name else ""
    proposal_captions = [f"{of_run}proposal map"]
    cam_captions = [f"{of_run}activation to {class_name}"]
    if objects is not None:
        cam_cells = [viz.draw_detections(pixels, (), (), (), (), truth_boxes=objects)]
    for step, image in found.items():
        proposal = image.maps.objectness()
        proposal_cells.append(viz.draw_objectness(pixels, proposal - proposal.min()))
        low, high = np.array([proposal.min(), proposal.max()]) / max(proposal.mean(), 1e-12)
        proposal_captions.append(f"step {step}: {low:.1f} to {high:.1f} × mean")
        cam = image.maps.cam(class_index)
        above = np.maximum(cam - cam.min(), 0.0)
        tight, _ = image.maps.tightest(class_index)
        point = image.maps.point(class_index)
        cam_cells.append(viz.draw_cam(pixels, above, point, tight[0], np.zeros((0, 4))))
        score = image.image_scores[class_index]
        cam_captions.append(f"step {step}: {class_name} {score:.2f}")
    return viz.contact_sheet(
        proposal_cells + cam_cells,
        captions=proposal_captions + cam_captions,
        columns=len(proposal_cells),
        cell_px=400,
    )
