"""What the demo ends with: scores of its methods, checksums of its stages, and one page with both and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wsod_jax.commands.benchmarks.timing import hardware
from wsod_jax.commands.seeds import paired_differences, summarize_seeds

METHODS = {"wsddn": "WSDDN", "oim_ir": "OIM+IR"}
FIGURES = {
    "objectness": "Where scores gather over training",
    "graphs": "How OIM finds further instances",
}
MEASURES = ("mAP50", "CorLoc")


def stage_checksums(
    data: Mapping[str, Path],
    proposals: Path,
    pretraining: Mapping[str, Path],
    weights: Mapping[str, Path],
    training: Mapping[str, Path],
) -> dict[str, str]:
    """Return what tells at which stage two demos part, in the order of the stages.

    Args:
      data: name -> root of each rendered set.
      proposals: the proposals' file.
      pretraining: name -> workdir of each run that pretrains.
      weights: name -> file of pretrained weights.
      training: name -> workdir of each run that starts from such weights.

    Returns:
      Stage -> the first 12 digits of a SHA-256 checksum, of each set's image and annotation files, of the proposals
      and of the weights; and the first loss of each run, with all its digits.
    """
    import numpy as np

    from wsod_jax.data.proposals.proposal_set import ProposalSet
    from wsod_jax.files import array_checksum
    from wsod_jax.train.logging import read_jsonl
    from wsod_jax.train.weights import load_weights

    def short(checksum: str) -> str:
        return checksum.removeprefix("sha256:")[:12]

    def first_losses(runs: Mapping[str, Path]) -> dict[str, str]:
        entries = {name: read_jsonl(path / "metrics.jsonl")[0] for name, path in runs.items()}
        return {f"{name}, first loss": repr(entry["loss"]) for name, entry in entries.items()}

    found = {}
    for name, root in data.items():
        files = [p for folder in ("JPEGImages", "Annotations") for p in (root / folder).iterdir()]
        found[name] = short(array_checksum({p.name: np.fromfile(p, np.uint8) for p in files}))
    boxes = ProposalSet.load(proposals)
    found["proposals"] = short(array_checksum({name: boxes.get(name) for name in boxes.ids}))
    found |= first_losses(pretraining)
    found |= {name: short(load_weights(path)[1]["checksum"]) for name, path in weights.items()}
    return found | first_losses(training)


def score_table(summaries: dict[str, list[dict[str, float]]], seeds: Sequence[int]) -> str:
    """Return the methods' scores in percent over seeds, and what the second gains, as a Markdown table."""
    rows = []
    for method, found in summaries.items():
        scores = summarize_seeds(
            [{m: one[m] for m in MEASURES if one.get(m) is not None} for one in found]
        )
        cells = (scores[m].as_percent() if m in scores else "–" for m in MEASURES)
        rows.append([METHODS[method], *cells])
    by_seed = [dict(zip(seeds, found, strict=True)) for found in summaries.values()]
    gains = paired_differences(*by_seed, MEASURES)
    rows.append(["gain", *(gains[m].as_difference() if m in gains else "–" for m in MEASURES)])
    lines = [
        f"| {name:8s} | {' | '.join(f'{cell:>12s}' for cell in cells)} |" for name, *cells in rows
    ]
    head = [f"| {'':8s} | {' | '.join(f'{m:>12s}' for m in MEASURES)} |", "|---|---:|---:|"]
    return "\n".join(head + lines)


def write_report(
    out: Path,
    reports: dict[str, list[dict]],
    evaluations: dict[str, list[Path]],
    table: str,
    checksums: dict[str, str],
    log: dict,
    seeds: Sequence[int],
    small: bool,
) -> Path:
    """Write one page with the scores of both methods and the figures of the first seed; return its path.

    Args:
      out: folder of the demo.
      reports: method -> its report with each seed.
      evaluations: method -> the files of these.
      table: the scores.
      checksums: stage -> checksum.
      log: title of a step -> its entry, with "seconds".
      seeds: of the reports, in their order.
      small: whether this was the small demo.
    """
    lines = [
        "# Boxes from image labels",
        "A small run to see that everything works: these scores mean nothing." if small else "",
        table,
        "mAP50: average precision on test images; a true positive overlaps its object by IoU > 0.5. CorLoc: share of "
        "training images, per class, whose best box does. In percent. No box was seen in training.",
        f"Mean ± standard deviation over {len(seeds)} seeds of pretraining and training; the gain is the mean "
        "difference of two runs with the same seed ± its standard error.",
    ]
    for method, (report, *_) in reports.items():
        folders = [path.parent.relative_to(out).as_posix() for path in evaluations[method]]
        links = (
            f"[seed {seed}]({folder}/report.md)"
            for seed, folder in zip(seeds, folders, strict=True)
        )
        lines += [f"## {METHODS[method]}", f"All numbers: {', '.join(links)}"]
        folder = folders[0]
        for figure in report["figures"]:
            lines += [f"![{figure['caption']}]({folder}/{figure['path']})", figure["caption"]]
        sheet = pseudo_sheet(out / method)
        if sheet is not None:
            lines += [
                f"![Pseudo boxes]({sheet.relative_to(out).as_posix()})",
                "The boxes it taught itself with, over training: the best of each class blue, further instances red.",
            ]
    for folder, caption in FIGURES.items():
        if (out / folder / "sheet.png").is_file():
            lines += [f"## {caption}", f"![{caption}]({folder}/sheet.png)"]
    lines += [
        "## Checksums",
        "Compare two machines row by row: the first row that differs is the stage at which they part. Pixels and "
        "proposals are the same on every x86 instruction set; the networks' sums are not, and training amplifies that.",
        "This ran on: " + ", ".join(f"{name} {value}" for name, value in hardware().items()),
        "| stage | checksum |\n|---|---|",
    ]
    lines[-1] += "".join(f"\n| {stage} | {checksum} |" for stage, checksum in checksums.items())
    lines += ["## Steps", "| step | seconds |\n|---|---:|"]
    lines[-1] += "".join(f"\n| {title} | {entry['seconds']:.0f} |" for title, entry in log.items())
    path = out / "report.md"
    path.write_text("\n\n".join(line for line in lines if line) + "\n", encoding="utf-8")
    return path


def pseudo_sheet(workdir: Path, num_images: int = 4) -> Path | None:
    """Put a run's figures of pseudo boxes on a sheet, a row per image; `None` if it drew none."""
    from wsod_jax.data.images import read_image
    from wsod_jax.viz import contact_sheet, save_image  # matplotlib takes long to import

    rows: dict[str, list[Path]] = {}
    for path in sorted((workdir / "figures").glob("*.png")):
        rows.setdefault(path.stem.partition("_")[2], []).append(path)
    chosen = [path for row in list(rows.values())[:num_images] for path in row]
    if not chosen:
        return None
    columns = max(len(row) for row in rows.values())
    parts = [path.stem.partition("_") for path in chosen]
    captions = [f"update {int(update)}, image {name}" for update, _, name in parts]
    sheet = contact_sheet([read_image(path) for path in chosen], captions=captions, columns=columns)
    return save_image(workdir / "pseudo_boxes.png", sheet)
