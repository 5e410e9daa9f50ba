"""Make proposals for many images, resumably, and write them to one file."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import DataError

PART_SIZE = 32  # images per partial file, the most that an interruption loses


class Outcome(NamedTuple):
    """The result for one image.

    Attributes:
      record: the image.
      boxes: [k, 4] xyxy in pixels of the image, or `None` if it could not be read.
      problem: why not, else `None`.
      scores: [k], or `None` if the generator has none.
    """

    record: ImageRecord
    boxes: np.ndarray | None
    problem: str | None
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class ProposalResult:
    """The proposals of all readable images, and (image id, reason) for each of the others."""

    proposals: ProposalSet
    failures: tuple[tuple[str, str], ...]


def write_proposals(
    image_set: ImageSet,
    out: str | Path,
    *,
    generator: str,
    propose: Callable[[Sequence[ImageRecord]], Iterator[Outcome]],
    report: Callable[[int, int], None] | None = None,
) -> ProposalResult:
    """Make the proposals of a set of images and save them to one file.

    Finished images are kept in partial files next to `out` (`<out>.parts/`); after an interruption, the same
    call continues from there. Images already in `out` are kept, too, unless their size has changed.

    Args:
      image_set: the images; labels are not needed.
      out: the .npz file to write.
      generator: program that makes the proposals, with its options.
      propose: yields the outcomes of the given records, in any order.
      report: called with (images done, total) after each image.

    Returns:
      The content of `out`, and the images that could not be read, which it lacks.

    Raises:
      DataError: if `out` has proposals of another generator, or no image could be read.
      KeyboardInterrupt: after the finished images have been saved.
    """
    out = Path(out)
    parts_folder = out.with_name(out.name + ".parts")
    kept = _load_finished(out, parts_folder, generator)
    done = {i: s for s in kept for i in s.ids}
    todo = [r for r in image_set.records if not _is_done(r, done)]
    stale = {r.image_id for r in todo} & done.keys()
    kept = [s.select(i for i in s.ids if i not in stale) for s in kept]

    total, failures = len(image_set), []
    part_numbers = (n for n in itertools.count() if not (parts_folder / _part_name(n)).exists())
    pending: list[Outcome] = []

    def flush():
        if pending:
            part = _as_set(pending, generator)
            part.save(parts_folder / _part_name(next(part_numbers)))
            kept.append(part)
            pending.clear()

    try:
        for number, outcome in enumerate(propose(todo) if todo else (), start=1):
            if outcome.problem is None:
                pending.append(outcome)
            else:
                failures.append((outcome.record.image_id, outcome.problem))
            if len(pending) >= PART_SIZE:
                flush()
            if report:
                report(total - len(todo) + number, total)
    finally:
        flush()

    kept = [s for s in kept if len(s)]
    if not kept:
        raise DataError(
            f"{image_set.name}: none of its {total} images could be read; first problem: "
            f"{failures[0][1] if failures else 'the set is empty'}"
        )
    merged = ProposalSet.merge(kept)
    first = [i for i in image_set.image_ids if i in merged]
    proposals = merged.select(first + sorted(set(merged.ids) - set(first)))
    proposals.save(out)
    shutil.rmtree(parts_folder, ignore_errors=True)
    return ProposalResult(proposals, tuple(failures))


def _as_set(outcomes: list[Outcome], generator: str) -> ProposalSet:
    """Return images without a problem as one set, with scores if they have any."""
    scored = outcomes[0].scores is not None
    return ProposalSet.from_images(
        {o.record.image_id: (o.record.height, o.record.width) for o in outcomes},
        {o.record.image_id: o.boxes for o in outcomes},
        {o.record.image_id: o.scores for o in outcomes} if scored else None,
        generator=generator,
    )


def _part_name(number: int) -> str:
    return f"part-{number:06d}.npz"


def _load_finished(out: Path, parts_folder: Path, generator: str) -> list[ProposalSet]:
    """Return the results of earlier calls with the same generator; of repeated ids the first counts."""
    finished: list[ProposalSet] = []
    seen: set[str] = set()
    for path in [out, *sorted(parts_folder.glob("part-*.npz"))]:
        if not path.exists():
            continue
        found = ProposalSet.load(path)
        if found.generator != generator:
            raise DataError(
                f"{path} was made by {found.generator!r}, not {generator!r}; choose another output "
                "file or delete it."
            )
        found = found.select(i for i in found.ids if i not in seen)
        seen.update(found.ids)
        finished.append(found)
    return finished


def _is_done(record: ImageRecord, done: dict[str, ProposalSet]) -> bool:
    found = done.get(record.image_id)
    return found is not None and found.size(record.image_id) == (record.height, record.width)
