"""Train and evaluate every method of a small set with several seeds, and tabulate the scores.

    wsod-jax sweep cards6 --runs runs/cards6               # 8 methods x 3 seeds, about 4 minutes each
    wsod-jax sweep synthetic --runs runs/synthetic --methods wsddn oim_ir --seeds 0
    wsod-jax sweep spn_cards6 --energy_of data/proposals/cards6_selective_search.npz
    wsod-jax sweep --table                                 # only rewrite the tables

Each finished run leaves one row, results/<set>/<method>-seed<n>.json; runs that have one are skipped, an interrupted
run resumes. The tables of docs/results.md and README.md are written from the rows, and say which are missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wsod_jax.commands.command_line import add_set_argument, make_parser, run_command
from wsod_jax.commands.seeds import paired_differences, summarize_seeds
from wsod_jax.commands.sweep_sets import SETS, Sweep
from wsod_jax.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(run, parse_arguments(arguments))


def run(args: argparse.Namespace) -> None:
    """Train and evaluate what is asked for, and write the tables after every run."""
    if not (ROOT / "docs/results.md").is_file():
        raise DataError(
            f"sweep writes into the results/ and docs/ of a checkout, and {ROOT} is not one; clone the repository "
            "and install it with pip install -e ."
        )
    if not args.table:
        settings = [f"--config.{setting}" for setting in args.set]
        runs = Path(args.runs or f"runs/{args.data_set}")
        for seed in args.seeds:
            for method in args.methods:
                run_one(args.data_set, method, seed, runs, settings, args.energy_of)
                write_tables()
    write_tables()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for; exit with status 2 if options do not go together."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "data_set",
        nargs="?",
        choices=SETS,
        metavar="set",
        help="which set; its configuration has the same name",
    )
    parser.add_argument("--methods", nargs="+", help="variants of the config (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", help="folder for the workdirs (default runs/<set>)")
    parser.add_argument("--table", action="store_true", help="train nothing, write the tables")
    add_set_argument(
        parser,
        "change a setting of every run, e.g. --set data.root=/data/VOCdevkit (repeatable)",
    )
    parser.add_argument(
        "--energy_of", help="sets without proposals: a proposals file to measure the energy of"
    )
    args = parser.parse_args(arguments)
    if args.table:
        return args
    if args.data_set is None:
        parser.error("name a set, or give --table")
    known = list(SETS[args.data_set].methods)
    args.methods = args.methods or known
    unknown = [method for method in args.methods if method not in known]
    if unknown:
        parser.error(f"{args.data_set} has no {unknown[0]!r}; choose out of {', '.join(known)}")
    return args


def row_path(data_set: str, method: str, seed: int) -> Path:
    """Return where the row of a run lies."""
    return ROOT / "results" / data_set / f"{method}-seed{seed}.json"


def run_one(
    data_set: str,
    method: str,
    seed: int,
    runs: Path,
    settings: list[str],
    energy_of: str | None = None,
) -> None:
    """Train and evaluate one run, and write its row; do nothing if the row is there."""
    from wsod_jax import build
    from wsod_jax.commands.benchmarks.timing import hardware
    from wsod_jax.config import overrides
    from wsod_jax.files import array_checksum
    from wsod_jax.runs.training import INSTALLED_WEIGHTS
    from wsod_jax.train.checkpoint import checkpoint_steps
    from wsod_jax.train.init_from import read_sources

    row = row_path(data_set, method, seed)
    if row.exists():
        print(f"{row.relative_to(ROOT)}: done")
        return
    workdir = runs / f"{method}-seed{seed}"
    started = time.time()
    python = [sys.executable, "-u", "-m", "wsod_jax"]
    train = [
        "train",
        f"--config={data_set}:{method}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        *pretrained(data_set, seed, settings),
        *settings,
    ]
    call(python + train)
    stored = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    config = build.read_config(stored)
    num_steps = config.train.num_steps
    if num_steps not in checkpoint_steps(
        workdir
    ):  # an interrupted run saves and ends without error
        sys.exit(f"{workdir} stopped before step {num_steps}; the same command goes on with it")
    trained = time.time()
    evaluate = ["evaluate", "--workdir", str(workdir)]
    if method in SETS[data_set].compare:
        evaluate.append("--compare")
        evaluate += ["--energy_of", energy_of] if energy_of else []
    call(python + evaluate)
    path = workdir / "evaluation" / str(num_steps) / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    content = {
        "set": data_set,
        "method": method,
        "seed": seed,
        "left_out": report["left_out"],
        "summary": report["summary"],
        "settings": without_locations(report["settings"], overrides.locations(config)),
        "per_class": report["per_class"],
        "tables": report["tables"],
        "train_seconds": round(trained - started),
        "evaluate_seconds": round(time.time() - trained),
        "hardware": hardware(),
        "weights": [
            array_checksum(dict(source.arrays))
            for source in read_sources(config.train.init_from, named=INSTALLED_WEIGHTS)
        ],
    }
    row.parent.mkdir(parents=True, exist_ok=True)
    row.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"row: {row}")


def pretrained(data_set: str, seed: int, settings: Sequence[str]) -> list[str]:
    """Return the setting that starts a run from the backbone pretrained with its seed, if the set has one for each.

    Raises:
      DataError: there is none yet.
    """
    pattern = SETS[data_set].weights
    if not pattern or any(one.startswith("--config.train.init_from") for one in settings):
        return []
    path = Path(pattern.format(suffix=f"-seed{seed}" if seed else ""))
    if not path.exists():
        raise DataError(
            f"{path}, the backbone pretrained with seed {seed}, is missing; `wsod-jax demo --seeds 0 {seed}` makes it"
        )
    return [f"--config.train.init_from={path}"]


def call(command: list[str]) -> None:
    """Run a command; end with its status if it fails, whose messages say why."""
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


def without_locations(settings: dict, locations: Sequence[str]) -> dict:
    """Return a report's settings without those of some dotted names, where files lie on one machine."""
    kept = dict(settings)
    for name in locations:
        section, key = name.split(".")
        if isinstance(kept.get(section), dict):
            kept[section] = {k: v for k, v in kept[section].items() if k != key}
    return kept


def write_tables() -> None:
    """Write the tables into docs/results.md and README.md, between their markers."""
    texts = {
        "docs/results.md": "\n\n".join(table(data_set) for data_set in SETS),
        "README.md": table("cards6", pairs=False),
    }
    for name, text in texts.items():
        path = ROOT / name
        content = path.read_text(encoding="utf-8")
        head, _, rest = content.partition(BEGIN)
        _, _, tail = rest.partition(END)
        path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def table(data_set: str, seeds: tuple[int, ...] = (0, 1, 2), *, pairs: bool = True) -> str:
    """Return one set's tables in Markdown: every method over the finished seeds, and pairs of methods if wanted."""
    sweep = SETS[data_set]
    lines = [
        f"**{sweep.title}**, percent, mean ± standard deviation over seeds",
        "",
        f"| method | {' | '.join(sweep.columns)} | seeds | minutes a run |",
        f"|---|{'---|' * (len(sweep.columns) + 2)}",
    ]
    rows = {method: read_rows(data_set, method, seeds) for method in sweep.methods}
    left_out: list[str] = []
    for method, name in sweep.methods.items():
        found = list(rows[method].values())
        lines.append(f"| {name} | {' | '.join(cells(found, sweep.columns, len(seeds)))} |")
        if method in sweep.compare:
            lines += baseline_lines(found, sweep, len(seeds))
        left_out += (f"{name}: {text}" for row in found for text in row.get("left_out", ()))
    if pairs:
        lines += differences(sweep, rows, len(seeds))
    lines += ["", *dict.fromkeys(left_out)] if left_out else []
    return "\n".join([*lines, *(["", ran_on(rows)] if pairs else [])])


def differences(sweep: Sweep, rows: dict[str, dict[int, dict]], wanted: int) -> list[str]:
    """Return the lines of the table that compares pairs of methods, seed by seed, from the same weights alone."""
    lines = ["", "Differences of runs with the same seed, mean ± standard error:", ""]
    lines += [
        f"| pair | {' | '.join(sweep.columns)} | seeds |",
        f"|---|{'---|' * (len(sweep.columns) + 1)}",
    ]
    for method, other in sweep.pairs:
        seeds = [
            seed
            for seed in rows[method].keys() & rows[other].keys()
            if same_weights(sweep, rows[method][seed], rows[other][seed])
        ]
        first, second = ({s: rows[m][s]["summary"] for s in seeds} for m in (other, method))
        gains = paired_differences(first, second, sweep.columns)
        values = [gains[c].as_difference() if c in gains else "–" for c in sweep.columns]
        pair = f"{sweep.methods[method]} − {sweep.methods[other]}"
        lines.append(f"| {pair} | {' | '.join(values)} | {len(seeds)} of {wanted} |")
    return lines


def same_weights(sweep: Sweep, row: dict, other: dict) -> bool:
    """Return whether two runs started from the same weights; older rows of a set that has but one do not name them."""
    named = [one["weights"] for one in (row, other) if "weights" in one]
    return named[:1] == named[1:] or (not sweep.weights and len(named) < 2)


def read_rows(data_set: str, method: str, seeds: Sequence[int]) -> dict[int, dict]:
    """Return the rows of a method's finished seeds, by seed."""
    paths = {seed: row_path(data_set, method, seed) for seed in seeds}
    return {
        seed: json.loads(path.read_text(encoding="utf-8"))
        for seed, path in paths.items()
        if path.exists()
    }


def ran_on(rows: dict[str, dict[int, dict]]) -> str:
    """Return a sentence that says on what the rows ran, by method and seed."""

    def name(hardware: dict | str) -> str:
        if isinstance(hardware, str):  # of version 0.1
            return hardware
        return (
            f"{hardware['cpu']} ({hardware['instructions']}, {hardware['cpu_cores']} cores), "
            f"jax {hardware['jax']}"
        )

    counts = Counter(name(row["hardware"]) for found in rows.values() for row in found.values())
    return "Ran on " + "; ".join(f"{text}: {count} rows" for text, count in counts.items()) + "."


def cells(rows: list[dict], columns: tuple[str, ...], wanted: int) -> list[str]:
    """Return the cells of one method."""
    if not rows:
        return ["not run"] * len(columns) + [f"0 of {wanted}", ""]
    minutes = sum(row["train_seconds"] + row["evaluate_seconds"] for row in rows) / len(rows) / 60
    shown = [{k: v for k, v in row["summary"].items() if k in columns} for row in rows]
    summary = summarize_seeds(shown)
    values = [summary[name].as_percent() if name in summary else "–" for name in columns]
    return [*values, f"{len(rows)} of {wanted}", f"{minutes:.1f}"]


def baseline_lines(rows: list[dict], sweep: Sweep, wanted: int) -> list[str]:
    """Return the lines of the baselines that the runs of one method were compared with."""
    lines = []
    for start, name in sweep.baselines.items():
        found = []
        for row in rows:
            for compared in row["tables"]:
                found += [
                    {k: v for k, v in zip(compared["head"], values, strict=True) if v is not None}
                    for values in compared["rows"]
                    if values[0].startswith(start)
                ]
        summary = summarize_seeds([{k: v for k, v in one.items() if k} for one in found] or [{}])
        values = [
            summary[column].as_percent() if column in summary else "–" for column in sweep.columns
        ]
        lines.append(f"| {name} | {' | '.join([*values, f'{len(found)} of {wanted}', ''])} |")
    return lines
