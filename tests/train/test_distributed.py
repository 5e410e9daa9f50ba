"""Several processes: real ones over loopback, and how they are found."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.train.peer import TOTAL
from tests.train.test_host_stage import Weights, go
from wsod_jax.errors import ConfigError
from wsod_jax.train import distributed
from wsod_jax.train.checkpoint import checkpoint_steps, load_checkpoint
from wsod_jax.train.logging import read_jsonl
from wsod_jax.train.loop import Steps

ROOT = Path(__file__).resolve().parents[2]


def together(commands: list[list], *, timeout: int = 300) -> list:
    """Run commands at once, one device each for every process; return those that ended."""
    try:
        distributed.check_own_name()
    except ConfigError as error:
        pytest.skip(str(error))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={**environment, "JAX_NUM_CPU_DEVICES": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(running, outputs, strict=True)
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def toys(workdir: Path, **options) -> list:
    """Train the toy method in two processes."""
    port, settings = free_port(), [f"{name}={value}" for name, value in options.items()]
    peer = ["-m", "tests.train.peer", port, 2]
    return together([[*peer, number, workdir, *settings] for number in range(2)], timeout=100)


def train_command(workdir: Path, tiny_set, *settings: str) -> list:
    """Three updates of OIM with the reweighted loss, by the command; SGD, since AdamW scales rounding up."""
    return [
        ROOT / "scripts" / "train.py",
        *("--config", ROOT / "configs" / "debug_tiny.py:oim_ir", "--workdir", workdir),
        f"--config.data.root={tiny_set[0]}",
        f"--config.proposals.path={tiny_set[1]}",
        *(f"--config.train.{s}" for s in ("num_steps=3", "micro_batch=4", "scales=(64,)")),
        "--config.train.loader=threads",
        *("--config.optim.name=sgd", "--config.optim.learning_rate=1e-3"),
        *(f"--config.log.{s}" for s in ("checkpoint_interval=1", "keep_period=1")),
        *(f"--config.log.{s}" for s in ("image_interval=1", "num_images=1", "tensorboard=False")),
        *settings,
    ]


def flags(number: int, port: int) -> list[str]:
    return [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]


def both_end_well(ended: list) -> None:
    assert [process.returncode for process in ended] == [0, 0], "\n".join(p.stderr for p in ended)


def leaves(path: Path) -> list[np.ndarray]:
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def test_a_machine_whose_name_has_no_address(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-machine.invalid")
    with pytest.raises(ConfigError, match="/etc/hosts"):
        distributed.check_own_name()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Two processes that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("straight")
    ended = toys(workdir)
    both_end_well(ended)
    return workdir, ended


def test_two_processes_equal_one(straight, tmp_path):
    workdir, ended = straight
    steps = Steps(total=TOTAL, log_interval=1, checkpoint_interval=3)
    state = go(tmp_path, Weights(), steps=steps)
    expected = jax.tree.leaves(state.params)
    for number in range(2):
        for found, wanted in zip(leaves(workdir / f"params_{number}.npz"), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert checkpoint_steps(workdir) == [0, 6, 7]
    logged = read_jsonl(workdir / "metrics.jsonl")
    assert [entry["step"] for entry in logged] == list(range(1, TOTAL + 1))
    losses = [[e["loss"] for e in read_jsonl(w / "metrics.jsonl")] for w in (workdir, tmp_path)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert "compiled" in ended[0].stdout  # the first process speaks for all
    assert not ended[1].stdout.replace("[Gloo]", "").count("compiled")
    # One process reads what two have written.
    loaded = load_checkpoint(workdir)
    np.testing.assert_allclose(
        loaded.params["head"]["kernel"], state.params["head"]["kernel"], rtol=1e-5
    )


@pytest.mark.slow
def test_signal_to_one_stops_all_at_one_update_and_they_go_on(straight, tmp_path):
    ended = toys(tmp_path, killed=1)
    both_end_well(ended)
    for process in ended:
        assert re.search("SIGTERM.* 4 of 7", process.stdout)
    assert checkpoint_steps(tmp_path) == [0, 3, 4]
    both_end_well(toys(tmp_path))
    for number in range(2):
        for found, wanted in zip(
            leaves(tmp_path / f"params_{number}.npz"),
            leaves(straight[0] / f"params_{number}.npz"),
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == TOTAL


@pytest.mark.slow
def test_different_configurations_are_refused_before_the_first_update(tiny_set, tmp_path):
    port, rates = free_port(), ("0.25", "0.5")
    ended = together(
        [
            train_command(tmp_path / "run", tiny_set, f"--config.optim.learning_rate={rate}")
            + flags(number, port)
            for number, rate in enumerate(rates)
        ]
    )
    for process in ended:
        assert process.returncode == 1
        assert "error: " in process.stderr
        assert re.search("process 1: optim.learning_rate .*0.5 .*0.25\n", process.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_failure_of_one_ends_all_soon(tmp_path, failing):
    ended = toys(tmp_path, failing=failing)
    assert all(process.returncode for process in ended)
    assert "3 updates" in ended[failing].stderr
    assert re.search(f"process {failing} .*update 4", ended[1 - failing].stderr)
    assert checkpoint_steps(tmp_path) == [0, 3]


@pytest.mark.slow
def test_oim_by_two_processes_equals_one(tiny_set, tmp_path):
    (alone,) = together([train_command(tmp_path / "one", tiny_set)])
    assert alone.returncode == 0, alone.stderr
    command, port = train_command(tmp_path / "two", tiny_set), free_port()
    both_end_well(together([command + flags(number, port) for number in range(2)]))
    # No score depends on the bias of the detection stream, so its gradient is rounding and its value about 0.
    for step, tolerance in ((1, 1e-5), (2, 1e-4), (3, 1e-4)):
        one, two = (load_checkpoint(tmp_path / name, step=step).params for name in ("one", "two"))
        for (where, x), y in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True
        ):
            name = f"step {step}, {jax.tree_util.keystr(where)}"
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-7, err_msg=name)
    alone, both = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(alone) == len(both) == 3
    for first, other in zip(alone, both, strict=True):  # the same boxes were mined
        for name in ("nodes", "positives", "loss"):
            np.testing.assert_allclose(first[name], other[name], rtol=1e-5, err_msg=name)
    assert (tmp_path / "two" / "config.json").exists()
    drawn = [[p.name for p in (tmp_path / n / "figures").iterdir()] for n in ("one", "two")]
    assert sorted(drawn[0]) == sorted(drawn[1]) and len(drawn[0]) == 3


# -- how they are found, without starting any

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
FLAGS = {
    "JAX_COORDINATOR_ADDRESS": "host:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` was called with, in an environment without launchers."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    for name in FLAGS:
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    return calls


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**SLURM, "SLURM_NTASKS": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "1"},
        {**FLAGS, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_a_single_process_stays_untouched(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert joined == []


@pytest.mark.parametrize(
    "environment",
    [
        SLURM,
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
        {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "4"},
    ],
)
def test_launchers_are_found(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert [set(options) for options in joined] == [{"shutdown_timeout_seconds"}]  # JAX asks them


def test_flags_and_variables_count_before_launchers(joined, monkeypatch):
    for name, value in {**SLURM, **FLAGS}.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    distributed.initialize("other:99", 3, 0)
    found = [(o["coordinator_address"], o["num_processes"], o["process_id"]) for o in joined]
    assert found == [("host:1234", 2, 1), ("other:99", 3, 0)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 2, None), "host:1, 2, None"),
        (("host:1", 2, 2), "host:1, 2, 2"),
        (("host", 2, 0), "host, 2, 0.*port"),
        (("host:1", "two", 0), "host:1, two, 0"),
    ],
)
def test_impossible_processes_are_refused(joined, given, message):
    with pytest.raises(ConfigError, match=message):
        distributed.initialize(*given)
    assert joined == []


def test_a_launcher_that_fails_is_named(joined, monkeypatch):
    def refuse(**options):
        raise RuntimeError("no such host")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="Slurm.*no such host"):
        distributed.initialize()


def test_what_one_process_does_is_refused_to_several(monkeypatch):
    distributed.refuse_several("evaluation")
    with monkeypatch.context() as started:
        for name, value in SLURM.items():
            started.setenv(name, value)
        with pytest.raises(ConfigError, match="^evaluation .*Slurm"):
            distributed.refuse_several("evaluation")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="^evaluation .* 0 of 2"):
        distributed.refuse_several("evaluation")


@pytest.mark.parametrize(
    ("first", "other", "difference"),
    [
        ({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": 2}, "a.b .*3.* 1; c .*None.* 2; d .*2"),
        ({str(i): 0 for i in range(9)}, {}, "5 .*None.* 0.* 3 more"),
    ],
)
def test_differences_name_keys(first, other, difference):
    assert re.search(difference, distributed._difference(json.dumps(first), json.dumps(other)))
    assert re.search("'to'.*'two'", distributed._difference("one\ntwo\n", "one\nto\n"))
