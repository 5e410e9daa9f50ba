"""Chains of commands: what is skipped, what runs again, what waits for what, and what a failure stops."""

import os
import time
from pathlib import Path

import pytest

from wsod_jax.commands import steps
from wsod_jax.commands.steps import Step, StepLog


def writer(path: Path, *needs: Path, text: str = "x") -> Step:
    """Return a step that appends to a file, so that runs can be counted, if all that it needs is there."""
    code = f"assert all(map(__import__('os').path.exists, {[str(p) for p in needs]})); "
    code += f"open({str(path)!r}, 'a').write({text!r})"
    return Step(f"write {path.name}", ("-c", code), path, needs)


def run(folder: Path, *chain: Step) -> StepLog:
    log = StepLog(folder / "steps.json")
    assert log.run(chain) == 0
    assert set(log.entries) == {step.title for step in chain} and log.gibibytes > 0
    return log


def test_done_steps_are_skipped_and_what_needs_a_changed_one_runs_again(tmp_path, capsys):
    a, b, c, d = (tmp_path / name for name in "abcd")
    chain = [writer(a), writer(b, a), writer(c, b), writer(d)]
    run(tmp_path, *chain)
    run(tmp_path, *chain)
    assert [path.read_text() for path in (a, b, c, d)] == ["x"] * 4
    assert capsys.readouterr().out.count("done before") == 4
    run(tmp_path, chain[0], writer(b, a, text="y"), *chain[2:])
    assert [path.read_text() for path in (a, b, c, d)] == ["x", "xy", "xx", "x"]
    b.unlink()
    run(tmp_path, chain[0], writer(b, a, text="y"), *chain[2:])
    assert [path.read_text() for path in (a, b, c, d)] == ["x", "y", "xxx", "x"]


def test_steps_run_beside_each_other_each_on_its_core(tmp_path, monkeypatch):
    """Each waits until the other has begun."""
    monkeypatch.setattr(steps, "free_cores", lambda: sorted(os.sched_getaffinity(0))[:1] * 2)
    code = (
        "import os, pathlib, sys, time; me, other = map(pathlib.Path, sys.argv[1:]); me.write_text(''); "
        "end = time.time() + 60\nwhile not other.exists() and time.time() < end: time.sleep(0.05)\n"
        "assert len(os.sched_getaffinity(0)) == 1\n"
        "other.with_suffix('.done').write_text('')"
    )
    a, b = tmp_path / "a", tmp_path / "b"
    chain = [
        Step(f"meet {one.name}", ("-c", code, str(one), str(two)), two.with_suffix(".done"))
        for one, two in ((a, b), (b, a))
    ]
    before = os.sched_getaffinity(0)
    run(tmp_path, *chain)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("code, status", [("print('so sad'); exit(7)", 7), ("print('so sad')", 1)])
def test_a_step_that_fails_or_writes_nothing_stops_the_chain(tmp_path, capsys, code, status):
    log = StepLog(tmp_path / "steps.json")
    broken = Step("broken", ("-c", code), tmp_path / "missing")
    assert log.run([broken, writer(tmp_path / "after", broken.output)]) == status
    told = capsys.readouterr().err
    assert "broken: stopped with status" in told and "so sad" in told
    assert not log.entries and not (tmp_path / "after").exists()


def test_after_ctrl_c_running_steps_are_waited_for(tmp_path, monkeypatch):
    """The terminal sends Ctrl-C to them as well; here they just end."""

    def interrupt(_):
        raise KeyboardInterrupt

    code = f"import time; time.sleep(0.5); open({str(tmp_path / 'a')!r}, 'w')"
    log = StepLog(tmp_path / "steps.json")
    monkeypatch.setattr(time, "sleep", interrupt)
    assert log.run([Step("slow", ("-c", code), tmp_path / "a")]) == 130
    assert (tmp_path / "a").exists() and not log.entries
