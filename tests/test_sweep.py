"""`wsod-jax sweep`: rows tell no places, tables follow from rows, and the texts show today's tables."""

import json
import math
from pathlib import Path

import pytest

from wsod_jax.commands import seeds, sweep
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


HARDWARE = {"cpu": "Thinker", "instructions": "avx9", "cpu_cores": 2, "jax": "1.2"}


def write_row(root, method, seed, value, hardware=HARDWARE, **more):
    summary = dict.fromkeys(COLUMNS, value)
    row = {"summary": summary, "train_seconds": 100, "evaluate_seconds": 20, "hardware": hardware}
    row |= more
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
    assert table.splitlines()[-3] == "OICR: 1 of 9 images is missing"
    assert table.count("missing") == 1 and "missing" not in complete


def test_pairs_are_compared_seed_by_seed_and_machines_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    for seed, low, high in ((0, 0.2, 0.5), (1, 0.4, 0.6), (2, 0.3, None)):
        write_row(tmp_path, "wsddn", seed, low, "2 cores, of old")
        if high is not None:
            write_row(tmp_path, "oicr", seed, high)
    lines = sweep.table("cards6").splitlines()
    pair = next(line for line in lines if line.startswith("| OICR − WSDDN |"))
    assert pair.count("+25.0 ± 5.0") == len(COLUMNS) and "| 2 of 3 |" in pair
    assert next(line for line in lines if line.startswith("| OIM − OICR |")).count("–") > 1
    assert "Thinker (avx9, 2 cores), jax 1.2: 2 rows" in lines[-1]
    write_row(tmp_path, "wsddn", 1, 0.4, "2 cores, of old", weights=["sha256:one"])
    pair = next(line for line in sweep.table("cards6").splitlines() if "OICR − WSDDN" in line)
    assert "| 2 of 3 |" in pair  # an older row does not name the set's only weights
    write_row(tmp_path, "oicr", 1, 0.6, weights=["sha256:other"])
    pair = next(line for line in sweep.table("cards6").splitlines() if "OICR − WSDDN" in line)
    assert pair.count("+30.0") == len(COLUMNS) and "| 1 of 3 |" in pair
    assert "2 cores, of old: 3 rows" in lines[-1]


def test_baselines_of_a_run_stand_below_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    columns = sweep.SETS["spn_cards6"].columns
    for seed, pointing in ((0, 0.5), (1, 0.7)):
        row = {"summary": dict.fromkeys(columns, 0.8), "train_seconds": 60, "evaluate_seconds": 0}
        row["hardware"] = HARDWARE
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


def test_seeds_start_from_weights_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"tiny-seed1\.npz.*--seeds 0 1"):
        sweep.pretrained("synthetic", 1, [])
    for name in ("tiny.npz", "tiny-seed1.npz"):
        Path("demo/weights").mkdir(parents=True, exist_ok=True)
        (Path("demo/weights") / name).touch()
    setting = "--config.train.init_from=demo/weights/"
    assert sweep.pretrained("synthetic", 0, []) == [f"{setting}tiny.npz"]
    assert sweep.pretrained("spn_synthetic", 1, []) == [f"{setting}tiny-seed1.npz"]
    assert sweep.pretrained("synthetic", 1, ["--config.train.init_from=w.npz"]) == []
    assert sweep.pretrained("cards6", 1, []) == []


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
    without = (
        {"mIoU", "mask AP50"} if row["method"] == "wsddn" else set()
    )  # it predicts boxes alone
    assert set(sweep.SETS[row["set"]].columns) - without <= set(row["summary"])
    for name in LOCATIONS:
        section, key = name.split(".")
        assert key not in row["settings"].get(section, {})


def test_texts_show_the_tables_of_the_committed_rows():
    content = (sweep.ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert all(sweep.table(data_set) in content for data_set in sweep.SETS)
    content = (sweep.ROOT / "README.md").read_text(encoding="utf-8")
    assert sweep.table("cards6", pairs=False) in content


def test_what_a_seed_does_to_both_drops_out_of_their_difference():
    first = {0: {"CorLoc": 0.2}, 1: {"CorLoc": 0.8}, 2: {"CorLoc": 0.1}}
    second = {0: {"CorLoc": 0.3}, 1: {"CorLoc": 0.9}, 5: {"CorLoc": 0.7}}
    found = seeds.paired_differences(first, second, ["CorLoc", "mAP50"])
    assert list(found) == ["CorLoc"] and found["CorLoc"].count == 2
    assert found["CorLoc"].as_difference() == "+10.0 ± 0.0"
    second[1] = {"CorLoc": 1.0}  # differences 0.1 and 0.2: deviation 0.0707, standard error 0.05
    assert seeds.paired_differences(first, second, ["CorLoc"])["CorLoc"].as_difference() == (
        "+15.0 ± 5.0"
    )
    one = seeds.paired_differences({0: first[0]}, second, ["CorLoc"])["CorLoc"]
    assert one.as_difference() == "+10.0"
    assert seeds.paired_differences({}, second, ["CorLoc"]) == {}


def test_seeds_are_summarized_with_the_sample_deviation():
    runs = [{"mAP50": 0.50, "only": 1}, {"mAP50": 0.52}, {"mAP50": 0.54}]
    summary = seeds.summarize_seeds(runs)
    assert list(summary) == ["mAP50"]
    assert summary["mAP50"].std == pytest.approx(0.02)
    assert summary["mAP50"].as_percent() == "52.0 ± 2.0"
    single = seeds.summarize_seeds(runs[:1])["mAP50"]
    assert math.isnan(single.std) and single.as_percent() == "50.0"
    with pytest.raises(DataError, match="no runs"):
        seeds.summarize_seeds([])
    with pytest.raises(DataError, match="numbers"):
        seeds.summarize_seeds([{"a": "x"}])
