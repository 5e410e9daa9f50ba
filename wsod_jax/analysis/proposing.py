"""Proposals out of a trained run's own maps, for methods that choose among proposals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from wsod_jax.analysis.field_boxes import FieldOptions, field_boxes
from wsod_jax.data.proposal_writing import Outcome, ProposalResult, write_proposals
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.predictor import Predictor
from wsod_jax.runs import load_run


def propose_fields(
    run: str | Path,
    images: ImageSet,
    out: str | Path,
    *,
    options: FieldOptions | None = None,
    step: int | None = None,
    changes: Sequence[str] = (),
    report: Callable[[int, int], None] | None = None,
) -> ProposalResult:
    """Write the best-scored receptive fields of a run's proposal maps as proposals; see `field_boxes`.

    Resumable as `write_proposals` is: another run, step or option is another generator.

    Args:
      run: a workdir, or the folder of a checkpoint.
      images: any; their labels are not looked at.
      out: the .npz file to write.
      options: which boxes.
      step: which checkpoint; `None` takes the newest, or the one that `run` names.
      changes: to the run's test settings, such as "scales=(224,448)": views, and how the map is found.
      report: called with (images done, images in all).

    Raises:
      ConfigError: the run makes no proposal maps, or uniform ones, or its receptive fields are not known.
      DataError: as `load_run` and `write_proposals`.
    """
    options = options or FieldOptions()
    predictor = load_run(run, step, changes=changes)
    _check_maps(predictor, run)
    field = predictor.method.proposal_field()
    # Threads, whatever the run was tested with: making proposals does without TensorFlow.
    predictor = predictor.with_settings(loader="threads")

    def outcomes(records: Sequence[ImageRecord]) -> Iterator[Outcome]:
        todo = dataclasses.replace(images, records=tuple(records))
        missing = set(range(len(records)))
        for image in predictor.results(predictor.views(todo)):
            record = records[image.image_index]
            missing.remove(image.image_index)
            boxes, scores = field_boxes(image.maps.views, image.size, field, options)
            yield Outcome(record, boxes, None, scores)
        for index in sorted(missing):
            yield Outcome(records[index], None, _problem(records[index]))

    return write_proposals(
        images,
        out,
        generator=_generator(predictor, options),
        propose=outcomes,
        report=report,
    )


def _check_maps(predictor: Predictor, run: str | Path) -> None:
    """Raise `ConfigError` for a run whose maps rank nothing."""
    if "maps" not in predictor.method.outputs:
        raise ConfigError(
            f"{run} was trained with {predictor.config.method.name}, which makes no proposal maps; "
            "take a run of SPN, such as configs/spn_cards6.py:spn"
        )
    if predictor.method.soft_proposal.solver == "uniform":
        raise ConfigError(
            f"the proposal maps of {run} are uniform (class activation mapping), so no receptive field is better "
            "than another; take a run of SPN, or find its maps with method.soft_proposal.solver=walk"
        )


def _generator(predictor: Predictor, options: FieldOptions) -> str:
    """Return what proposals made this way are called in their file."""
    settings = predictor.settings
    views = f"{settings.resize} side {', '.join(map(str, settings.scales))}"
    if any(settings.flips):
        views += ", mirrored too" if not all(settings.flips) else ", mirrored"
    return (
        f"receptive fields of {predictor.config.method.name} ({options}, step {predictor.metadata['step']}, weights "
        f"{predictor.fingerprint()}, {predictor.method.soft_proposal.solver}, {views})"
    )


def _problem(record: ImageRecord) -> str:
    """Return why an image was not predicted."""
    try:
        record.load()
    except DataError as error:
        return str(error)
    return f"{record.image_id}: could not be read when its turn came, and can now; run again"
