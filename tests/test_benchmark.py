"""The benchmark: it runs, on machines with little installed, and counts what it says it counts."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import roi as roi_oracle
from tests.oracles import soft_proposal as proposal_oracle
from tests.test_packaging import run_python
from wsod_jax.commands import benchmark as benchmark_command
from wsod_jax.commands.benchmarks import (
    accelerator,
    counting,
    kernels,
    programs,
    published,
    random_walk,
    timing,
)
from wsod_jax.commands.benchmarks.rows import Options, Row, markdown
from wsod_jax.data.input.stored_batches import save_batches
from wsod_jax.methods.oim import Oim
from wsod_jax.nn.box_head import BoxHead
from wsod_jax.nn.vgg import STAGES, Vgg16

ROOT = Path(__file__).resolve().parents[1]


def step_flops(size: published.Size, dims: tuple[int, ...], frozen: tuple[str, ...]) -> float:
    """Return the multiply-adds of an update of OIM with VGG16, times 2, layer by layer.

    A layer costs n multiply-adds forward, n for the gradient of its kernel, and n for that of its input. Frozen
    layers have no kernel gradient; layers with nothing trained below them need no input gradient.
    """
    total, trained_below = 0.0, False
    (height, width), inputs = size.image, 3
    for stage, (num_convs, channels) in enumerate(STAGES, start=1):
        for i in range(num_convs):
            products = 1 + trained_below
            if not any(f"conv{stage}_{i + 1}".startswith(prefix) for prefix in frozen):
                products, trained_below = products + 1, True
            total += products * 2 * 9 * inputs * channels * height * width
            inputs = channels
        if stage <= 3:
            height, width = -(-height // 2), -(-width // 2)
    widths = [inputs * 7**2, *dims]
    weights = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    weights += widths[-1] * (2 * size.num_classes + 3 * (size.num_classes + 1))  # three stages
    return total + (2 + trained_below) * 2 * weights * size.proposals


@pytest.mark.parametrize("frozen", [(), ("conv1", "conv2")])
def test_operations_are_those_of_the_layers(frozen):
    size, dims = published.Size(1, (20, 42), (20, 42), 5, 5, num_classes=3), (6, 7)
    backbone = Vgg16(frozen=frozen)
    method = Oim(backbone=backbone, num_classes=3, max_classes=3, box_head=BoxHead(dims))
    network = method.network
    batch = jax.tree.map(jnp.asarray, published.random_batch(size))

    def objective(params):
        outputs = network.apply({"params": params}, batch)
        return jnp.sum(outputs.mil_scores) + jnp.sum(outputs.refine_logits)

    params = jax.eval_shape(lambda: network.init(jax.random.key(0), batch))["params"]
    counted = counting.model_flops(jax.grad(objective), params)
    assert counted == pytest.approx(step_flops(size, dims, frozen), rel=1e-6)


def test_operations_in_loops_and_branches():
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def looped(x):
        return jax.lax.scan(lambda y, _: (y @ x, None), x, length=5)[0]

    def branching(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    one = 2 * 4**3
    assert counting.model_flops(jax.jit(looped), x) == 5 * one
    assert counting.model_flops(branching, x) == 2 * one


def test_a_program_that_visits_the_host_is_found():
    def visiting(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    x = jnp.ones(3)
    assert any("callback" in name for name in counting.host_calls(compiled(visiting, x)))
    assert counting.host_calls(compiled(jnp.sin, x)) == ()


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


# ---------------------------------------------------------------------------------------------------
# The task `gpu`


def plan(*prepared) -> list[programs.Program]:
    """Make programs of functions that prepare them."""
    rows = [Row(program=str(n), dtype="float32") for n in range(len(prepared))]
    return [programs.Program(*both) for both in zip(rows, prepared, strict=True)]


def product() -> programs.Ready:
    return programs.Ready(jax.jit(jnp.matmul), (jnp.ones((8, 8)), jnp.ones((8, 8))), 2.0 * 8**3)


def too_large() -> programs.Ready:
    raise MemoryError("RESOURCE_EXHAUSTED: out of memory\nand a long dump")


def test_a_program_that_fails_is_a_row_and_the_next_goes_on(monkeypatch):
    saved = []
    monkeypatch.setattr(accelerator, "programs", lambda options: plan(product, too_large, product))
    rows = accelerator.measure(Options(repeats=1), lambda rows: saved.append(list(rows)))
    assert [row.status for row in rows] == ["done", "failed", "done"]
    assert rows[1].error == "MemoryError: RESOURCE_EXHAUSTED: out of memory"
    assert rows[0].ms > 0 and rows[0].memory_gib > 0 and rows[0].tflop == 2 * 8**3 / 1e12
    assert [sum(row.status != "not run" for row in then) for then in saved] == [0, 1, 2, 3]


def test_no_program_starts_after_the_budget(monkeypatch):
    now = [0.0]

    def slow() -> programs.Ready:
        now[0] += 6
        return product()

    monkeypatch.setattr(accelerator.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(accelerator, "programs", lambda options: plan(slow, slow, slow))
    rows = accelerator.measure(Options(repeats=1, budget=10.0), lambda rows: None)
    assert [row.status for row in rows] == ["done", "done", "not run"]
    table = markdown(rows, {"device": "a device"}, Options(budget=10.0))
    assert "device: a device" in table and table.count("| not run |") == 1


def test_shares_are_of_the_matrix_product_of_the_same_type(monkeypatch):
    listed = plan(product, product)
    first = dataclasses.replace(listed[0], row=Row(program=programs.MATRIX, dtype="float32"))
    other = dataclasses.replace(listed[1], row=Row(program="x", dtype="bfloat16"))
    monkeypatch.setattr(accelerator, "programs", lambda options: [first, listed[1], other])
    peak, row, without = accelerator.measure(Options(repeats=1), lambda rows: None)
    assert peak.share == 1 and without.share is None
    assert row.share == pytest.approx(peak.ms / row.ms)


def test_programs_come_by_type_and_method_as_asked():
    listed = programs.programs(Options(methods=("spn", "oim_ir"), small=True))
    names = [program.row.program for program in listed]
    types = [program.row.dtype for program in listed]
    assert types == sorted(types) and set(types) == set(programs.DTYPES)  # bfloat16 first
    assert names.index("spn: training step") < names.index("oim_ir: training step")
    parts = [name.partition(": part ")[2] for name in names if "oim_ir: part" in name]
    assert parts == 2 * ["backbone", "pooling", "heads", "mining"]


def test_pooling_and_suppression_run_at_small_sizes():
    listed = [*programs.pooling_programs("bfloat16", True), *programs.suppression_programs(True)]
    rows = [accelerator.run_program(program, 1, None) for program in listed]
    assert [row.error for row in rows] == [""] * 7
    assert all(row.status == "done" and row.ms > 0 and row.host == () for row in rows)


def test_stored_batches_are_taken_one_of_each_layout(tmp_path):
    small = published.random_batch(published.SMALL_SIZES["proposals"][0])
    flat = published.random_batch(published.SMALL_SIZES["maps"][0])
    save_batches([small, small, flat], tmp_path / "b.npz")
    first, second = published.stored_batches(tmp_path / "b.npz")
    assert published.describe(first) == str(published.SMALL_SIZES["proposals"][0])
    assert published.describe(second) == str(published.SMALL_SIZES["maps"][0])
    (shapes,) = published.without_padding(first)
    assert shapes.image.shape == (1, 60, 90, 3) and shapes.proposals.shape == (1, 30, 4)
    options = Options(methods=("wsddn",), small=True, batches=tmp_path / "b.npz")
    with_boxes, without = [
        program
        for program in programs.programs(options)
        if program.row.program == "wsddn: predict step" and program.row.dtype == "float32"
    ]
    assert accelerator.run_program(with_boxes, 1, None).status == "done"
    assert "needs proposals" in accelerator.run_program(without, 1, None).error


def test_random_boxes_lie_in_the_image():
    boxes = kernels.random_boxes(np.random.default_rng(0), 500, 60, 90)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [90.001, 60.001]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 15.99).all()


def test_references_compute_the_same():
    rng = np.random.default_rng(1)
    boxes = kernels.random_boxes(rng, 6, 64, 96)
    features = rng.standard_normal((8, 12, 2)).astype(np.float32)
    pooled = kernels.masked_pool(jnp.asarray(features), jnp.asarray(boxes))
    expected, _ = roi_oracle.roi_max_pool(features, boxes, np.ones(6, bool), (8, 12), 7, 1 / 8)
    np.testing.assert_array_equal(pooled, expected)

    for image in np.asarray(random_walk.draw_maps(2, 4, 5)):
        walked = proposal_oracle.walk(proposal_oracle.weight_matrix(image, 0.15 * 4))
        np.testing.assert_allclose(random_walk.numpy_walk(image).reshape(-1), walked, rtol=1e-3)


def map_differences(notes: Iterable[str]) -> list[float]:
    """Return how far notes say that maps lie apart, as shares of the maps' maximum."""
    found = [re.search(r"maps differ by (\S+) of their maximum", note) for note in notes]
    return [float(match[1]) for match in found if match]


def test_soft_proposals_are_measured_with_numpys_answers_beside():
    rows = {row.name.strip(): row for row in random_walk.generation(3, 4, 5, 2, repeats=1)}
    differences = map_differences(row.note for row in rows.values())
    assert len(differences) == 1 and all(one < 1e-4 for one in differences)
    rows = {row.name.strip(): row.value for row in random_walk.large_map(24, 4, 16)}
    held = next(value for name, value in rows.items() if name.startswith("D' held"))
    assert held > 24**4 * 4 / 2**20 and rows["working memory"] < held / 4


@pytest.mark.parametrize("task", benchmark_command.TASKS)
def test_every_task_names_a_function(task):
    module, function, _ = benchmark_command.TASKS[task]
    found = importlib.import_module(f"wsod_jax.commands.benchmarks.{module}")
    assert callable(getattr(found, function))


def test_seconds_is_the_median_of_the_calls():
    clock = iter([0.0, 0.0, 0.0, 3.0, 3.0, 4.0, 4.0, 9.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time, "perf_counter", lambda: next(clock))
        next(clock), next(clock)
        assert timing.seconds(lambda: 1.0, repeats=3) == 3.0


def test_the_crf_is_timed_on_a_map_and_an_image():
    measures = kernels.conditional_random_field(small=True, repeats=1)
    assert [m.unit for m in measures] == ["ms", "MiB", "ms", "MiB"]
    assert "16x16, 21 classes" in measures[0].name and "50x40 test image" in measures[2].name
    assert all(m.value > 0 for m in measures)


def test_laptop_backbones_are_timed_on_the_same_pixels():
    squeezenet, lite = kernels.laptop_backbones(small=True, repeats=1)
    assert (squeezenet.name, lite.name) == ("squeezenet1_1", "efficientnet_lite0")
    assert squeezenet.note == lite.note and squeezenet.value > 0 and lite.value > 0


BLOCKED = ("tensorflow", "tensorflow_datasets", "pycocotools", "ml_collections", "cv2")
RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def benchmark(*arguments: str, blocked: tuple[str, ...] = ()) -> str:
    return run_python("\n" + RUN, "scripts/benchmark.py", *arguments, blocked=blocked)


def test_runs_without_tensorflow_pycocotools_and_ml_collections(tmp_path):
    out = tmp_path / "numbers.json"
    text = benchmark(
        "--task", "nms", "--small", "--repeats", "1", "--out", str(out), blocked=BLOCKED
    )
    report = json.loads(out.read_text())
    assert report["hardware"]["cpu"] in text
    rows = {row["name"]: row for row in report["tasks"]["nms"]}
    assert rows["NMS"]["value"] > 0 and "; same answers" in rows["NMS"]["note"]


def test_the_task_gpu_needs_little_installed_and_says_what_it_did_not_run(tmp_path):
    out = tmp_path / "numbers.json"
    arguments = ["--task", "gpu", "--small", "--budget", "0", "--methods", "spn"]
    text = benchmark(*arguments, "--out", str(out), blocked=BLOCKED)
    report = json.loads(out.read_text())
    rows = report["tasks"]["gpu"]
    assert len(rows) > 10 and {row["status"] for row in rows} == {"not run"}
    table = out.with_suffix(".md").read_text()
    assert table in text and report["hardware"]["cpu"] in table
    assert not list(tmp_path.glob("*.partial"))


def test_an_unknown_method_is_refused(tmp_path):
    command = ["--task", "gpu", "--methods", "oimm", "--out", str(tmp_path / "a.json")]
    done = subprocess.run(
        [sys.executable, "scripts/benchmark.py", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "oimm: unknown" in done.stderr and "oim_ir" in done.stderr


@pytest.mark.slow
def test_the_task_gpu_runs_at_small_sizes(tmp_path):
    out = tmp_path / "numbers.json"
    arguments = ["--task", "gpu", "--small", "--repeats", "1", "--budget", "1000"]
    benchmark(*arguments, "--out", str(out), blocked=BLOCKED)
    rows = json.loads(out.read_text())["tasks"]["gpu"]
    assert [row["program"] for row in rows if row["status"] != "done"] == []
    assert not any(row["host"] for row in rows)
    steps = [row for row in rows if row["program"].endswith("training step")]
    assert len(steps) == 4 and all(row["tflop"] > 0 and row["share"] > 0 for row in steps)


@pytest.mark.slow
def test_kernels_and_steps_run_at_small_sizes(tmp_path):
    out = tmp_path / "numbers.json"
    arguments = ["--task", "roi", "mining", "soft_proposal", "step"]
    arguments += ["--small", "--repeats", "1"]
    benchmark(*arguments, "--out", str(out), blocked=BLOCKED)
    tasks = json.loads(out.read_text())["tasks"]
    assert all(row["value"] >= 0 for rows in tasks.values() for row in rows)
    assert all("differ by 0" in row["note"] for row in tasks["roi"] if "RoI by RoI" in row["name"])
    assert "the same by both" in tasks["mining"][0]["note"]
    differences = map_differences(row["note"] for row in tasks["soft_proposal"])
    assert len(differences) == 1 and all(one < 1e-4 for one in differences)


def test_unknown_task_is_refused():
    done = subprocess.run(
        [sys.executable, "scripts/benchmark.py", "--task", "roy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "'roy'" in done.stderr and "roi" in done.stderr
