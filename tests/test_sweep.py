"""`wsod-jax sweep`: rows tell no places, tables follow from rows, and the texts show today's tables."""

import json
import math

import pytest

from wsod_jax.commands import sweep
from wsod_jax.errors import DataError

LOCATIONS = (
    "data.root",
    "data.folder",
    "data.labels_csv",
    "data.data_dir",
    "data.annotations",
    "data.index_path",
    "proposals.path",
    "backbone.weights",  # of version 0.1
    "train.init_from",
)
COLUMNS = sweep.SETS["cards6"].columns
ROWS = sorted((sweep.ROOT / "results").glob("*/*.json"))


def write_row(root, method, seed, value, **more):
    summary = dict.fromkeys(COLUMNS, value)
    row = {"summary": summary, "train_seconds": 100, "evaluate_seconds": 20, **more}
    path = root / "results" / "cards6" / f"{method}-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))


def test_table_of_some_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    write_row(tmp_path, "oicr", 0, 0.4)
    write_row(tmp_path, "oicr", 2, 0.6)
    write_row(tmp_path, "oim", 1, 0.25)
    lines = {line.split(" | ")[0]: line for line in sweep.table("cards6").splitlines()}
    assert lines["| OICR"].count("50.0 ± 14.1") == len(COLUMNS)
    assert "| 2 of 3 | 2.0 |" in lines["| OICR"]
    assert lines["| OIM"].count("25.0") == len(COLUMNS) and "±" not in lines["| OIM"]
    assert lines["| PCL"].count("not run") == len(COLUMNS) and "0 of 3" in lines["| PCL"]


def test_what_runs_left_out_stands_below_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    write_row(tmp_path, "oicr", 0, 0.4)
    complete = sweep.table("cards6")
    for seed in (0, 1):
        write_row(tmp_path, "oicr", seed, 0.4, left_out=["1 of 9 images is missing"])
    table = sweep.table("cards6")
    assert table.splitlines()[-1] == "OICR: 1 of 9 images is missing"
    assert table.count("missing") == 1 and "missing" not in complete


def test_baselines_of_a_run_stand_below_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    columns = sweep.SETS["spn_cards6"].columns
    for seed, pointing in ((0, 0.5), (1, 0.7)):
        row = {"summary": dict.fromkeys(columns, 0.8), "train_seconds": 60, "evaluate_seconds": 0}
        compared = {"head": ["", "pointing", "energy"], "rows": [["Center: so", pointing, None]]}
        path = tmp_path / "results" / "spn_cards6" / f"spn-seed{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row | {"tables": [compared]}))
    lines = sweep.table("spn_cards6").splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("| SPN |"))
    center = next(line for line in lines[place:] if line.startswith("| image center |"))
    assert "| – | 60.0 ± 14.1 | – |" in center and "| 2 of 3 |" in center
    assert next(line for line in lines if line.startswith("| SPN's weights, M uniform")).count("–")


def test_finished_runs_are_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    write_row(tmp_path, "oicr", 0, 0.4)
    sweep.run_one("cards6", "oicr", 0, tmp_path / "runs", [])
    assert "oicr-seed0.json: done" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_settings_reach_the_training_command(tmp_path, monkeypatch):
    commands = []

    def stop(command):
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "call", stop)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_one("cards6", "pcl", 1, tmp_path, ["--config.data.root=/d"])
    assert commands[0][-1] == "--config.data.root=/d" and "--config.seed=1" in commands[0]


def test_rows_keep_settings_but_not_places():
    settings = {"seed": 1, "proposals": {"path": "p.npz", "min_side": 0.2}}
    settings |= {
        "data": {"root": "/a", "reader": "voc"},
        "train": {"init_from": ["/w"], "num_steps": 3},
    }
    assert sweep.without_locations(settings, LOCATIONS) == {
        "seed": 1,
        "proposals": {"min_side": 0.2},
        "data": {"reader": "voc"},
        "train": {"num_steps": 3},
    }
    assert settings["data"]["root"] == "/a"


@pytest.mark.parametrize("path", ROWS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_rows(path):
    row = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == f"{row['method']}-seed{row['seed']}" and path.parent.name == row["set"]
    assert row["settings"]["seed"] == row["seed"]
    assert set(sweep.SETS[row["set"]].columns) <= set(row["summary"])
    for name in LOCATIONS:
        section, key = name.split(".")
        assert key not in row["settings"].get(section, {})


@pytest.mark.parametrize("text", ["README.md", "docs/results.md"])
def test_texts_show_the_tables_of_the_committed_rows(text):
    content = (sweep.ROOT / text).read_text(encoding="utf-8")
    for data_set in sweep.SETS:
        assert sweep.table(data_set) in content


def test_seeds_are_summarized_with_the_sample_deviation():
    runs = [{"mAP50": 0.50, "only": 1}, {"mAP50": 0.52}, {"mAP50": 0.54}]
    summary = sweep.summarize_seeds(runs)
    assert list(summary) == ["mAP50"]
    assert summary["mAP50"].std == pytest.approx(0.02)
    assert summary["mAP50"].as_percent() == "52.0 ± 2.0"
    single = sweep.summarize_seeds(runs[:1])["mAP50"]
    assert math.isnan(single.std) and single.as_percent() == "50.0"
    with pytest.raises(DataError, match="no runs"):
        sweep.summarize_seeds([])
    with pytest.raises(DataError, match="numbers"):
        sweep.summarize_seeds([{"a": "x"}])
