"""What an evaluation finds, collected for its report, and the questions that all evaluations ask of their data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsod_jax.data.reader import Reader
from wsod_jax.data.records import ImageSet
from wsod_jax.evaluation.metrics.tables import TruthTable
from wsod_jax.evaluation.report import Picture, Table, write_report
from wsod_jax.predictor import Predictor, truth_table
from wsod_jax.types import Batch


@dataclasses.dataclass
class Findings:
    """What a report holds beside its settings: metrics, shares per class, numbers, tables, pictures, sentences."""

    parts: dict = dataclasses.field(default_factory=dict)
    shares: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Print a sentence, and keep it for the report."""
        print(sentence)
        self.notes.append(sentence)

    def note_input(self, images: ImageSet, counts: dict[str, int], predicted: np.ndarray) -> None:
        """Note what the input met in a set: images left out, shrunk or unreadable, proposals merged or dropped."""
        met = ", ".join(f"{name} {n}" for name, n in {**images.counts, **counts}.items() if n)
        self.note(f"input of {images.name}, each image counted once per view: {met}")
        missing = np.flatnonzero(~predicted)
        if len(missing):
            names = ", ".join(images.image_ids[index] for index in missing[:5])
            self.note(
                f"{len(missing)} of {len(images)} images of {images.name} could not be read ({names}"
                f"{' ...' if len(missing) > 5 else ''}): their objects count as missed, and image mAP leaves them out"
            )

    def write(self, folder: Path, title: str, images: ImageSet, facts: dict) -> dict[str, float]:
        """Write the report, print its summary and return it."""
        report = write_report(
            folder,
            title=title,
            class_names=images.class_names,
            settings=facts,
            shares=self.shares,
            scalars=self.scalars,
            tables=self.tables,
            pictures=self.pictures,
            notes=self.notes,
            **self.parts,
        )
        content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        summary = {name: value for name, value in content["summary"].items() if value is not None}
        print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))
        print(f"report: {report}")
        return summary


def known_objects(reader: Reader, images: ImageSet, split: str) -> TruthTable | None:
    """Return the objects of a split's images as its reader knows them, `None` where they are not known."""
    if not reader.has_boxes or images.counts.get("no_annotation"):
        return None
    return truth_table(images, reader.ground_truth(split))


def bar(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Show progress over batches on a terminal."""
    return tqdm(batches, total=len(batches), unit="batch", disable=None)


def compilation_note(predictor: Predictor, split: str | None) -> str:
    """Say how often the predict step was compiled, and how often it may be."""
    settings = predictor.settings
    shapes = set(settings.canvases("map").shapes())
    if split is not None:
        shapes |= set(settings.canvases("corloc").shapes())
    return (
        f"compilations of the predict step: {predictor.num_compilations()}, at most {len(shapes)} "
        "(one per canvas and orientation)"
    )
