"""The demo's own part: what it runs, what it skips, what it writes. The chain itself runs in `make demo`."""

import re
from pathlib import Path

import numpy as np
import pytest

from wsod_jax.__main__ import COMMANDS
from wsod_jax.commands import demo, demo_report
from wsod_jax.commands.benchmarks.timing import hardware
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.train.logging import JsonlWriter
from wsod_jax.train.weights import save_weights
from wsod_jax.viz import save_image

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("small", [False, True])
def test_chain_names_real_commands_and_passes_paths_where_they_differ(small):
    last = demo.num_steps(small)
    default, elsewhere = (
        demo.chain(Path(out), small, [demo.SeedRuns(Path(out), s, s == 3) for s in (3, 4)], last)
        for out in ("demo", "other")
    )
    for steps in (default, elsewhere):
        assert all(step.command[:2] == ("-m", "wsod_jax") for step in steps)
        assert {step.command[2] for step in steps} <= set(COMMANDS)
        made = [step.output for step in steps]
        for i, step in enumerate(steps):  # what a step needs is made before it
            assert set(step.needs) <= set(made[:i])
        trained = [step for step in steps if step.command[2] == "train"]
        assert len({step.title for step in steps}) == len(steps) and len(trained) == 6
        for seed in (3, 4):
            runs = [step for step in trained if step.title.endswith(f"seed {seed}")]
            assert all(f"--config.seed={seed}" in step.command for step in runs) and len(runs) == 3
    named = " ".join(word for step in default for word in step.command)
    assert "--config.data.root" not in named  # the configurations say it
    assert named.count("--config.train.init_from=demo/weights/tiny-seed4.npz") == 2
    assert named.count("--config.train.init_from=") == 2
    named = " ".join(word for step in elsewhere for word in step.command)
    assert not re.search(r"[= ]demo/", named)
    for setting in ("data.root", "proposals.path", "train.init_from", "train.cache_folder"):
        assert named.count(f"--config.{setting}=other/") == 6 - 2 * (setting != "data.root")


def test_report_joins_both_methods_and_all_seeds(tmp_path):
    scores = {"wsddn": [(0.25, 0.3), (0.35, 0.3)], "oim_ir": [(0.5, None), (0.4, None)]}
    reports, evaluations = {}, {}
    for method, values in scores.items():
        reports[method], evaluations[method] = [], []
        for seed, (ap, corloc) in enumerate(values):
            folder = tmp_path / f"{method}-{seed}" / "evaluation" / "20"
            save_image(folder / "curve.png", np.zeros((8, 8, 3), np.uint8))
            figures = [{"path": "curve.png", "caption": f"curve of {method}, {seed}"}]
            report = {"summary": {"mAP50": ap, "CorLoc": corloc}, "figures": figures}
            (folder / "report.md").write_text("numbers")
            reports[method].append(report)
            evaluations[method].append(folder / "report.json")
    for update in (10, 20):
        name = f"{update:06d}_000007.png"
        save_image(tmp_path / "oim_ir" / "figures" / name, np.zeros((8, 8, 3), np.uint8))
    summaries = {m: [report["summary"] for report in found] for m, found in reports.items()}
    table = demo_report.score_table(summaries, [0, 1])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert ["WSDDN", "30.0 ± 7.1", "30.0 ± 0.0"] in rows and ["OIM+IR", "45.0 ± 7.1", "–"] in rows
    assert rows[-1] == ["gain", "+15.0 ± 10.0", "–"]
    log, checksums = {"Render": {"seconds": 3.2}}, {"proposals": "0123456789ab"}
    report = demo_report.write_report(
        tmp_path, reports, evaluations, table, checksums, log, seeds=[3, 5], small=True
    )
    text = report.read_text()
    assert table in text and "mean nothing" in text and "| Render | 3 |" in text
    assert "| proposals | 0123456789ab |" in text and hardware()["cpu"] in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 7 and "oim_ir/pseudo_boxes.png" in links
    assert "[seed 5](wsddn-1/evaluation/20/report.md)" in text
    assert "curve of wsddn, 0" in text and "curve of wsddn, 1" not in text
    assert all((tmp_path / link).is_file() for link in links)


def test_checksums_name_the_stage_that_changed(tmp_path):
    def demo_files(folder, pixel=0, shift=0.0, scale=1.0, loss=0.5):
        data, weights = folder / "set", folder / "tiny.npz"
        for name in ("JPEGImages", "Annotations"):
            (data / name).mkdir(parents=True)
        save_image(data / "JPEGImages" / "000001.png", np.full((8, 8, 3), pixel, np.uint8))
        boxes = {"000001": np.array([[0, 0, 4, 4 + shift]], np.float32)}
        ProposalSet.from_images({"000001": (8, 8)}, boxes, generator="hand").save(folder / "p.npz")
        kernel = {"conv": {"kernel": np.full((1, 1, 3, 2), scale, np.float32)}}
        save_weights(
            weights,
            kernel,
            {"architecture": "tiny", "preprocessing": "torchvision", "source": "test"},
        )
        writer = JsonlWriter(folder / "run" / "metrics.jsonl")
        writer.write(1, {"loss": loss})
        writer.write(2, {"loss": 0.1})
        writer.close()
        stages = {"set": data}, folder / "p.npz", {}, {"weights": weights}, {"run": folder / "run"}
        return demo_report.stage_checksums(*stages)

    first = demo_files(tmp_path / "first")
    assert list(first) == ["set", "proposals", "weights", "run, first loss"]
    assert first == demo_files(tmp_path / "again") and first["run, first loss"] == "0.5"
    changes = dict(
        zip(first, ({"pixel": 1}, {"shift": 1.0}, {"scale": 2.0}, {"loss": 0.25}), strict=True)
    )
    for stage, change in changes.items():
        other = demo_files(tmp_path / stage, **change)
        assert [name for name in first if first[name] != other[name]] == [stage]
