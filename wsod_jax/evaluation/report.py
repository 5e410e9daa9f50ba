"""The report of one evaluation: numbers as JSON, the same for people as Markdown, and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import DetectionMetrics, mean_over_classes
from wsod_jax.evaluation.metrics.corloc import CorLocMetrics


@dataclass(frozen=True)
class Picture:
    """A picture of the report: a PNG or JPEG file and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
      title: above it.
      head: names of the columns.
      rows: a name, then a share in [0, 1] for every further column, `None` where there is none.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


@dataclass(frozen=True)
class SeedSummary:
    """A number over several runs.

    Attributes:
      mean: over the runs.
      std: sample standard deviation (n - 1); NaN for one run.
      count: runs.
    """

    mean: float
    std: float
    count: int

    def as_percent(self) -> str:
        """Return like "50.1 ± 0.4", or "50.1" for one run."""
        spread = "" if math.isnan(self.std) else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


def summarise_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, SeedSummary]:
    """Return mean and standard deviation of every number that all runs have.

    Args:
      runs: one mapping name -> value per seed, such as the `summary` of their reports.
    Raises:
      DataError: there is no run, or a shared value is not a number.
    """
    if not runs:
        raise DataError("there are no runs to summarise")
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    summaries = {}
    for name in shared:
        try:
            values = np.array([float(run[name]) for run in runs])
        except (TypeError, ValueError):
            raise DataError(
                f"{name!r} is {[run[name] for run in runs]}; numbers are needed"
            ) from None
        std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        summaries[name] = SeedSummary(float(values.mean()), std, len(values))
    return summaries


def write_report(
    folder: str | Path,
    *,
    title: str,
    class_names: Sequence[str],
    settings: Mapping[str, object],
    detection: DetectionMetrics | None = None,
    corloc: CorLocMetrics | None = None,
    classification: np.ndarray | None = None,
    shares: Mapping[str, np.ndarray] | None = None,
    scalars: Mapping[str, float] | None = None,
    tables: Sequence[Table] = (),
    pictures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write `report.json` and `report.md` into a folder.

    Args:
      folder: made if it does not exist.
      title: first line.
      class_names: c names.
      settings: everything that decides the numbers: set and split, checkpoint and step, method and its variants,
        views, thresholds, AP mode, seed. Values are anything JSON can hold, or nested mappings.
      detection: AP per class and threshold.
      corloc: correct localisation per class.
      classification: [c] AP of the image-level scores, see `classification.classification_ap`.
      shares: further shares per class by name, [c] each; their means are in the summary under the same names.
      scalars: further numbers of the summary, by name, as they are.
      tables: shown after the classes.
      pictures: shown in order; links are relative to the folder, so folder and pictures move together.
      notes: sentences for the reader, such as counted skips.
    Returns:
      The path of `report.md`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = _columns(detection, corloc, classification)
    columns += [_Column(name, name, values) for name, values in (shares or {}).items()]
    summary = {column.mean_name: column.mean for column in columns}
    summary |= dict(scalars or {})
    notes = [*notes, *_left_out(detection, corloc, class_names)]
    content = {
        "title": title,
        "summary": summary,
        "settings": dict(settings),
        "per_class": [
            {
                "class": name,
                **{column.name: float(column.values[c]) for column in columns},
                **counts,
            }
            for c, (name, counts) in enumerate(
                zip(class_names, _counts(detection, corloc, len(class_names)), strict=True)
            )
        ],
        "iou_sweep": _sweep(detection),
        "tables": [
            {"title": table.title, "head": list(table.head), "rows": table.rows} for table in tables
        ],
        "notes": notes,
        "pictures": [
            {"path": _relative(picture.path, folder), "caption": picture.caption}
            for picture in pictures
        ],
    }
    content = _plain(content)
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path = folder / "report.md"
    path.write_text(_markdown(content, detection, columns), encoding="utf-8")
    return path


@dataclass(frozen=True)
class _Column:
    """A share per class: its name in the table, the name of its mean in the summary, [c] values."""

    name: str
    mean_name: str
    values: np.ndarray

    @property
    def mean(self) -> float:
        """The mean over the classes that have a value."""
        return float(mean_over_classes(np.asarray(self.values)))


def _columns(detection, corloc, classification) -> list[_Column]:
    """Return the shares per class that the report has."""
    columns = []
    if detection is not None:
        thrs = [round(100 * iou_thr) for iou_thr in detection.iou_thrs]
        columns.append(_Column(f"AP{thrs[0]}", f"mAP{thrs[0]}", detection.ap[:, 0]))
        if len(thrs) > 1:
            span = f"{min(thrs)}:{max(thrs)}"
            columns.append(_Column(f"AP{span}", f"mAP{span}", detection.ap.mean(axis=1)))
    if corloc is not None:
        columns.append(_Column("CorLoc", "CorLoc", corloc.corloc))
    if classification is not None:
        columns.append(_Column("image AP", "image mAP", np.asarray(classification)))
    return columns


def _sweep(detection: DetectionMetrics | None) -> dict[str, float]:
    """Return mAP by IoU threshold where there are several."""
    if detection is None or len(detection.iou_thrs) < 2:
        return {}
    means = detection.mean_ap.tolist()
    return {f"{thr:.2f}": mean for thr, mean in zip(detection.iou_thrs, means, strict=True)}


def _counts(detection, corloc, num_classes: int) -> list[dict[str, int]]:
    """Return per class the counts that the shares rest on."""
    counts = [{} for _ in range(num_classes)]
    for c in range(num_classes):
        if detection is not None:
            counts[c]["objects"] = int(detection.num_objects[c])
            counts[c]["difficult"] = int(detection.num_difficult[c])
            counts[c]["detections"] = int(detection.num_detections[c])
            counts[c]["hits"] = int(detection.hits[c, 0])
        if corloc is not None:
            counts[c]["images"] = int(corloc.num_images[c])
    return counts


def _left_out(detection, corloc, class_names) -> list[str]:
    """Say which classes the means leave out."""
    notes = []
    if detection is not None and detection.classes_without_objects:
        names = ", ".join(class_names[c] for c in detection.classes_without_objects)
        notes.append(f"No object that counts, so not in mAP: {names}.")
    if corloc is not None and (corloc.num_images == 0).any():
        names = ", ".join(class_names[c] for c in np.flatnonzero(corloc.num_images == 0))
        notes.append(f"In no image, so not in CorLoc: {names}.")
    return notes


def _relative(path: str | Path, folder: Path) -> str:
    """Return the link from the report to a file."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _plain(value):
    """Return `value` as JSON holds it: NaN and infinities become null, arrays lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal."""
    return "–" if value is None else f"{100 * value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _markdown(content: dict, detection: DetectionMetrics | None, columns: Sequence[_Column]) -> str:
    """Return the report for people."""
    sections = [f"# {content['title']}", "## Summary"]
    shares = {column.mean_name for column in columns}
    rows = [
        [name, f"{_percent(value)} %" if name in shares else _number(value)]
        for name, value in content["summary"].items()
    ]
    sections.append(_table(["number", "value"], rows))
    if detection is not None:
        thr = detection.iou_thrs[0]
        sections.append(
            f"AP is `{detection.ap_mode}`; AP{round(100 * thr)} counts a hit where IoU > {thr:.2f}. "
            f"{detection.num_images} images, {int(detection.num_objects.sum())} objects, and "
            f"{int(detection.num_difficult.sum())} difficult ones that count neither way."
        )
    if content["notes"]:
        sections.append("\n".join(f"- {note}" for note in content["notes"]))
    if content["per_class"]:
        sections += [
            "## Per class (shares in percent)",
            _class_table(content["per_class"], columns),
        ]
    if content["iou_sweep"]:
        rows = [list(content["iou_sweep"]), [_percent(v) for v in content["iou_sweep"].values()]]
        table = _table(["IoU >", *rows[0]], [["mAP", *rows[1]]])
        sections += ["## IoU thresholds (mAP in percent)", table]
    for extra in content["tables"]:
        rows = [[row[0], *map(_percent, row[1:])] for row in extra["rows"]]
        sections += [f"## {extra['title']} (percent)", _table(extra["head"], rows)]
    rows = [[f"`{key}`", f"`{value}`"] for key, value in _flat(content["settings"])]
    sections += ["## Settings", _table(["setting", "value"], rows)]
    if content["pictures"]:
        sections.append("## Pictures")
        sections += [
            f"![{picture['caption']}]({picture['path'].replace(' ', '%20')})\n\n{picture['caption']}"
            for picture in content["pictures"]
        ]
    return "\n\n".join(sections) + "\n"


def _class_table(per_class: list[dict], columns: Sequence[_Column]) -> str:
    """Return one row per class and the means."""
    names = [column.name for column in columns]
    counted = [key for key in per_class[0] if key not in ("class", *names)]
    rows = [
        [row["class"], *(_percent(row[key]) for key in names), *(str(row[key]) for key in counted)]
        for row in per_class
    ]
    means = [_percent(_plain(column.mean)) for column in columns]
    sums = [str(sum(row[key] for row in per_class)) for key in counted]
    rows.append(["**mean, sum**", *means, *sums])
    return _table(["class", *names, *counted], rows)


def _number(value: float | None) -> str:
    """Return a number with at most four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as dotted names and texts."""
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = json.dumps(value) if not isinstance(value, str) else value
            rows.append((f"{prefix}{key}", text.replace("|", "\\|").replace("\n", " ")))
    return rows
