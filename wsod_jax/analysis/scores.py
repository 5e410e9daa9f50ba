"""How the scores of a class moved over training, in single images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsod_jax import viz
from wsod_jax.data.records import ImageSet
from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import Candidates, detect_candidates
from wsod_jax.ops.boxes import box_coverage
from wsod_jax.runs.predictor import Predictor, check_classes, load_run
from wsod_jax.runs.training_data import read_proposals
from wsod_jax.train.checkpoint import checkpoint_steps, load_checkpoint

MAX_STEPS = 5


@dataclasses.dataclass(frozen=True)
class ScoredRun:
    """A run whose checkpoints are compared.

    Attributes:
      workdir: of the run.
      predictor: of its newest checkpoint; it is compiled once for all of them.
    """

    workdir: Path
    predictor: Predictor

    @classmethod
    def open(cls, workdir: str | Path, changes: Sequence[str] = ()) -> ScoredRun:
        """Load the newest checkpoint of a run.

        Args:
          workdir: of the run.
          changes: to test settings and locations, see `runs.load_run`.

        Raises:
          DataError: if it has no checkpoint, or the method is a classifier.
        """
        if not checkpoint_steps(workdir):
            raise DataError(
                f"there are no checkpoints in {workdir}; give the --workdir of a wsod-jax train run"
            )
        predictor = load_run(workdir, changes=changes)
        if "boxes" not in predictor.method.outputs:
            raise DataError(
                f"{workdir} is a run of {predictor.config.method.name!r}, which scores no boxes"
            )
        return cls(Path(workdir), predictor.with_settings(loader="threads"))

    def steps(self) -> list[int]:
        """Return a few of the run's checkpoints, evenly spread, the first and the last among them."""
        return spread_steps(self.workdir)

    def score(
        self, images: ImageSet, positions: Sequence[int], steps: Sequence[int]
    ) -> dict[int, dict[int, Candidates]]:
        """Return what checkpoints score in some images, before any selection.

        Args:
          images: a set of the run's classes that its proposals cover.
          positions: of the images to score, in the set.
          steps: of the checkpoints.

        Returns:
          Step -> position -> candidates; images that cannot be read are left out.

        Raises:
          DataError: for other classes, images without proposals, or a step without checkpoint.
        """
        check_classes(images, self.predictor.class_names)
        proposals = read_proposals(self.predictor.config)
        scored = {}
        for step in steps:
            params, extras, _ = load_checkpoint(self.workdir, step=step)
            predictor = self.predictor.with_weights(params, extras)
            candidates = predictor.candidates(predictor.views(images.select(positions), proposals))
            scored[step] = {positions[found.image_index]: found for found in candidates}
        return scored


def spread_steps(workdir: str | Path) -> list[int]:
    """Return up to `MAX_STEPS` of a run's checkpoints, evenly spread, the first and the last among them."""
    found = checkpoint_steps(workdir)
    places = np.linspace(0, len(found) - 1, min(MAX_STEPS, len(found))).round().astype(int)
    return [found[place] for place in places]


def draw_score_evolution(
    pixels: np.ndarray,
    predictor: Predictor,
    candidates: Mapping[str, Candidates],
    *,
    class_index: int,
    max_boxes: int = 3,
) -> np.ndarray:
    """Draw where a class's scores pile up in an image at several checkpoints, and the best detections.

    Args:
      pixels: [H, W, 3] uint8 RGB, the original image.
      predictor: says how detections are selected.
      candidates: title -> the image's candidates at a checkpoint, in the order to show.
      class_index: of which class.
      max_boxes: detections per map.

    Returns:
      [H', W', 3] uint8 RGB, see `viz.draw_evolution`.

    Source: Lin et al. 2020 (OIM), figures 1 and 6.
    """
    maps, boxes, scores = [], [], []
    height, width = pixels.shape[:2]
    for found in candidates.values():
        own = found.scores[:, class_index]
        maps.append(box_coverage(found.boxes, own, height=height, width=width, mask=found.mask))
        decoding = predictor.settings.decoding(is_single_label=False)
        kept = detect_candidates(found, decoding)
        best = np.flatnonzero(kept.mask & (kept.classes == class_index))[:max_boxes]
        boxes.append(kept.boxes[best])
        scores.append(kept.scores[best])
    return viz.draw_evolution(pixels, maps, list(candidates), boxes=boxes, scores=scores)
