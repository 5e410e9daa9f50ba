"""Train and evaluate every method of a small set with several seeds, and tabulate what is finished.

    python scripts/sweep.py cards6 --runs runs/cards6               # 6 methods x 3 seeds, about 4 minutes each
    python scripts/sweep.py synthetic --runs runs/synthetic --methods wsddn oim_ir --seeds 0
    python scripts/sweep.py --table                                 # only rewrite the tables

Each finished run leaves one row, results/<set>/<method>-seed<n>.json; runs that have one are skipped, an interrupted
run resumes. The tables of docs/results.md and README.md are written from the rows, and say which are missing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from wsod_jax.evals.report import summarise_seeds
from wsod_jax.experiment import LOCATIONS
from wsod_jax.train.checkpoint import checkpoint_steps

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "wsddn": "WSDDN",
    "oicr": "OICR",
    "pcl": "PCL",
    "mist": "MIST",
    "oim": "OIM",
    "oim_ir": "OIM+IR",
}
SETS = {"cards6": "cards6 (SqueezeNet 1.1)", "synthetic": "synthetic set (tiny backbone)"}
COLUMNS = ("mAP50", "CorLoc", "image mAP", "top box size ratio")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main():
    args = parse_arguments()
    if not args.table:
        for seed in args.seeds:
            for method in args.methods:
                run_one(
                    args.set, method, seed, Path(args.runs or f"runs/{args.set}"), args.override
                )
                write_tables()
    write_tables()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "set", nargs="?", choices=SETS, help="which set; its config is configs/<set>.py"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", help="folder for the workdirs (default runs/<set>)")
    parser.add_argument("--table", action="store_true", help="train nothing, write the tables")
    parser.add_argument(
        "--override",
        nargs="*",
        default=[],
        metavar="--config.KEY=VALUE",
        help="where data, proposals and weights lie if not where the config says",
    )
    args, rest = parser.parse_known_args()
    wrong = [option for option in rest if not option.startswith("--config.")]
    if wrong:
        parser.error(f"unknown arguments: {' '.join(wrong)}")
    args.override = [*args.override, *rest]
    if args.set is None and not args.table:
        parser.error("name a set, or give --table")
    return args


def row_path(data_set: str, method: str, seed: int) -> Path:
    """Return where the row of a run lies."""
    return ROOT / "results" / data_set / f"{method}-seed{seed}.json"


def run_one(data_set: str, method: str, seed: int, runs: Path, overrides: list[str]) -> None:
    """Train and evaluate one run, and write its row; do nothing if the row is there."""
    row = row_path(data_set, method, seed)
    if row.exists():
        print(f"{row.relative_to(ROOT)}: done")
        return
    workdir = runs / f"{method}-seed{seed}"
    started = time.time()
    python = [sys.executable, "-u"]
    train = [
        str(ROOT / "scripts/train.py"),
        f"--config={ROOT / 'configs' / data_set}.py:{method}",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        *overrides,
    ]
    subprocess.run(python + train, check=True)
    num_steps = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["train"][
        "num_steps"
    ]
    if num_steps not in checkpoint_steps(
        workdir
    ):  # an interrupted run saves and ends without error
        sys.exit(f"{workdir} stopped before step {num_steps}; the same command goes on with it")
    trained = time.time()
    evaluate = [str(ROOT / "scripts/evaluate.py"), "--workdir", str(workdir)]
    subprocess.run(python + evaluate, check=True)
    path = workdir / "evaluation" / str(num_steps) / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    content = {
        "set": data_set,
        "method": method,
        "seed": seed,
        "summary": report["summary"],
        "settings": without_locations(report["settings"]),
        "per_class": report["per_class"],
        "train_seconds": round(trained - started),
        "evaluate_seconds": round(time.time() - trained),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    row.parent.mkdir(parents=True, exist_ok=True)
    row.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"row: {row}")


def without_locations(settings: dict) -> dict:
    """Return a report's settings without the files and folders of the machine that it was made on."""
    kept = dict(settings)
    for name in LOCATIONS:
        section, key = name.split(".")
        if isinstance(kept.get(section), dict):
            kept[section] = {k: v for k, v in kept[section].items() if k != key}
    return kept


def write_tables() -> None:
    """Write the tables into docs/results.md and README.md, between their markers."""
    text = "\n\n".join(table(data_set) for data_set in SETS)
    for path in (ROOT / "docs/results.md", ROOT / "README.md"):
        content = path.read_text(encoding="utf-8")
        head, _, rest = content.partition(BEGIN)
        _, _, tail = rest.partition(END)
        path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")


def table(data_set: str, seeds: tuple[int, ...] = (0, 1, 2)) -> str:
    """Return one set's table in Markdown: mean ± standard deviation over the finished seeds."""
    lines = [
        f"**{SETS[data_set]}**, percent, mean ± standard deviation over seeds",
        "",
        f"| method | {' | '.join(COLUMNS)} | seeds | minutes a run |",
        f"|---|{'---|' * (len(COLUMNS) + 2)}",
    ]
    for method, name in METHODS.items():
        rows = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (row_path(data_set, method, seed) for seed in seeds)
            if path.exists()
        ]
        lines.append(f"| {name} | {' | '.join(cells(rows, len(seeds)))} |")
    return "\n".join(lines)


def cells(rows: list[dict], wanted: int) -> list[str]:
    """Return the cells of one method."""
    if not rows:
        return ["not run"] * len(COLUMNS) + [f"0 of {wanted}", ""]
    minutes = sum(row["train_seconds"] + row["evaluate_seconds"] for row in rows) / len(rows) / 60
    summary = summarise_seeds([row["summary"] for row in rows])
    values = [summary[name].as_percent() for name in COLUMNS]
    return [*values, f"{len(rows)} of {wanted}", f"{minutes:.1f}"]


if __name__ == "__main__":
    main()
