"""The benchmark: it runs, on machines with little installed, and counts what it says it counts."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import nms as oracle
from tests.oracles import roi as roi_oracle
from tests.oracles import soft_proposal as proposal_oracle
from tests.test_packaging import run_python
from wsod_jax.commands.benchmarks import kernels, soft_proposal, timing, training
from wsod_jax.nn.vgg import Vgg16

ROOT = Path(__file__).resolve().parents[1]


def count_products(jaxpr) -> float:
    """Return 2 x the multiply-adds of every convolution and matrix product in a traced function."""
    total = 0.0
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += count_products(inner)
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out_features
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * summed
    return total


@pytest.mark.parametrize("frozen", [(), ("conv1", "conv2")])
def test_step_flops_are_the_products_that_autodiff_makes(frozen):
    setting = training.Setting(20, 42, 5, dims=(6, 7), num_classes=3)
    method = training.make_method(setting, jnp.float32)
    network = method.network.clone(backbone=Vgg16(frozen=frozen))
    batch = jax.tree.map(jnp.asarray, training.make_batch(setting))

    def objective(params):
        outputs = network.apply({"params": params}, batch)
        return jnp.sum(outputs.mil_scores) + jnp.sum(outputs.refine_logits)

    params = jax.eval_shape(lambda: network.init(jax.random.key(0), batch))["params"]
    traced = jax.make_jaxpr(jax.grad(objective))(params)
    expected = count_products(traced.jaxpr)
    assert training.step_flops(setting, frozen) == pytest.approx(expected, rel=1e-6)


def test_random_boxes_lie_in_the_image():
    boxes = kernels.random_boxes(np.random.default_rng(0), 500, 60, 90)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [90.001, 60.001]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 15.99).all()


def test_references_compute_the_same():
    rng = np.random.default_rng(1)
    boxes = kernels.random_boxes(rng, 40, 64, 96)
    scores = rng.random(40).astype(np.float32)
    expected = oracle.nms_mask(boxes, scores, np.ones(40, bool), 0.3)
    np.testing.assert_array_equal(kernels.numpy_nms(boxes, scores, 0.3), expected)

    features = rng.standard_normal((8, 12, 2)).astype(np.float32)
    pooled = kernels.masked_pool(jnp.asarray(features), jnp.asarray(boxes[:6]))
    by_axis = kernels.masked_pool_by_axis(jnp.asarray(features), jnp.asarray(boxes[:6]))
    reference, _ = roi_oracle.roi_max_pool(features, boxes[:6], np.ones(6, bool), (8, 12), 7, 1 / 8)
    np.testing.assert_array_equal(pooled, reference)
    np.testing.assert_array_equal(by_axis, reference)


@pytest.mark.parametrize("chunk_bytes", [1, 300, 2**26])
def test_numpy_walks_equal_the_oracle(monkeypatch, chunk_bytes):
    monkeypatch.setattr(soft_proposal, "CHUNK_BYTES", chunk_bytes)
    features = np.asarray(soft_proposal.draw_maps(2, 4, 5))
    walks = [
        soft_proposal.numpy_batch(features, distances)
        for distances in (soft_proposal.literal_distances, soft_proposal.product_distances)
    ]
    for i, image in enumerate(features):
        expected = proposal_oracle.walk(proposal_oracle.weight_matrix(image, 0.15 * 4))
        for found in walks:
            np.testing.assert_allclose(found[i].reshape(-1), expected, rtol=1e-3)


def map_differences(notes: Iterable[str]) -> list[float]:
    """Return how far notes say that maps lie apart, as shares of the maps' maximum."""
    found = [re.search(r"maps differ by (\S+) of their maximum", note) for note in notes]
    return [float(match[1]) for match in found if match]


def test_soft_proposals_are_measured_with_numpys_answers_beside():
    rows = {row.name.strip(): row for row in soft_proposal.generation(3, 4, 5, 2, repeats=1)}
    differences = map_differences(row.note for row in rows.values())
    assert len(differences) == 2 and all(one < 1e-4 for one in differences)
    rows = {row.name.strip(): row.value for row in soft_proposal.large_map(24, 4, 16)}
    held = next(value for name, value in rows.items() if name.startswith("D' held"))
    assert held > 24**4 * 4 / 2**20 and rows["working memory"] < held / 4
    assert jax.default_backend() != "cpu" or soft_proposal.beside_published(1) == []


def test_seconds_is_the_median_of_the_calls():
    clock = iter([0.0, 0.0, 0.0, 3.0, 3.0, 4.0, 4.0, 9.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: next(clock))
        next(clock), next(clock)
        assert timing.seconds(lambda: 1.0, repeats=3) == 3.0


RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def benchmark(*arguments: str, blocked: tuple[str, ...] = ()) -> str:
    return run_python("\n" + RUN, "scripts/benchmark.py", *arguments, blocked=blocked)


def test_runs_without_tensorflow_pycocotools_and_ml_collections(tmp_path):
    out = tmp_path / "numbers.json"
    blocked = ("tensorflow", "tensorflow_datasets", "pycocotools", "ml_collections", "cv2")
    text = benchmark(
        "--task", "nms", "--small", "--repeats", "1", "--out", str(out), blocked=blocked
    )
    report = json.loads(out.read_text())
    assert report["hardware"]["cpu"] in text
    rows = {row["name"]: row for row in report["tasks"]["nms"]}
    assert rows["NMS"]["value"] > 0 and "; same answers" in rows["NMS"]["note"]


@pytest.mark.slow
def test_kernels_and_steps_run_at_small_sizes(tmp_path):
    out = tmp_path / "numbers.json"
    blocked = ("tensorflow", "tensorflow_datasets", "pycocotools", "ml_collections", "cv2")
    arguments = ["--task", "roi", "mining", "soft_proposal", "step", "gpu"]
    arguments += ["--small", "--repeats", "1"]
    benchmark(*arguments, "--out", str(out), blocked=blocked)
    tasks = json.loads(out.read_text())["tasks"]
    assert all(row["value"] >= 0 for rows in tasks.values() for row in rows)
    assert all("differ by 0" in row["note"] for row in tasks["roi"] if "RoI by RoI" in row["name"])
    assert "the same by both" in tasks["mining"][0]["note"]
    differences = map_differences(row["note"] for row in tasks["soft_proposal"])
    assert len(differences) == 2 and all(one < 1e-4 for one in differences)
    shares = [row["value"] for row in tasks["gpu"] if row["name"].endswith("share of the parts")]
    assert len(shares) == 2 and all(0 < share < 100 for share in shares)


@pytest.mark.slow
def test_compilations_equal_the_formula(tmp_path):
    out = tmp_path / "numbers.json"
    benchmark("--task", "compilations", "input", "--small", "--repeats", "1", "--out", str(out))
    train, predict, both = json.loads(out.read_text())["tasks"]["compilations"]
    assert train["value"] == predict["value"] == 5 * 2
    assert both["value"] == 2 * 5 * 2 <= 24


def test_unknown_task_is_refused():
    done = subprocess.run(
        [sys.executable, "scripts/benchmark.py", "--task", "roy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "'roy'" in done.stderr and "roi" in done.stderr
