"""Proposals out of a run's maps: their file, resumption, what is refused, and a detector that reads them."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest

from tests.commands import refused
from tests.nn.cases import image_batch
from wsod_jax import build
from wsod_jax.analysis.map_proposals import FieldOptions, field_boxes, propose_fields
from wsod_jax.commands import make_proposals
from wsod_jax.data.proposals import writing as proposal_writing
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.records import ImageRecord, ImageSet
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.methods.spn import Spn
from wsod_jax.nn.layers import Window, receptive_field
from wsod_jax.nn.spn_network import SoftProposal
from wsod_jax.nn.tiny import TinyNet
from wsod_jax.nn.vgg import Vgg16
from wsod_jax.runs.predictor import load_run
from wsod_jax.runs.training_data import TrainingData

FEW = FieldOptions(20, (0.25, 0.5))


@pytest.fixture(scope="module")
def images(spn_run):
    splits = [Voc(root=spn_run.data).images(split) for split in ("trainval", "test")]
    return ImageSet("both", splits[0].class_names, splits[0].records + splits[1].records)


@pytest.fixture(scope="module")
def made(spn_run, images, tmp_path_factory):
    """The file of the run's newest checkpoint."""
    out = tmp_path_factory.mktemp("proposing") / "fields.npz"
    propose_fields(spn_run.workdir, images, out, options=FEW)
    return out


def test_the_file_holds_the_best_receptive_fields_of_every_image(spn_run, images, made):
    found = ProposalSet.load(made)
    assert found.ids == images.image_ids and found.max_count == 20
    assert not made.with_name(made.name + ".parts").exists()
    predictor = load_run(spn_run.workdir)
    field = receptive_field((*TinyNet(stride=4).geometry, Window(3, pad=1)))
    for index in (0, len(images) - 1):
        record = images.records[index]
        [result] = predictor.predict(images.select([index]))
        (view,) = result.maps.views
        boxes, scores = field_boxes([view], (record.height, record.width), field, FEW)
        np.testing.assert_allclose(found.get_scores(record.image_id), scores, rtol=1e-5)
        np.testing.assert_allclose(found.get(record.image_id), boxes, rtol=1e-5, atol=1e-4)
        assert len(np.unique(scores)) > 5
        assert max(view.size_px) == 64 and not view.mirrored


def test_the_generator_tells_method_step_weights_and_options(spn_run, images, made, tmp_path):
    name = ProposalSet.read_generator(made)
    assert name.startswith(
        "receptive fields of spn (num=20, sizes=(0.25, 0.5), aspects=(1), nms_thr=0.7, step 4, "
        "weights "
    )
    assert name.endswith(", walk, short side 64)")
    changed = {
        "step 2, weights": {"step": 2},
        "num=9,": {"options": FieldOptions(9)},
        "stationary": {"changes": ("method.soft_proposal.solver=stationary",)},
        "short side 64, 96, mirrored too": {
            "changes": ("scales=(64,96)", "flips=(False,True)", "method.soft_proposal.solver=walk")
        },
    }
    for number, (words, how) in enumerate(changed.items()):
        out = tmp_path / f"{number}.npz"
        propose_fields(spn_run.workdir, images.select([0]), out, **how)
        assert words in ProposalSet.read_generator(out)
    other = ProposalSet.read_generator(tmp_path / "0.npz")
    assert other.split("weights ")[1][:8] != name.split("weights ")[1][:8]
    with pytest.raises(DataError, match=r"step 4.*step 2"):
        propose_fields(spn_run.workdir, images, made, options=FEW, step=2)


def test_an_interrupted_call_goes_on_where_it_stopped(spn_run, images, made, tmp_path, monkeypatch):
    monkeypatch.setattr(proposal_writing, "PART_SIZE", 2)

    def interrupt(done, total):
        if done == 5:
            raise KeyboardInterrupt

    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        propose_fields(spn_run.workdir, images, out, options=FEW, report=interrupt)
    assert not out.exists()
    reports = []
    again = propose_fields(
        spn_run.workdir, images, out, options=FEW, report=lambda *r: reports.append(r)
    )
    assert reports[0] == (6, 12) and reports[-1] == (12, 12)
    whole = ProposalSet.load(made)
    assert again.proposals.ids == whole.ids and not again.failures
    np.testing.assert_allclose(again.proposals.scores, whole.scores, rtol=1e-4)


def test_unreadable_images_are_named_and_left_out(spn_run, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    size = images.records[0]
    record = ImageRecord("bad", bad, size.height, size.width, size.labels)
    some = dataclasses.replace(images, records=(record, *images.records[:2]))
    result = propose_fields(spn_run.workdir, some, tmp_path / "out.npz")
    assert [image_id for image_id, _ in result.failures] == ["bad"]
    assert "bad.jpg" in result.failures[0][1]
    assert result.proposals.ids == images.image_ids[:2]


def test_runs_that_rank_no_receptive_fields_are_refused(spn_run, trained_run, images, tmp_path):
    out = tmp_path / "out.npz"
    with pytest.raises(ConfigError, match=r"oim.*SPN"):
        propose_fields(trained_run.workdir, images, out)
    with pytest.raises(ConfigError, match=r"uniform.*method.soft_proposal.solver=walk"):
        propose_fields(
            spn_run.workdir, images, out, changes=("method.soft_proposal.solver=uniform",)
        )
    with pytest.raises(DataError, match="nowhere"):
        propose_fields(tmp_path / "nowhere", images, out)
    with pytest.raises(DataError, match="3"):
        propose_fields(spn_run.workdir, images, out, step=3)
    damaged = tmp_path / "4"
    shutil.copytree(spn_run.workdir / "checkpoints" / "4", damaged)
    (damaged / "metadata" / "metadata").write_text("{}")
    with pytest.raises(DataError, match=str(damaged)):
        propose_fields(damaged, images, out)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("backbone", [TinyNet(stride=4), TinyNet(stride=8), Vgg16(dilated=False)])
def test_the_field_of_a_proposal_map_has_the_extra_convolution(backbone):
    def field(**options):
        return Spn(backbone=backbone, num_classes=3, **options).proposal_field()

    own = backbone.receptive_field()
    assert field(extra_channels=None) == own
    extra = field()
    assert extra.size_px == own.size_px + 2 * own.stride_px
    assert (extra.stride_px, extra.center_px) == (own.stride_px, own.center_px)
    with pytest.raises(ConfigError, match="insert_after.*'conv3_2'"):
        field(insert_after="conv3_2", soft_proposal=SoftProposal(unit_mean=True))


def test_a_cell_of_the_proposal_map_sees_just_its_field():
    network = Spn(backbone=TinyNet(stride=8), num_classes=3, extra_channels=8).network
    image = jax.random.uniform(jax.random.key(0), (1, 160, 160, 3)) * 255
    size = np.array([[160, 160]], np.int32)

    def cell(module, image):
        return (
            module.final_map(module.backbone(image_batch(image, size))["c5"])
            .features[0, 10, 9]
            .sum()
        )

    params = network.init(jax.random.key(1), image, method=cell)
    moved = jax.grad(lambda x: network.apply(params, x, method=cell))(image)[0]
    rows, columns, _ = np.nonzero(np.asarray(moved))
    field = network.proposal_field()
    for seen, index in ((rows, 10), (columns, 9)):
        low = field.center_px + index * field.stride_px - field.size_px / 2
        assert low <= seen.min() < low + 8
        assert low + field.size_px - 8 < seen.max() + 1 <= low + field.size_px


def test_script_makes_them_and_compares_recall(spn_run, tmp_path, capsys):
    out = tmp_path / "fields.npz"
    arguments = ["--data", str(spn_run.data), "--split", "test", "--out", str(out)]
    arguments += ["--workdir", str(spn_run.workdir), "--num", "150", "--sizes", "0.2", "0.6"]
    compared = ["--report", "--compare_with", str(spn_run.proposals)]
    assert make_proposals.main([*arguments, "--aspects", "0.5", "2", *compared]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"{out}: 4 images, 150 proposals", printed)
    table = printed.split("at most")[1].splitlines()
    assert [line.split()[:2] for line in table[1:4]] == [
        [str(out), "100"],
        [str(out), "all"],
        [str(spn_run.proposals), "100"],
    ]
    assert "sizes=(0.2, 0.6), aspects=(0.5, 2), nms_thr=0.7, step 4" in ProposalSet.read_generator(
        out
    )
    for options, message in (
        (["--step", "3"], "step 3"),
        (["--set", "scalse=(96,)"], "scales"),
        (["--report", "--compare_with", "none.npz"], "none.npz"),
    ):
        refused(make_proposals.main, [*arguments, *options], message, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "5"], "--num .*--workdir"),
        (["--step", "0"], "--step .*--workdir"),
        (["--workdir", "r", "--import", "a.mat"], "--workdir"),
        (["--compare_with", "a.npz"], "--compare_with .*--report"),
    ],
)
def test_script_refuses_options_that_have_no_say(arguments, message, capsys):
    with pytest.raises(SystemExit):
        make_proposals.main(["--data", "d", "--out", "o.npz", *arguments])
    assert re.search(message, capsys.readouterr().err)


def test_a_detector_trains_on_them(trained_run, made):
    values = trained_run.config.copy_and_resolve_references()
    values.proposals.path = str(made)
    config = build.read_config(values)
    data = TrainingData.read(config)
    batch = data.example()
    assert batch.proposal_mask.sum(axis=1).min() >= 1 and batch.proposal_scores is not None
    method = build.method(config, num_classes=6, max_classes=data.max_classes, max_targets=1)
    params, extras = jax.eval_shape(method.init, jax.random.key(0), batch)
    keys = (jax.random.key(0), jax.numpy.int32(0))
    output = jax.eval_shape(method.loss, params, extras, batch, *keys)
    assert output.terms
