"""Charts: precision and recall, training curves, instances per class, Object Energy, walks of proposal maps.

Every function that plots returns [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsod_jax.errors import DataError
from wsod_jax.viz.canvas import CLASS_COLORS
from wsod_jax.viz.fonts import families, shown_names

COLORS = tuple(tuple(part / 255 for part in color) for color in CLASS_COLORS)
LINE_STYLES = ("-", "--", ":", "-.")
UNIFORM = {"color": "0.45", "linewidth": 1.2, "linestyle": ":"}


def _figure(width: float, height: float, rows: int = 1, columns: int = 1):
    """Return a figure of that size in inches and its axes, [rows * columns], without any global state."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _pixels(figure: Figure) -> np.ndarray:
    """Return the figure as [H, W, 3] uint8 RGB."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _style(index: int) -> dict:
    """Return color and line style of the i-th line: the pairs differ for the first 28."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)],
    }


def plot_precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    ap: Mapping[str, float] | None = None,
    title: str = "",
) -> np.ndarray:
    """Plot precision over recall, one line per class.

    Args:
      curves: name -> (recall [m], precision [m]), in descending score.
      ap: name -> average precision in [0, 1], shown in the legend; NaN where there is none.
    """
    with matplotlib.rc_context({"font.family": families(curves)}):
        return _precision_recall(curves, ap, title)


def _precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ap: Mapping[str, float] | None,
    title: str,
) -> np.ndarray:
    figure, (ax,) = _figure(8.0, 5.0)
    for index, (name, (recall, precision)) in enumerate(curves.items()):
        value = math.nan if ap is None else ap.get(name, math.nan)
        label = name if math.isnan(value) else f"{name} ({100 * value:.1f})"
        ax.plot(
            recall, precision, label=label, linewidth=1.6, drawstyle="steps-pre", **_style(index)
        )
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    if curves:
        columns = 1 + (len(curves) - 1) // 20
        ax.legend(
            loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, ncols=columns
        )
    return _pixels(figure)


def metric_series(
    entries: Iterable[Mapping[str, float]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Turn a run's entries into one series per scalar.

    Args:
      entries: mappings with "step" and numbers by name, as the lines of `metrics.jsonl` hold them. Where a step
        occurs twice, after a restart, the later entry counts.
    Returns:
      name -> (steps [m] int ascending, values [m] float64).
    Raises:
      DataError: an entry has no step.
    """
    series: dict[str, dict[int, float]] = {}
    for number, entry in enumerate(entries, start=1):
        if "step" not in entry:
            raise DataError(f"entry {number} of the metrics has no step; it holds {sorted(entry)}")
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, {})[int(entry["step"])] = float(value)
    return {
        name: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
        for name, points in series.items()
    }


def plot_training(
    runs: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    names: Sequence[str] | None = None,
    smoothing: int = 1,
) -> np.ndarray:
    """Plot the scalars of one or more runs over their steps, one small plot per scalar.

    Args:
      runs: label -> what `metric_series` returned.
      names: scalars to show, in order; a name that ends in "/" stands for all that start with it. All that change if
        not given.
      smoothing: running mean over this many points; the raw values stay visible in pale.
    Raises:
      DataError: no run has any of the scalars.
    """
    known = sorted({name for series in runs.values() for name in series})
    if names is not None:
        chosen = [
            k
            for name in names
            for k in known
            if k == name or name[-1:] == "/" and k.startswith(name)
        ]
    else:
        chosen = [
            name
            for name in known
            if any(np.ptp(series[name][1]) > 0 for series in runs.values() if name in series)
        ]
    if not chosen:
        raise DataError(
            f"nothing to plot of {list(names) if names else 'scalars that change'}; the runs have {known}"
        )
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = _figure(4.4 * columns, 2.9 * rows + 0.5, rows, columns)
    for ax, name in zip(axes, chosen, strict=False):
        for index, (label, series) in enumerate(runs.items()):
            if name not in series:
                continue
            steps, values = series[name]
            style = _style(index)
            if smoothing > 1:
                ax.plot(steps, values, linewidth=0.8, alpha=0.25, **style)
                values = _running_mean(values, smoothing)
            marker = "o" if len(steps) < 3 else None
            ax.plot(steps, values, label=label, linewidth=1.5, marker=marker, **style)
        ax.set_title(name, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.set_xlabel("step", fontsize=8)
    for ax in axes[len(chosen) :]:
        ax.set_visible(False)
    if len(runs) > 1:
        lines = {line.get_label(): line for ax in axes for line in ax.get_lines()}
        lines = {label: lines[label] for label in runs if label in lines}
        figure.legend(
            lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False
        )
    return _pixels(figure)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over the last `window` points, or as many as there are; NaN stays where all are NaN."""
    real = ~np.isnan(values)
    total = np.cumsum(np.where(real, values, 0.0))
    count = np.cumsum(real)
    total[window:], count[window:] = (
        total[window:] - total[:-window],
        count[window:] - count[:-window],
    )
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def plot_instances(
    counts: Mapping[str, np.ndarray], class_names: Sequence[str], *, title: str = ""
) -> np.ndarray:
    """Plot, per class, the mean number of objects in the images that contain the class.

    Args:
      counts: set name -> [n, c] objects of each class in each image, such as `GroundTruth.counts()`. The sets share
        their classes.
      class_names: c names.
    Returns:
      [H, W, 3] uint8 RGB, one group of bars per class; no bar for a class without objects.

    Source: Lin et al. 2020 (OIM), figure 5.
    """
    class_names = shown_names(class_names)
    with matplotlib.rc_context({"font.family": families(class_names)}):
        return _instances(counts, class_names, title)


def _instances(
    counts: Mapping[str, np.ndarray], class_names: Sequence[str], title: str
) -> np.ndarray:
    classes = len(class_names)
    figure, (ax,) = _figure(max(5.0, 1.8 + 0.5 * classes * max(1, len(counts)) ** 0.5), 3.8)
    width = 0.8 / max(len(counts), 1)
    highest = 1.0
    for index, (name, table) in enumerate(counts.items()):
        table = np.asarray(table)
        if table.ndim != 2 or table.shape[1] != classes:
            raise DataError(
                f"counts of {name!r} have shape {table.shape}, needed [images, {classes}]"
            )
        images = (table > 0).sum(axis=0)
        ratio = np.where(images > 0, table.sum(axis=0) / np.maximum(images, 1), 0.0)
        x = np.arange(classes) + (index - (len(counts) - 1) / 2) * width
        bars = ax.bar(x, ratio, width, label=name, color=COLORS[index % len(COLORS)])
        texts = [f"{value:.1f}" if value else "" for value in ratio]
        ax.bar_label(bars, texts, fontsize=8, padding=1)
        highest = max(highest, float(ratio.max(initial=0)))
    ax.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
    ax.set_xticks(
        np.arange(classes),
        class_names,
        rotation=40 if classes > 6 else 0,
        ha="right" if classes > 6 else "center",
    )
    ax.set(ylabel="objects per image with the class", ylim=(0, 1.12 * highest), title=title)
    ax.grid(visible=False, axis="x")
    if len(counts) > 1:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _pixels(figure)


def plot_energy_by_size(
    methods: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], *, title: str = ""
) -> np.ndarray:
    """Plot Object Energy over the share of the image that objects cover: a dot per image, a curve per method.

    Args:
      methods: name -> (shares [n] in [0, 1], energies [n] in [0, 1] with NaN for images left out, coefficients of
        the fitted polynomial in ascending powers).
    Returns:
      [H, W, 3] uint8 RGB. The curves reach as far as the dots; a uniform map lies on the diagonal.

    Source: Zhu et al. 2017 (SPN), figure 6 (a).
    """
    figure, (ax,) = _figure(8.6, 5.2)
    ax.plot((0, 100), (0, 100), label="a uniform map", **UNIFORM)
    widest = 0.0
    for index, (name, (shares, energies, coefficients)) in enumerate(methods.items()):
        real = ~np.isnan(energies)
        if not real.any():
            continue
        x, y, style = shares[real], energies[real], _style(index)
        size = float(np.clip(3000 / len(x), 3, 16))
        ax.scatter(100 * x, 100 * y, size, color=style["color"], alpha=0.4, linewidths=0)
        along = np.linspace(x.min(), x.max(), 200)
        fit = np.clip(np.polynomial.polynomial.polyval(along, coefficients), 0, 1)
        label = f"{name}: mean {100 * y.mean():.1f}"
        ax.plot(100 * along, 100 * fit, label=label, linewidth=2.2, **style)
        widest = max(widest, float(x.max()))
    ax.set(
        xlim=(0, 10 * math.ceil(10 * widest) or 100),
        ylim=(0, 100),
        xlabel="area of the objects, % of the image",
        ylabel="Object Energy, %",
        title=title,
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    return _pixels(figure)


def plot_energy_over_training(
    runs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    levels: Mapping[str, float],
    *,
    uniform: float = math.nan,
    title: str = "",
) -> np.ndarray:
    """Plot mean Object Energy over training steps, and that of methods that do not train as horizontal lines.

    Args:
      runs: name -> (steps [m], mean energies [m] in [0, 1]).
      levels: name -> mean energy in [0, 1].
      uniform: mean energy of a uniform map; NaN draws none.

    Source: Zhu et al. 2017 (SPN), figure 6 (b).
    """
    figure, (ax,) = _figure(8.6, 4.6)
    for index, (name, (steps, values)) in enumerate(runs.items()):
        label = f"{name}: last {100 * values[-1]:.1f}"
        ax.plot(steps, 100 * values, label=label, linewidth=1.8, marker="o", ms=4, **_style(index))
    for index, (name, value) in enumerate(levels.items(), start=len(runs)):
        style = {**_style(index), "linestyle": "--"}
        ax.axhline(100 * value, label=f"{name}: {100 * value:.1f}", linewidth=1.5, **style)
    if not math.isnan(uniform):
        ax.axhline(100 * uniform, label=f"a uniform map: {100 * uniform:.1f}", **UNIFORM)
    ax.set(xlabel="step", ylabel="mean Object Energy, %", title=title)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    return _pixels(figure)


def plot_walks(
    moved: np.ndarray, apart: np.ndarray, *, tolerance: float, num_steps: int
) -> np.ndarray:
    """Plot how random walks settle, or oscillate: a pale line per image and their median.

    Args:
      moved: [n, k] how far each step moves the map, ‖D M − M‖₂.
      apart: [n, k + 1] how far it is from the stationary map, as a share of that map's maximum.
      tolerance: of `moved`, below which a walk ends.
      num_steps: the most steps that the network takes.
    """
    figure, axes = _figure(10.5, 4.0, 1, 2)
    for ax, values, label, lowest in (
        (axes[0], moved, "change by the next step, ‖D M − M‖", 1e-7),  # below float32's precision
        (axes[1], 100 * apart, "distance to the stationary map,\n% of its maximum", 1e-4),
    ):
        values = np.maximum(values, lowest)
        steps, ink = np.arange(values.shape[1]), COLORS[0]
        for row in values:
            (line,) = ax.plot(steps, row, color=ink, linewidth=0.8, alpha=0.35)
        line.set_label("one image")
        ax.plot(steps, np.median(values, axis=0), color=ink, linewidth=2.2, label="median")
        ax.axvline(num_steps, label=f"{num_steps} steps", **UNIFORM)
        ax.set(xlabel="steps of the walk", ylabel=label, yscale="log")
    axes[0].axhline(
        tolerance, color=COLORS[5], linewidth=1.2, linestyle="--", label=f"tolerance {tolerance:g}"
    )
    axes[0].legend(frameon=False, fontsize=9)
    return _pixels(figure)
