"""Run the whole chain on a rendered data set: two detectors from image labels alone, side by side.

    wsod-jax demo --out demo            # at most a quarter of an hour on two cores
    wsod-jax demo --out demo --small    # a minute or two, to see that everything works; scores mean nothing

It renders pictures, finds proposals, pretrains a tiny backbone on one-object pictures, trains WSDDN and OIM with the
instance-reweighted loss, evaluates both and writes <out>/report.md. Every step is a command of this package, printed
before it runs. Steps that are done are skipped, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsod_jax.commands.command_line import command_text, load_config, make_parser, run_command
from wsod_jax.commands.demo_report import METHODS, score_table, stage_checksums, write_report

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
    "pictures": ("--config.log.image_interval=10", "--config.log.num_images=4"),
}


@dataclass(frozen=True)
class Step:
    """One command of the chain.

    Attributes:
      title: what it does, for people.
      command: arguments of Python.
      output: a file that the command writes last.
    """

    title: str
    command: tuple[str, ...]
    output: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(run, parse_arguments(arguments))


def run(args: argparse.Namespace) -> int:
    """Run the chain's steps that are not done; return the exit status of the first that fails, or 0."""
    out = Path(args.out)
    last = num_steps(args.small)
    log = StepLog(out / "steps.json")
    for step in chain(out, args.small, args.seed, last):
        status = log.run(step)
        if status:
            return status
    evaluations = {
        method: out / method / "evaluation" / str(last[method]) / "report.json"
        for method in METHODS
    }
    reports = {method: json.loads(path.read_text()) for method, path in evaluations.items()}
    table = score_table({method: report["summary"] for method, report in reports.items()})
    checksums = stage_checksums(
        {name: out / "data" / name for name in ("synthetic", "objects")},
        out / "data" / "synthetic_proposals.npz",
        {"pretraining": out / "pretrain"},
        {"pretrained weights": out / "weights" / "tiny.npz"},
        {name: out / method for method, name in METHODS.items()},
    )
    report = write_report(out, reports, evaluations, table, checksums, log.entries, args.small)
    print(f"\n{table}\n")
    for stage, checksum in checksums.items():
        print(f"{stage:24s}{checksum}")
    for method, path in evaluations.items():
        print(f"{METHODS[method]:8s}{path.with_suffix('.md')}, pictures in {path.parent}")
    print(f"Report with the pictures of both: {report}")
    print(f"All steps together: {log.seconds:.0f} s; largest process: {log.gibibytes:.1f} GiB")
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = make_parser(__doc__)
    parser.add_argument("--out", default="demo", help="folder for all that is made (demo)")
    parser.add_argument("--small", action="store_true", help="few pictures, few updates")
    parser.add_argument(
        "--seed", type=int, default=0, help="of training; the pictures are always the same (0)"
    )
    return parser.parse_args(arguments)


def num_steps(small: bool) -> dict[str, int]:
    """Return the updates of each training run, as its configuration or `--small` says."""
    names = {"pretrain": "pretrain_tiny"} | {method: f"synthetic:{method}" for method in METHODS}
    configs = {run: load_config(name) for run, name in names.items()}
    return {
        run: NUM_STEPS_SMALL if small else config["train"]["num_steps"]
        for run, config in configs.items()
    }


def chain(out: Path, small: bool, seed: int, last: dict[str, int]) -> list[Step]:
    """Return the steps of the demo, in order."""
    extra = SMALL if small else dict.fromkeys(SMALL, ())
    elsewhere = out != Path("demo")  # the configurations name demo/...; other places are overrides
    data, objects = out / "data" / "synthetic", out / "data" / "objects"
    proposals, weights = out / "data" / "synthetic_proposals.npz", out / "weights" / "tiny.npz"
    seeded = (f"--config.seed={seed}",) if seed else ()
    steps = [
        Step(
            "Render the detection set",
            (*RUN, "make_synthetic", f"--out={data}", *extra["data"]),
            data / "spec.json",
        ),
        Step(
            "Render one-object pictures to pretrain on",
            (*RUN, "make_synthetic", f"--out={objects}", "--pretraining", *extra["objects"]),
            objects / "spec.json",
        ),
        Step(
            "Find proposals by selective search",
            (*RUN, "make_proposals", f"--data={data}", "--split", "trainval", "test")
            + (f"--out={proposals}", "--report"),
            proposals,
        ),
        train(
            "Pretrain the backbone",
            out / "pretrain",
            last["pretrain"],
            "pretrain_tiny",
            *((f"--config.data.root={objects}",) if elsewhere else ()),
            *seeded,
            *extra["train"],
        ),
        Step(
            "Take the backbone out of its checkpoint",
            (*RUN, "convert_weights", "--from", "checkpoint", str(out / "pretrain"))
            + ("--out", str(weights)),
            weights,
        ),
    ]
    paths = (
        f"--config.data.root={data}",
        f"--config.proposals.path={proposals}",
        f"--config.train.init_from={weights}",
        f"--config.train.cache_folder={out / 'pooled'}",
    )
    for method, name in METHODS.items():
        steps += [
            train(
                f"Train {name}",
                out / method,
                last[method],
                f"synthetic:{method}",
                *(paths if elsewhere else ()),
                *seeded,
                *extra["train"],
                *extra["pictures"],
            ),
            Step(
                f"Evaluate {name}",
                (*RUN, "evaluate", f"--workdir={out / method}"),
                out / method / "evaluation" / str(last[method]) / "report.json",
            ),
        ]
    runs = [str(out / method) for method in METHODS]
    return steps + [
        Step(
            "Draw where scores gather during training",
            (*RUN, "visualize", "objectness", "--workdir", *runs, "--num", "4")
            + ("--out", str(out / "objectness")),
            out / "objectness" / "sheet.png",
        ),
        Step(
            "Draw how OIM finds further instances",
            (*RUN, "visualize", "graphs", "--checkpoint", runs[-1], "--num", "4")
            + ("--out", str(out / "graphs")),
            out / "graphs" / "sheet.png",
        ),
    ]


def train(title: str, workdir: Path, last: int, config: str, *overrides: str) -> Step:
    """Return a training run; it is done when the last checkpoint is."""
    command = (*RUN, "train", f"--config={config}", f"--workdir={workdir}", *overrides)
    return Step(title, command, workdir / "checkpoints" / str(last) / "manifest.json")


class StepLog:
    """Runs steps, and remembers in a file which are done, how long they took and how much memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
        self._anew = False  # once a step has run, what follows from it runs again too

    @property
    def seconds(self) -> float:
        """The time of all steps, whenever they ran."""
        return sum(entry["seconds"] for entry in self.entries.values())

    @property
    def gibibytes(self) -> float:
        """The memory of the largest process of any step."""
        return max(entry["gibibytes"] for entry in self.entries.values())

    def run(self, step: Step) -> int:
        """Run a step unless it is done; return 0, or the exit status to stop with."""
        print(f"\n== {step.title}", flush=True)
        entry = self.entries.get(step.title, {})
        same = entry.get("command") == list(step.command)
        if same and step.output.exists() and not self._anew:
            print(f"done before, in {entry['seconds']:.0f} s: {step.output}")
            return 0
        self._anew = True
        print(f"$ python {shlex.join(step.command)}", flush=True)
        started = time.monotonic()
        status, interrupted = call(step.command)
        seconds = time.monotonic() - started
        if interrupted:
            print(f"\nInterrupted. The same command goes on: {command_text()}", file=sys.stderr)
            return 130
        if status or not step.output.exists():
            print(
                f"\n{step.title}: stopped with status {status} and "
                f"{'an' if step.output.exists() else 'no'} output {step.output}. The messages above say why; once "
                f"that is mended, the same command goes on: {command_text()}",
                file=sys.stderr,
            )
            return status or 1
        self.entries[step.title] = {
            "command": list(step.command),
            "seconds": seconds,
            "gibibytes": largest_child(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.entries, indent=1) + "\n")
        print(f"== {seconds:.0f} s", flush=True)
        return 0


def call(command: tuple[str, ...]) -> tuple[int, bool]:
    """Run a command; return its exit status and whether Ctrl-C was pressed, which the command gets too."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "MPLBACKEND": "Agg", **os.environ}
    interrupted = False
    with subprocess.Popen([sys.executable, *command], env=environment) as process:
        while True:
            try:
                return process.wait(), interrupted
            except KeyboardInterrupt:
                interrupted = True  # it is saving; wait for it


def largest_child() -> float:
    """Return the memory of the largest process so far that was waited for, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30


def again() -> str:
    """Return the command line of this run."""
    return shlex.join(["python", *sys.argv])
