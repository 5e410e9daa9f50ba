"""A trained run whose checkpoints are compared on single images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from wsod_jax.data.records import ImageSet
from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import Candidates
from wsod_jax.runs.predictor import Predictor, check_classes, load_run
from wsod_jax.runs.training_data import read_proposals
from wsod_jax.train.checkpoint import checkpoint_steps, load_checkpoint
from wsod_jax.types import ImageResult

MAX_STEPS = 5


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run and the predictor of one of its checkpoints.

    Attributes:
      workdir: of the run, or the folder of one of its checkpoints.
      predictor: of the checkpoint that was opened; compiled once for all checkpoints.
      step: of the checkpoint that was opened.
    """

    workdir: Path
    predictor: Predictor
    step: int

    @classmethod
    def open(
        cls,
        workdir: str | Path,
        output: Literal["boxes", "maps"],
        step: int | None = None,
        changes: Sequence[str] = (),
    ) -> OpenedRun:
        """Load a checkpoint of a run.

        Args:
          workdir: of the run, or the folder of one checkpoint.
          output: what its method must predict: boxes with scores, or proposal maps.
          step: which checkpoint; `None` takes the newest.
          changes: to test settings and locations, see `runs.load_run`.

        Raises:
          DataError: there is no such checkpoint, or its method predicts something else.
        """
        predictor = load_run(workdir, step, changes=changes)
        if output not in predictor.method.outputs:
            needed = {"boxes": "scored boxes", "maps": "proposal maps, such as spn"}[output]
            raise DataError(
                f"{workdir} is a run of {predictor.config.method.name!r}; needed is a method that predicts {needed}"
            )
        predictor = predictor.with_settings(loader="threads")
        return cls(Path(workdir), predictor, predictor.metadata["step"])

    def all_steps(self) -> list[int]:
        """Return the run's checkpoints, ascending."""
        return checkpoint_steps(self.workdir) or [self.step]

    def steps(self) -> list[int]:
        """Return up to `MAX_STEPS` of the run's checkpoints, evenly spread, with the first and the last."""
        steps = self.all_steps()
        places = np.linspace(0, len(steps) - 1, min(MAX_STEPS, len(steps))).round().astype(int)
        return [steps[place] for place in places]

    def at(self, step: int) -> Predictor:
        """Return the predictor with the weights of another checkpoint, without compiling it again.

        Raises:
          DataError: there is no such checkpoint.
        """
        params, extras, _ = load_checkpoint(self.workdir, step=step)
        return self.predictor.with_weights(params, extras)

    def maps(
        self, images: ImageSet, positions: Sequence[int], steps: Sequence[int]
    ) -> dict[int, dict[int, ImageResult]]:
        """Return step -> position -> the maps and class scores of an image, without unreadable images.

        Args:
          images: a set of the run's classes.
          positions: of the images, in the set.
          steps: of the checkpoints.

        Raises:
          DataError: for other classes, or a step without checkpoint.
        """
        check_classes(images, self.predictor.class_names)
        chosen, found = images.select(positions), {}
        every = np.ones((len(chosen), len(images.class_names)), bool)
        for step in steps:
            predictor = self.at(step)
            results = predictor.results(predictor.views(chosen), every)
            found[step] = {positions[result.image_index]: result for result in results}
        return found

    def candidates(
        self, images: ImageSet, positions: Sequence[int], steps: Sequence[int]
    ) -> dict[int, dict[int, Candidates]]:
        """Return step -> position -> the scored boxes of an image before any selection; arguments as of `maps`.

        Raises:
          DataError: for other classes, images without proposals, or a step without checkpoint.
        """
        check_classes(images, self.predictor.class_names)
        chosen, proposals, found = (
            images.select(positions),
            read_proposals(self.predictor.config),
            {},
        )
        for step in steps:
            predictor = self.at(step)
            results = predictor.candidates(predictor.views(chosen, proposals))
            found[step] = {positions[result.image_index]: result for result in results}
        return found
