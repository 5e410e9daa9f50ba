"""Selective search: boxes, determinism, resuming, bad images, and the script around it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsod_jax.commands import make_proposals
from wsod_jax.data.proposals import writing as proposal_writing
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.proposals.selective_search import SearchOptions, propose, run_selective_search
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.data.synthetic.dataset import SyntheticSpec, write_synthetic
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.ops.boxes import pairwise_iou

REPOSITORY = Path(__file__).parents[3]


def scene(height=90, width=120):
    """Return a picture of two discs on a plain ground and their boxes."""
    image = np.full((height, width, 3), (40, 90, 60), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    image[np.hypot(rows - 30, columns - 35) < 20] = (220, 60, 50)
    image[np.hypot(rows - 60, columns - 85) < 22] = (240, 220, 90)
    return image, np.array([[16, 11, 55, 50], [64, 39, 107, 82]], np.float32)


def write_images(folder, count, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        noise = rng.integers(0, 255, (4, 6, 3), dtype=np.uint8)
        path = folder / f"{i:03d}.png"
        Image.fromarray(noise).resize((48, 32), Image.Resampling.NEAREST).save(path)
        records.append(ImageRecord(path.stem, path, 32, 48))
    return ImageSet("noise", (), tuple(records))


def assert_same(a: ProposalSet, b: ProposalSet):
    assert a.ids == b.ids and a.generator == b.generator
    for field in ("boxes", "offsets", "sizes"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


@pytest.mark.parametrize("method", ["fast", "quality"])
def test_objects_are_found_at_their_continuous_edges(method):
    image, objects = scene()
    boxes = propose(image, SearchOptions(method))
    assert boxes.dtype == np.float32
    assert pairwise_iou(objects, boxes).max(1).min() > 0.9
    assert [0, 0, 120, 90] in boxes.tolist()  # the whole image has width 120, not 119
    assert len(np.unique(boxes, axis=0)) == len(boxes)


def test_searching_a_shrunk_copy_gives_boxes_of_the_original():
    image, objects = scene()
    large = np.kron(image, np.ones((4, 4, 1), np.uint8))
    boxes = propose(large, SearchOptions(max_side=120))
    assert pairwise_iou(4 * objects, boxes).max(1).min() > 0.85
    assert boxes[:, 2].max() == 480 and boxes[:, 3].max() == 360


def test_no_box_has_a_side_below_min_side():
    image, _ = scene()
    boxes = propose(image, SearchOptions(min_side=0))
    smallest = (boxes[:, 2:] - boxes[:, :2]).min()
    kept = propose(image, SearchOptions(min_side=float(smallest)))
    assert len(kept) == len(boxes)  # the limit itself is kept
    fewer = propose(image, SearchOptions(min_side=float(smallest) + 1))
    assert 0 < len(fewer) < len(boxes)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (2, 3), (16, 16)])
def test_tiny_long_and_plain_images_give_the_whole_image(shape):
    boxes = propose(np.full((*shape, 3), 7, np.uint8), SearchOptions())
    assert boxes.tolist() == [[0, 0, shape[1], shape[0]]]


def test_options_are_checked():
    with pytest.raises(ConfigError, match='"fast".*"quality".*\'slow\''):
        SearchOptions(method="slow")
    with pytest.raises(ConfigError, match="min_side|negative"):
        SearchOptions(min_side=-1)


def test_importing_brings_neither_jax_nor_tensorflow():
    code = (
        "import sys, wsod_jax.data.proposals.selective_search as s; "
        "assert not {'jax', 'tensorflow'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_result_does_not_depend_on_workers(tmp_path):
    images = write_images(tmp_path, 6)
    one = run_selective_search(images, tmp_path / "1.npz", workers=1).proposals
    two = run_selective_search(images, tmp_path / "2.npz", workers=2).proposals
    assert_same(one, two)
    assert_same(one, ProposalSet.load(tmp_path / "2.npz"))
    assert one.ids == images.image_ids


def test_interrupted_search_goes_on_where_it_stopped(tmp_path, monkeypatch):
    images = write_images(tmp_path, 9)
    whole = run_selective_search(images, tmp_path / "whole.npz").proposals
    monkeypatch.setattr(proposal_writing, "PART_SIZE", 2)

    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        run_selective_search(images, out, report=interrupt)
    assert not out.exists()

    reports = []
    again = run_selective_search(images, out, report=lambda *r: reports.append(r)).proposals
    assert reports == [(6, 9), (7, 9), (8, 9), (9, 9)]  # five were kept
    assert_same(again, whole)
    assert not (tmp_path / "out.npz.parts").exists()

    run_selective_search(images, out, report=lambda *r: pytest.fail("nothing is left to do"))


def test_a_file_grows_by_further_images_and_replaces_resized_ones(tmp_path):
    images = write_images(tmp_path, 4)
    out = tmp_path / "out.npz"
    run_selective_search(images.select([0, 1]), out)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "001.png")
    changed = ImageRecord("001", tmp_path / "001.png", 20, 20)
    more = ImageSet("more", (), (changed, *images.records[2:]))
    grown = run_selective_search(more, out).proposals
    assert grown.ids == ("001", "002", "003", "000")
    assert grown.size("001") == (20, 20)


def test_proposals_made_otherwise_are_not_mixed(tmp_path):
    images = write_images(tmp_path, 1)
    run_selective_search(images, tmp_path / "out.npz")
    with pytest.raises(DataError, match=r"out\.npz"):
        run_selective_search(images, tmp_path / "out.npz", options=SearchOptions("quality"))


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_images_are_named_and_left_out(tmp_path, workers):
    images = write_images(tmp_path, 5)
    (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes()[:60])
    (tmp_path / "003.png").unlink()
    result = run_selective_search(images, tmp_path / "out.npz", workers=workers)
    assert [image_id for image_id, _ in result.failures] == ["001", "003"]
    assert "001.png" in result.failures[0][1]
    assert result.proposals.ids == ("000", "002", "004")


def test_images_without_a_file_are_searched_too(tmp_path):
    files = write_images(tmp_path, 3)
    in_memory = ImageSet(
        "memory",
        (),
        tuple(
            ImageRecord(r.image_id, lambda p=r.path: p.read_bytes(), r.height, r.width)
            for r in files.records
        ),
    )
    a = run_selective_search(files, tmp_path / "a.npz").proposals
    b = run_selective_search(in_memory, tmp_path / "b.npz", workers=2).proposals
    assert_same(a, b)


def test_no_readable_image_is_an_error(tmp_path):
    images = write_images(tmp_path, 1)
    (tmp_path / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 images.*000\.png"):
        run_selective_search(images, tmp_path / "out.npz")


def test_script_searches_voc_splits_and_reports_recall(tmp_path, capsys):
    write_synthetic(tmp_path / "set", SyntheticSpec(num_trainval=3, num_test=2, size=96))
    out = tmp_path / "p.npz"
    arguments = ["--data", str(tmp_path / "set"), "--out", str(out), "--workers", "1", "--report"]
    assert make_proposals.main([*arguments, "--split", "trainval", "test", "train"]) == 0
    printed = capsys.readouterr().out
    assert len(ProposalSet.load(out)) == 5
    assert f"Wrote {out}: 5 images" in printed and "recall@0.5" in printed
    assert make_proposals.main(arguments) == 1
    assert "--split" in capsys.readouterr().err


def test_script_searches_a_folder_of_pictures(tmp_path, capsys, caplog):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write_images(tmp_path / "in", 2)
    write_images(tmp_path / "in" / "deep", 1)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"")
    arguments = ["--data", str(tmp_path / "in"), "--workers", "1", "--out"]
    assert make_proposals.main([*arguments, str(tmp_path / "p.npz")]) == 0
    assert ProposalSet.load(tmp_path / "p.npz").ids == ("000", "001", "deep/000")
    assert "broken.jpg" in caplog.text
    assert make_proposals.main([*arguments, str(tmp_path / "p.npy")]) == 1
    (tmp_path / "in" / "000.bmp").write_bytes(b"")
    assert make_proposals.main([*arguments, str(tmp_path / "q.npz")]) == 1
    assert "000.bmp" in capsys.readouterr().err
    assert make_proposals.main(["--data", "nowhere", "--out", "p.npz"]) == 1
    assert "nowhere" in capsys.readouterr().err


def living_processes(group: int) -> list[str]:
    """Return the pids of a process group, without those that only wait to be reaped."""
    listing = subprocess.run(
        ["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in listing.stdout.splitlines())
    return [pid for pid, pgid, state in rows if int(pgid) == group and state[0] != "Z"]


@pytest.fixture
def listening_to_ctrl_c():
    """Undo what a shell does to commands it starts with `&`: they, and so the tests' children, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("listening_to_ctrl_c")
def test_ctrl_c_keeps_finished_images_and_leaves_no_process(tmp_path):
    write_synthetic(tmp_path / "set", SyntheticSpec(num_trainval=120, num_test=0))
    out = tmp_path / "p.npz"
    command = [sys.executable, "scripts/make_proposals.py", "--data", str(tmp_path / "set")]
    command += ["--split", "trainval", "--out", str(out), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("p.npz.parts/part-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted; finished images are kept" in errors and b"Traceback" not in errors
    while living_processes(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)  # workers finish the image they are at
    assert not living_processes(process.pid)
    kept = sum(len(ProposalSet.load(p)) for p in tmp_path.glob("p.npz.parts/part-*.npz"))
    assert 0 < kept < 120
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    assert len(ProposalSet.load(out)) == 120


def test_options_are_read_back_from_a_file(tmp_path):
    options = SearchOptions("quality", min_side=12.5, max_side=0)
    images, path = write_images(tmp_path, 1), tmp_path / "p.npz"
    run_selective_search(images, path, options=options)
    generator = ProposalSet.read_generator(path)
    assert SearchOptions.of_generator(generator) == options
    assert SearchOptions.of_generator("edge boxes (fast)") is None
    assert ProposalSet.read_generator(tmp_path / "missing.npz") is None
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    assert ProposalSet.read_generator(tmp_path / "broken.npz") is None
