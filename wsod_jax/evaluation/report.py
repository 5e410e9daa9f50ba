"""The report of one evaluation: numbers as JSON, the same for people as Markdown, and figures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsod_jax.evaluation.metrics.average_precision import mean_over_classes
from wsod_jax.files import atomic_write


@dataclass(frozen=True)
class Figure:
    """A figure of the report: a PNG or JPEG file and what it shows."""

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


@dataclass
class Evaluation:
    """What an evaluator found.

    Attributes:
      shares: name of a column -> name of its mean in the summary, and the share in [0, 1] of every class, [c]; NaN
        where a class has none, which the mean leaves out.
      overall: further shares in [0, 1] of the summary, by name.
      numbers: its other numbers, which are not shares.
      counts: name of a column -> what the shares of every class rest on, [c] int.
      iou_sweep: mAP by IoU threshold, where there are several.
      tables: shown after the classes.
      notes: sentences for the reader.
      left_out: why classes are in no mean, by class, [c] bool.
      detail: the metrics that figures are made of.
    """

    shares: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    overall: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    iou_sweep: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, np.ndarray] = field(default_factory=dict)
    detail: Any = None

    def add_share(self, name: str, values: np.ndarray, mean: str | None = None) -> None:
        """Add a column of shares; its mean has the same name unless another is given."""
        self.shares[name] = mean or name, np.asarray(values, np.float64)

    def without(self, what: str, classes: np.ndarray, name: str) -> None:
        """Note that a mean leaves out the classes, [c] bool, that are without something."""
        self.left_out[f"Without {what}, so not in {name}"] = np.asarray(classes)

    def of_pass(self, name: str) -> Evaluation:
        """Return the same with a pass's name before the names of all numbers and columns, and before the notes."""

        def named(values: Mapping[str, Any]) -> dict[str, Any]:
            return {f"{name} {key}": value for key, value in values.items()}

        shares = {key: (f"{name} {mean}", values) for key, (mean, values) in self.shares.items()}
        return dataclasses.replace(
            self,
            shares=named(shares),
            numbers=named(self.numbers),
            overall=named(self.overall),
            counts=named(self.counts),
            left_out=named(self.left_out),
            notes=[f"{name}: {note}" for note in self.notes],
        )

    @property
    def summary(self) -> dict[str, float]:
        """Means of the shares, those of no class, and the other numbers."""
        means = {mean: float(mean_over_classes(values)) for mean, values in self.shares.values()}
        return means | self.overall | self.numbers


@dataclass(frozen=True)
class Report:
    """The report of one evaluation.

    Attributes:
      title: first line.
      class_names: c names.
      settings: everything that decides the numbers: set and split, checkpoint and step, method and its variants, views,
        thresholds, AP mode, seed. Values are anything JSON can hold, or nested mappings.
      evaluations: in the order to show.
      numbers: further numbers of the summary, by name.
      left_out: what the numbers do not see, said before them: images that are missing or could not be read.
      notes: sentences for the reader.
      tables: further tables.
    """

    title: str
    class_names: Sequence[str]
    settings: Mapping[str, object]
    evaluations: Sequence[Evaluation] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()

    @property
    def summary(self) -> dict[str, float]:
        """Every number by name; NaN where there is none."""
        parts = [evaluation.summary for evaluation in self.evaluations]
        return {name: value for part in [*parts, self.numbers] for name, value in part.items()}

    def content(self) -> dict:
        """Return the report as JSON holds it, without its figures."""
        notes = [*self.notes]
        for evaluation in self.evaluations:
            notes += evaluation.notes
            for reason, classes in evaluation.left_out.items():
                names = ", ".join(self.class_names[c] for c in np.flatnonzero(classes))
                notes += [f"{reason}: {names}."] if names else []
        columns = {
            name: values
            for evaluation in self.evaluations
            for name, values in (
                *((name, values) for name, (_, values) in evaluation.shares.items()),
                *evaluation.counts.items(),
            )
        }
        tables = [table for evaluation in self.evaluations for table in evaluation.tables]
        sweeps = [evaluation.iou_sweep for evaluation in self.evaluations if evaluation.iou_sweep]
        return _plain(
            {
                "title": self.title,
                "left_out": list(self.left_out),
                "summary": self.summary,
                "settings": dict(self.settings),
                "per_class": [
                    {"class": name, **{key: values[c] for key, values in columns.items()}}
                    for c, name in enumerate(self.class_names if columns else ())
                ],
                "iou_sweep": sweeps[0] if sweeps else {},
                "tables": [
                    {"title": table.title, "head": list(table.head), "rows": table.rows}
                    for table in (*tables, *self.tables)
                ],
                "notes": notes,
            }
        )


def write_report(folder: str | Path, report: Report, figures: Sequence[Figure] = ()) -> Path:
    """Write `report.json` and `report.md` into a folder, which is made if it does not exist.

    Args:
      folder: where to.
      report: what to write.
      figures: shown in order; links are relative to the folder, so that the folder can be moved with its figures.

    Returns:
      The path of `report.md`.
    """
    folder, content = Path(folder), report.content()
    content["figures"] = [
        {"path": _relative(figure.path, folder), "caption": figure.caption} for figure in figures
    ]
    columns = {name: mean for e in report.evaluations for name, (mean, _) in e.shares.items()}
    overall = {name for e in report.evaluations for name in e.overall}
    with atomic_write(folder / "report.json") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    with atomic_write(folder / "report.md") as file:
        file.write(_markdown(content, overall | {*columns.values()}, columns))
    return folder / "report.md"


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


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, numbers right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _markdown(content: dict, shares: set[str], columns: Mapping[str, str]) -> str:
    """Return the report for people; `shares` are numbers of the summary in percent, `columns`: column -> its mean."""
    sections = [f"# {content['title']}", *(f"**{text}**" for text in content["left_out"])]
    rows = [
        [name, _number(value) if value is None or name not in shares else f"{_percent(value)} %"]
        for name, value in content["summary"].items()
    ]
    sections += ["## Summary", markdown_table(["number", "value"], rows)]
    if content["notes"]:
        sections.append("\n".join(f"- {note}" for note in content["notes"]))
    if content["per_class"]:
        sections += ["## Per class (shares in percent)", _class_table(content, columns)]
    if content["iou_sweep"]:
        rows = [list(content["iou_sweep"]), [_percent(v) for v in content["iou_sweep"].values()]]
        table = markdown_table(["IoU >", *rows[0]], [["mAP", *rows[1]]])
        sections += ["## IoU thresholds (mAP in percent)", table]
    for extra in content["tables"]:
        rows = [[row[0], *map(_percent, row[1:])] for row in extra["rows"]]
        sections += [f"## {extra['title']} (percent)", markdown_table(extra["head"], rows)]
    rows = [[f"`{key}`", f"`{value}`"] for key, value in _flat(content["settings"])]
    sections += ["## Settings", markdown_table(["setting", "value"], rows)]
    if content["figures"]:
        sections.append("## Figures")
        sections += [
            f"![{figure['caption']}]({figure['path'].replace(' ', '%20')})\n\n{figure['caption']}"
            for figure in content["figures"]
        ]
    return "\n\n".join(sections) + "\n"


def _class_table(content: dict, columns: Mapping[str, str]) -> str:
    """Return one row per class, and the means and sums."""
    per_class = content["per_class"]
    names = [key for key in per_class[0] if key != "class"]
    rows = [
        [row["class"], *(_percent(row[n]) if n in columns else str(row[n]) for n in names)]
        for row in per_class
    ]
    last = [
        _percent(content["summary"][columns[name]])
        if name in columns
        else str(sum(row[name] for row in per_class))
        for name in names
    ]
    return markdown_table(["class", *names], [*rows, ["**mean, sum**", *last]])


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
