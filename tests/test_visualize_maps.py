"""The commands of `wsod-jax visualize` that look at proposal maps, on a tiny trained run, and their messages."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.nn.cases import image_batch
from wsod_jax.analysis.baselines import file_energies
from wsod_jax.analysis.edges import edge_shares, edge_table
from wsod_jax.analysis.opened_run import OpenedRun
from wsod_jax.analysis.walk import Walk, follow_walks, walk_table
from wsod_jax.commands.visualize import main
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.evaluation.metrics.object_energy import EnergyMetrics, object_energy
from wsod_jax.methods.spn import Spn
from wsod_jax.nn.spn_network import SoftProposal
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.ops.soft_proposal import soft_proposals
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.predictor import load_run


@pytest.fixture(scope="module")
def run(spn_run):
    return OpenedRun.open(spn_run.workdir, "maps")


@pytest.fixture(scope="module")
def split(run):
    return AnnotatedImages.read(run.predictor.config.data, "test")


def shape(path):
    return np.asarray(Image.open(path)).shape


def test_maps_are_those_of_each_checkpoint_and_compiled_once(run, split):
    positions = [3, 1]
    looked = run.maps(split.images, positions, [0, 2, 4])
    assert run.steps() == [0, 2, 4] and run.predictor.num_compilations() == 1
    assert [sorted(found) for found in looked.values()] == [[1, 3]] * 3
    other = load_run(run.workdir, 2)
    every = np.ones((len(split.images), len(split.images.class_names)), bool)
    results = {r.image_index: r for r in other.results(other.views(split.images), every)}
    for position in positions:
        found, wanted = looked[2][position].maps, results[position].maps
        assert list(found.classes) == list(wanted.classes) == list(range(6))
        for one, expected in zip(found.views, wanted.views, strict=True):
            np.testing.assert_allclose(one.proposal_map, expected.proposal_map, atol=1e-7)
            np.testing.assert_allclose(one.cams, expected.cams, atol=1e-7)
    assert np.abs(looked[0][1].image_scores - looked[4][1].image_scores).max() > 1e-4


def test_proposal_maps(spn_run, tmp_path, capsys):
    workdir, out = str(spn_run.workdir), ["--out", str(tmp_path / "out")]
    images = ["--images", "000009", "000012"]
    command = ["proposal_maps", "--workdir", workdir, *images, *out]
    assert main(command) == 0
    assert "2 images at steps [0, 2, 4]" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "000009.png",
        "000012.png",
        "sheet.png",
    }
    one = shape(tmp_path / "out" / "000009.png")
    two_runs = ["proposal_maps", "--workdir", workdir, workdir, "--steps", "0", *images, *out]
    assert main([*two_runs, "--class", "fish", "--set", "method.soft_proposal.solver=uniform"]) == 0
    two = shape(tmp_path / "out" / "000009.png")
    assert two[0] > 1.5 * one[0] and two[1] < one[1]  # four rows of two, two rows of four
    assert main([*command, "--split", "trainval"]) == 1  # those images are of the test split
    assert main([*command, "--class", "fishes"]) == 1
    assert main([*command, "--steps", "3"]) == 1
    messages = capsys.readouterr().err
    for part in ("'000009'", "'fishes'", "step 3"):
        assert part in messages


def test_walks_pass_the_map_that_the_network_takes(run, split):
    num_steps = 30
    walks = follow_walks(run.predictor, split.images, [2, 0], num_steps)
    looked = run.maps(split.images, [2, 0], [run.step])[run.step]
    module = run.predictor.method.soft_proposal
    for position, walk in walks.items():
        assert walk.maps.shape[0] == num_steps + 1
        np.testing.assert_allclose(walk.maps.sum(axis=(1, 2)), 1, atol=1e-5)
        np.testing.assert_allclose(walk.maps[0], 1 / walk.maps[0].size, rtol=1e-6)
        settled = walk.settled(module.tolerance)
        taken = module.num_steps if settled is None else min(settled, module.num_steps)
        (view,) = looked[position].maps.views
        cells = walk.maps[taken].size
        np.testing.assert_allclose(cells * walk.maps[taken], view.proposal_map, atol=1e-4)
        assert walk.apart[-1] < walk.apart[0]


def test_walks_are_followed_wherever_the_module_stands():
    method = Spn(
        backbone=TinyNet(widths=(4, 4, 6, 4), stride=4),
        soft_proposal=SoftProposal(unit_mean=True),
        num_classes=3,
        extra_channels=4,
        insert_after="conv3_1",
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    batch = image_batch(pixels, [[32, 32], [24, 32]])
    params, _ = jax.jit(method.init)(jax.random.key(0), batch)

    @jax.jit
    def both_ways(params):
        maps = method.coupled_features(params, batch)
        assert maps.features.shape == (2, 8, 8, 6)
        own = method.predict(params, {}, batch, frozenset({"maps"})).maps.proposal_map
        return soft_proposals(maps.features, maps.size), maps.size, own

    found, size, expected = both_ways(params)  # sums of 1; means of 1 over valid cells
    cells = np.prod(size, axis=1)[:, None, None]
    np.testing.assert_allclose(cells * found, expected, rtol=1e-5, atol=1e-7)


def oscillating(num_steps=40):
    """Return the walk over a map of two kinds of cells, where mass hops between them."""
    features = jnp.zeros((1, 6, 6, 1)).at[0, [1, 4], [1, 3]].set(5.0)
    size = jnp.array([[6, 6]])

    def walk(count):
        return soft_proposals(features, size, num_steps=count, tolerance=0.0)[0]

    maps = jax.jit(jax.vmap(walk))(jnp.arange(num_steps + 1))
    stationary = jax.jit(lambda u: soft_proposals(u, size, solver="stationary")[0])(features)
    return Walk(np.asarray(maps), np.asarray(stationary))


def test_a_walk_that_oscillates_is_seen_to():
    hopping = oscillating()
    assert hopping.settled(1e-4) is None
    assert hopping.apart[20] > 0.05  # of the maximum
    hops = np.sign(np.diff(hopping.maps[-8:, 1, 1]))
    assert (hops[1:] == -hops[:-1]).all() and hops[0] != 0


def test_walk_numbers_by_hand():
    maps = np.array([[[0.5, 0.5]], [[0.2, 0.8]], [[0.25, 0.75]], [[0.25, 0.75]]], np.float32)
    walk = Walk(maps, np.array([[0.25, 0.75]], np.float32))
    np.testing.assert_allclose(walk.moved, np.sqrt(2) * np.array([0.3, 0.05, 0]), atol=1e-7)
    np.testing.assert_allclose(walk.apart, np.array([0.25, 0.05, 0, 0]) / 0.75, atol=1e-7)
    assert walk.settled(0.1) == 1 and walk.settled(1e-6) == 2 and walk.settled(0) is None
    never = dataclasses.replace(walk, maps=maps[[0, 1, 0, 1]])
    table = walk_table({"a": walk, "b": never, "c": never}, num_steps=1, tolerance=0.1).splitlines()
    assert table[2:] == [
        "| a | 6.67 % | 1 |",
        "| b | 6.67 % | more than 2 |",
        "| c | 6.67 % | more than 2 |",
        "| median | 6.67 % | more than 2 |",
    ]


def test_walk(spn_run, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["walk", "--workdir", str(spn_run.workdir), "--num", "2", "--out", str(out)]
    assert main([*command, "--step", "2", "--walk_steps", "0", "3"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "000009.png",
        "000012.png",
        "sheet.png",
        "walks.png",
    }
    printed = capsys.readouterr().out
    assert "| 000009 |" in printed and "| median |" in printed and "20 steps" in printed
    few = shape(out / "000009.png")
    assert main(command) == 0  # an image and eight maps: two rows of five
    assert shape(out / "000009.png")[1] > few[1]
    assert main([*command, "--step", "3"]) == 1
    assert "step 3" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--walk_steps", "-1"])


def test_energy(spn_run, run, split, tmp_path, capsys):
    command = ["energy", "--workdir", str(spn_run.workdir), "--out", str(tmp_path)]
    assert main([*command, "--proposals", str(spn_run.proposals)]) == 0
    printed = capsys.readouterr().out
    assert "energy_by_size.png" in printed
    shares = list(edge_shares(run.at(4), split, range(4)))
    assert edge_table({spn_run.workdir.name: shares}) in printed
    numbers = json.loads((tmp_path / "energy.json").read_text())
    (found,), (proposals,) = numbers["runs"], numbers["proposals"]
    assert found["steps"] == [0, 2, 4]
    for step, mean in zip(found["steps"], found["mean"], strict=True):
        predictor = load_run(spn_run.workdir, step)
        energies = np.array(
            [
                object_energy(result.maps.objectness(), split.truth.of_image(index).boxes)
                for index, result in enumerate(predictor.predict(split.images))
            ]
        )
        assert mean == pytest.approx(EnergyMetrics(energies).mean, abs=1e-6)
    assert list(found["images"].values()) == pytest.approx(energies.tolist(), abs=1e-6)
    of_file = file_energies(spn_run.proposals, split)
    assert list(proposals["images"].values()) == pytest.approx(of_file.tolist())
    assert list(numbers["object_area"]) == list(split.images.image_ids)
    uniform = np.mean(list(numbers["object_area"].values()))
    assert numbers["uniform_map"] == pytest.approx(uniform)
    newest = spn_run.workdir / "checkpoints" / "4"
    assert main(["energy", "--workdir", str(newest), "--out", str(tmp_path / "one")]) == 0
    assert json.loads((tmp_path / "one" / "energy.json").read_text())["runs"][0]["steps"] == [4]
    before = (tmp_path / "energy_over_training.png").read_bytes()
    few = ["--steps", "4", "0", "--split", "trainval", "--num", "2"]
    assert main([*command, *few, "--set", "scales=(48,)"]) == 0
    assert f"| {spn_run.workdir.name} | 2 |" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "energy.json").read_text())
    assert numbers["runs"][0]["steps"] == [0, 4] and len(numbers["object_area"]) == 8
    assert numbers["proposals"] == []
    assert (tmp_path / "energy_over_training.png").read_bytes() != before


def test_energy_of_proposals_without_a_run(spn_run, split, tmp_path, capsys):
    scored = ProposalSet.load(spn_run.proposals)
    scores = np.random.default_rng(0).random(len(scored.boxes)).astype(np.float32)
    files = [spn_run.proposals, tmp_path / "scored.npz"]
    dataclasses.replace(scored, scores=scores).save(files[1])
    data = ["energy", "--data", str(spn_run.data), "--out", str(tmp_path / "out")]
    command = [*data, "--split", "test", "--proposals", *map(str, files)]
    assert main(command) == 0
    assert "edges" not in capsys.readouterr().out
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["energy.json", "energy_by_size.png"]
    numbers = json.loads((tmp_path / "out" / "energy.json").read_text())
    assert numbers["runs"] == [] and len(numbers["proposals"]) == 2
    for found, path in zip(numbers["proposals"], files, strict=True):
        energies = file_energies(path, split)
        expected = dict(zip(split.images.image_ids, energies, strict=True))
        assert found["images"] == pytest.approx(expected)
    assert numbers["proposals"][0]["mean"] != numbers["proposals"][1]["mean"]


def test_energy_needs_runs_or_data_with_proposals(spn_run, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    data = ["energy", "--data", str(spn_run.data), *out]
    files = ["--proposals", str(spn_run.proposals)]
    for command in (["energy", *out, *files], [*data, *files, "--workdir", str(spn_run.workdir)]):
        with pytest.raises(SystemExit, match="2"):
            main(command)
    messages = capsys.readouterr().err
    assert "--data --workdir" in messages
    assert "--workdir: " in messages
    pictures = ["energy", "--data", str(spn_run.data / "JPEGImages"), *out, *files]
    for command, message in (
        ([*data, "--split", "test"], "--proposals"),
        ([*data, *files], "--split"),
        ([*data, *files, "--split", "test", "--steps", "4"], "--steps"),
        (
            [*data, *files, "--split", "test", "--set", "scales=(48,)"],
            "--steps",
        ),
        (pictures, "no boxes"),
    ):
        assert main(command) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_energy_of_data_that_do_not_fit(spn_run, tmp_path, capsys):
    command = ["energy", "--workdir", str(spn_run.workdir), "--out", str(tmp_path / "out")]
    other = ProposalSet(
        ids=("a",),
        sizes=np.array([[80, 100]], np.int32),
        offsets=np.array([0, 1]),
        boxes=np.array([[10, 10, 60, 52]], np.float32),
    )
    other.save(tmp_path / "other.npz")
    assert main([*command, "--proposals", str(tmp_path / "other.npz")]) == 1
    assert "4 of the 4 images" in capsys.readouterr().err
    bare = tmp_path / "bare"
    shutil.copytree(spn_run.data, bare)
    for image_id in (bare / "ImageSets" / "Main" / "test.txt").read_text().split():
        (bare / "Annotations" / f"{image_id}.xml").unlink()
    assert main([*command, "--set", f"data.root={bare}"]) == 1
    assert "no boxes" in capsys.readouterr().err
    assert main([*command, "--steps", "1"]) == 1
    assert "step 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["proposal_maps", "walk", "energy"])
def test_runs_without_maps_or_checkpoints(trained_run, tmp_path, capsys, command):
    out = ["--out", str(tmp_path / "out")]
    assert main([command, "--workdir", str(trained_run.workdir), *out]) == 1
    assert re.search("oim.*spn", capsys.readouterr().err)
    assert main([command, "--workdir", str(tmp_path), *out]) == 1
    assert str(tmp_path) in capsys.readouterr().err
