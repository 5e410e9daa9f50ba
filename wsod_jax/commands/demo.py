"""Run the whole chain on a rendered data set: two detectors from image labels alone, side by side.

    wsod-jax demo --out demo            # about ten minutes on two cores
    wsod-jax demo --out demo --small    # a minute or two, to see that everything works; scores mean nothing

It renders images and finds proposals; then, with each of three seeds, it pretrains a tiny backbone on one-object
images, trains WSDDN and OIM with the instance-reweighted loss and evaluates both; and it writes <out>/report.md.
Every step is a command of this package, printed before it runs, on a core of its own. Steps that are done are skipped,
so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from wsod_jax.commands.command_line import load_config, make_parser, run_command
from wsod_jax.commands.demo_report import METHODS, score_table, stage_checksums, write_report
from wsod_jax.commands.steps import Step, StepLog

RUN = ("-m", "wsod_jax")  # what follows is a command
NUM_STEPS_SMALL = 20
SMALL = {
    "data": ("--num_trainval=24", "--num_test=8"),
    "objects": ("--num_trainval=48", "--num_test=8"),
    "train": (
        f"--config.train.num_steps={NUM_STEPS_SMALL}",
        "--config.optim.warmup_steps=5",
        "--config.log.log_interval=5",
        "--config.log.checkpoint_interval=10",
    ),
    "figures": ("--config.log.image_interval=10", "--config.log.num_images=4"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(run, parse_arguments(arguments))


def run(args: argparse.Namespace) -> int:
    """Run the chain's steps that are not done; return the exit status of the first that fails, or 0."""
    out = Path(args.out)
    runs = [SeedRuns(out, seed, first=seed == args.seeds[0]) for seed in args.seeds]
    last = num_steps(args.small)
    log = StepLog(out / "steps.json")
    started = time.monotonic()
    status = log.run(chain(out, args.small, runs, last))
    if status:
        return status
    seconds = time.monotonic() - started
    evaluations = {
        method: [run.evaluation(method, last[method]) for run in runs] for method in METHODS
    }
    reports = {
        method: [json.loads(path.read_text()) for path in paths]
        for method, paths in evaluations.items()
    }
    table = score_table(
        {m: [report["summary"] for report in found] for m, found in reports.items()}, args.seeds
    )
    checksums = stage_checksums(
        {name: out / "data" / name for name in ("synthetic", "objects")},
        out / "data" / "synthetic_proposals.npz",
        {f"pretraining, seed {run.seed}": run.workdir("pretrain") for run in runs},
        {f"pretrained weights, seed {run.seed}": run.weights for run in runs},
        {
            f"{name}, seed {run.seed}": run.workdir(method)
            for method, name in METHODS.items()
            for run in runs
        },
    )
    report = write_report(
        out, reports, evaluations, table, checksums, log.entries, args.seeds, args.small
    )
    print(f"\n{table}\n")
    for stage, checksum in checksums.items():
        print(f"{stage:36s}{checksum}")
    for method, (path, *_) in evaluations.items():
        print(f"{METHODS[method]:8s}{path.with_suffix('.md')}, figures in {path.parent}")
    print(f"Report with the figures of both: {report}")
    print(f"This took {seconds:.0f} s; largest process: {log.gibibytes:.1f} GiB")
    return 0


@dataclasses.dataclass(frozen=True)
class SeedRuns:
    """The folders of one seed's runs: those of the first have the names that the configurations use.

    Attributes:
      out: folder of the demo.
      seed: of pretraining and training.
      first: whether it is the first one.
    """

    out: Path
    seed: int
    first: bool

    @property
    def weights(self) -> Path:
        """The pretrained backbone."""
        return self.out / "weights" / f"tiny{self._suffix}.npz"

    def workdir(self, run: str) -> Path:
        """Return the workdir of a run."""
        return self.out / f"{run}{self._suffix}"

    def evaluation(self, method: str, last: int) -> Path:
        """Return the report of a method after its last update."""
        return self.workdir(method) / "evaluation" / str(last) / "report.json"

    @property
    def elsewhere(self) -> bool:
        """Whether the configurations, which name demo/..., have to be told of other places."""
        return self.out != Path("demo")

    @property
    def settings(self) -> tuple[str, ...]:
        """What the seed changes in a configuration."""
        return (f"--config.seed={self.seed}",) if self.seed else ()

    @property
    def _suffix(self) -> str:
        return "" if self.first else f"-seed{self.seed}"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = make_parser(__doc__)
    parser.add_argument("--out", default="demo", help="folder for all that is made (demo)")
    parser.add_argument("--small", action="store_true", help="few images, few updates")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="of pretraining and training; the images are always the same (0 1 2; 0 1 with --small)",
    )
    args = parser.parse_args(arguments)
    args.seeds = args.seeds or ([0, 1] if args.small else [0, 1, 2])
    return args


def num_steps(small: bool) -> dict[str, int]:
    """Return the updates of each training run, as its configuration or `--small` says."""
    names = {"pretrain": "pretrain_tiny"} | {method: f"synthetic:{method}" for method in METHODS}
    configs = {run: load_config(name) for run, name in names.items()}
    return {
        run: NUM_STEPS_SMALL if small else config["train"]["num_steps"]
        for run, config in configs.items()
    }


def chain(out: Path, small: bool, runs: Sequence[SeedRuns], last: dict[str, int]) -> list[Step]:
    """Return the steps of the demo; those of a list that may run first come first."""
    extra = SMALL if small else dict.fromkeys(SMALL, ())
    data, objects = out / "data" / "synthetic", out / "data" / "objects"
    proposals = out / "data" / "synthetic_proposals.npz"
    steps = [
        Step(
            "Render the detection set",
            (*RUN, "make_synthetic", f"--out={data}", *extra["data"]),
            data / "spec.json",
        ),
        Step(
            "Render one-object images to pretrain on",
            (*RUN, "make_synthetic", f"--out={objects}", "--pretraining", *extra["objects"]),
            objects / "spec.json",
        ),
        Step(
            "Find proposals by selective search",
            (*RUN, "make_proposals", f"--data={data}", "--split", "trainval", "test")
            + (f"--out={proposals}", "--report"),
            proposals,
            (data / "spec.json",),
        ),
    ]
    for run in runs:
        steps += pretraining(run, objects, last["pretrain"], extra["train"])
    for run in runs:
        steps += detectors(run, data, proposals, last, extra)
    first = runs[0]
    trained = tuple(first.evaluation(method, last[method]) for method in METHODS)
    workdirs = [str(first.workdir(method)) for method in METHODS]
    return steps + [
        Step(
            "Draw where scores gather during training",
            (*RUN, "visualize", "objectness", "--workdir", *workdirs, "--num", "4")
            + ("--out", str(out / "objectness")),
            out / "objectness" / "sheet.png",
            trained,
        ),
        Step(
            "Draw how OIM finds further instances",
            (*RUN, "visualize", "graphs", "--workdir", workdirs[-1], "--num", "4")
            + ("--out", str(out / "graphs")),
            out / "graphs" / "sheet.png",
            trained,
        ),
    ]


def pretraining(run: SeedRuns, objects: Path, last: int, extra: Sequence[str]) -> list[Step]:
    """Return the steps that make a seed's backbone."""
    pretrained = train(
        f"Pretrain the backbone, seed {run.seed}",
        run.workdir("pretrain"),
        last,
        "pretrain_tiny",
        (objects / "spec.json",),
        *((f"--config.data.root={objects}",) if run.elsewhere else ()),
        *run.settings,
        *extra,
    )
    taken = Step(
        f"Take the backbone out of its checkpoint, seed {run.seed}",
        (*RUN, "convert_weights", "--from", "checkpoint", str(run.workdir("pretrain")))
        + ("--out", str(run.weights)),
        run.weights,
        (pretrained.output,),
    )
    return [pretrained, taken]


def detectors(
    run: SeedRuns, data: Path, proposals: Path, last: dict[str, int], extra: dict
) -> list[Step]:
    """Return the steps that train and evaluate both methods with one seed, one after the other: they share a cache."""
    steps, needs = [], (proposals, run.weights)
    paths = (
        f"--config.data.root={data}",
        f"--config.proposals.path={proposals}",
        f"--config.train.cache_folder={run.out / 'pooled'}",
    )
    for method, name in METHODS.items():
        steps.append(
            train(
                f"Train {name}, seed {run.seed}",
                run.workdir(method),
                last[method],
                f"synthetic:{method}",
                needs,
                *(paths if run.elsewhere else ()),
                *(
                    (f"--config.train.init_from={run.weights}",)
                    if run.elsewhere or not run.first
                    else ()
                ),
                *run.settings,
                *extra["train"],
                *(extra["figures"] if run.first else ("--config.log.image_interval=0",)),
            )
        )
        report = run.evaluation(method, last[method])
        command = (*RUN, "evaluate", f"--workdir={run.workdir(method)}")
        title = f"Evaluate {name}, seed {run.seed}"
        steps.append(Step(title, command, report, (steps[-1].output,)))
        needs = (report, proposals, run.weights)
    return steps


def train(
    title: str,
    workdir: Path,
    last: int,
    config: str,
    needs: tuple[Path, ...],
    *overrides: str,
) -> Step:
    """Return a training run; it is done when the last checkpoint is."""
    command = (*RUN, "train", f"--config={config}", f"--workdir={workdir}", *overrides)
    return Step(title, command, workdir / "checkpoints" / str(last) / "manifest.json", needs)
