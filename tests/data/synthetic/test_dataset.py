"""The synthetic set: the properties of its default difficulty, its files, and its determinism."""

import collections
import dataclasses
import hashlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from wsod_jax.commands import make_synthetic
from wsod_jax.data.proposals.selective_search import SearchOptions, propose
from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.synthetic import dataset as synthetic
from wsod_jax.data.synthetic.dataset import (
    SyntheticSpec,
    pretraining_spec,
    split_ids,
    write_synthetic,
)
from wsod_jax.data.synthetic.objects import CATALOGUE
from wsod_jax.data.synthetic.scenes import mask_box, render_scene
from wsod_jax.errors import ConfigError, DataError
from wsod_jax.ops.boxes import box_area, pairwise_iou

SMALL = SyntheticSpec(num_trainval=5, num_test=2, size=64, val_fraction=0.4)


@pytest.fixture(scope="module")
def default_scenes():
    spec = SyntheticSpec()
    return [render_scene(spec, index) for index in range(100)]


def boxes_of(scene, attribute="mask"):
    return np.stack([mask_box(getattr(item, attribute)) for item in scene.objects])


def test_default_selective_search_finds_the_objects(default_scenes):
    best = [
        pairwise_iou(boxes_of(scene), propose(scene.image, SearchOptions())).max(axis=1)
        for scene in default_scenes[:35]
    ]
    assert (np.concatenate(best) >= 0.5).mean() >= 0.95


def test_default_images_often_hold_several_objects_of_a_class(default_scenes):
    counts = [collections.Counter(o.class_index for o in s.objects) for s in default_scenes]
    assert np.mean([max(c.values()) >= 2 for c in counts]) >= 0.4
    assert all(len(c) <= 2 for c in counts)
    assert set().union(*counts) == set(range(6))


def test_default_objects_fill_about_half_of_their_boxes(default_scenes):
    masks = [np.array([item.mask.sum() for item in scene.objects]) for scene in default_scenes]
    areas = [box_area(boxes_of(scene)) for scene in default_scenes]
    ratios = np.concatenate(masks) / np.concatenate(areas)
    assert 0.45 <= np.mean(ratios) <= 0.65


def test_default_parts_are_no_detections_of_their_objects(default_scenes):
    for scene in default_scenes:
        for item in scene.objects:
            assert item.part_mask.any() and not (item.part_mask & ~item.mask).any()
            part, whole = mask_box(item.part_mask)[None], mask_box(item.mask)[None]
            assert pairwise_iou(part, whole)[0, 0] < 0.5


def test_default_objects_vary_in_size_and_stay_visible(default_scenes):
    sides = np.concatenate([np.sqrt(box_area(boxes_of(s))) for s in default_scenes]) / 160
    assert sides.min() < 0.22 and sides.max() > 0.5
    for scene in default_scenes:
        overlaps = np.sum([item.mask for item in scene.objects], axis=0)
        assert overlaps.max() == 1  # masks show what is visible, so they never share a pixel


def test_background_goes_with_the_class_more_often_than_by_chance():
    def distance_to_own(context):
        spec = SyntheticSpec(context=context, two_classes=0.0, noise=0.0)
        distances = []
        for index in range(24):
            scene = render_scene(spec, index)
            corner = scene.image[:6].reshape(-1, 3).mean(0)
            own = spec.classes[scene.objects[0].class_index]
            distances.append(np.abs(corner - np.mean(CATALOGUE[own].context, axis=0)).mean())
        return np.median(distances)

    assert distance_to_own(1.0) < 0.7 * distance_to_own(0.0)


def test_part_contrast_decides_how_parts_differ_from_bodies():
    def difference(part_contrast):
        spec = SyntheticSpec(part_contrast=part_contrast, noise=0.0, body_contrast=0.0)
        values = []
        for index in range(10):
            scene = render_scene(spec, index)
            for item in scene.objects:
                pixels = scene.image.astype(float)
                body = pixels[item.mask & ~item.part_mask].mean(0)
                values.append(np.abs(pixels[item.part_mask] - body).mean())
        return np.mean(values)

    assert difference(0.0) < 0.35 * difference(0.5) < 0.35 * difference(1.0)


def test_images_depend_on_seed_and_index_alone():
    spec = SyntheticSpec(num_trainval=10)
    longer = dataclasses.replace(spec, num_trainval=20)
    np.testing.assert_array_equal(render_scene(spec, 3).image, render_scene(longer, 3).image)
    assert (render_scene(spec, 3).image != render_scene(spec, 4).image).any()
    other = dataclasses.replace(spec, seed=1)
    assert (render_scene(spec, 3).image != render_scene(other, 3).image).any()


def test_pretraining_images_hold_one_object_from_another_seed():
    spec = pretraining_spec(SyntheticSpec())
    scenes = [render_scene(spec, index) for index in range(24)]
    assert all(len(s.objects) == 1 for s in scenes)
    assert {s.objects[0].class_index for s in scenes} == set(range(6))
    assert spec.seed != SyntheticSpec().seed


def test_objects_hidden_completely_are_left_out():
    spec = SyntheticSpec(
        max_overlap=1.0, object_side=(0.6, 0.9), size=48, instances=(0, 0, 0, 0, 1)
    )
    scenes = [render_scene(spec, index) for index in range(15)]
    assert all(item.mask.any() for s in scenes for item in s.objects)
    assert any(len(s.objects) not in (5, 10) for s in scenes)


# What one machine can do like another without vector instructions, by the names of each library.
PLAIN_ARITHMETIC = {
    "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,AVX,FMA3,FP16,SSE4.2,SSE4.1,SSSE3,POPCNT",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3",
    "OPENBLAS_CORETYPE": "Prescott",
}
PRINT_CHECKSUMS = """
from wsod_jax.data.proposals.selective_search import SearchOptions, propose
from wsod_jax.data.synthetic.scenes import SyntheticSpec, render_scene
from wsod_jax.files import array_checksum
images = {str(i): render_scene(SyntheticSpec(), i).image for i in (0, 3, 5, 11, 42, 67)}
print(array_checksum(images))
print(array_checksum({name: propose(image, SearchOptions()) for name, image in images.items()}))
"""


def test_images_and_proposals_are_the_same_on_every_instruction_set():
    """In float32, and with OpenCV's vector code, some of these images and proposals differ."""
    command = [sys.executable, "-W", "ignore", "-c", PRINT_CHECKSUMS]
    found = [
        subprocess.run(
            command, env=os.environ | changes, capture_output=True, text=True, check=True
        ).stdout.split()
        for changes in ({}, PLAIN_ARITHMETIC)
    ]
    assert len(found[0]) == 2 and found[0] == found[1]


def test_sizes_follow_size_and_aspects():
    spec = SyntheticSpec(size=80, aspects=(1.25, 0.5))
    shapes = {render_scene(spec, index).image.shape for index in range(12)}
    assert shapes == {(64, 80, 3), (80, 40, 3)}


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    contents = (f"{p.relative_to(root)}".encode() + p.read_bytes() for p in files)
    return hashlib.sha256(b"".join(contents)).hexdigest()


def test_writing_is_deterministic_and_idempotent(tmp_path):
    assert write_synthetic(tmp_path / "a", SMALL)
    assert write_synthetic(tmp_path / "b", SMALL)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not write_synthetic(tmp_path / "a", SMALL)  # complete
    (tmp_path / "a" / "spec.json").unlink()  # as an interrupted run leaves it
    assert write_synthetic(tmp_path / "a", SMALL)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_another_set_is_not_overwritten(tmp_path):
    write_synthetic(tmp_path, SMALL)
    with pytest.raises(DataError, match=r"clutter, seed"):
        write_synthetic(tmp_path, dataclasses.replace(SMALL, seed=3, clutter=0.1))


def test_the_tree_reads_as_voc(tmp_path):
    write_synthetic(tmp_path, SMALL)
    for split, count in (("trainval", 5), ("train", 3), ("val", 2), ("test", 2)):
        images = Voc(root=tmp_path, on_bad="error").images(split)
        assert len(images) == count and images.class_names == SMALL.classes
        truth = Voc(root=tmp_path, on_bad="error").annotated_boxes(split)
        assert not any(truth.counts.values())
        for record in images.records:
            index = int(record.image_id) - 1
            scene = render_scene(SMALL, index)
            objects = truth.boxes[record.image_id]
            np.testing.assert_array_equal(objects.boxes, boxes_of(scene))
            assert objects.classes.tolist() == [o.class_index for o in scene.objects]
            present = set(objects.classes.tolist())
            assert record.labels == tuple(int(c in present) for c in range(6))
            difference = record.load().astype(int) - scene.image
            assert np.abs(difference).mean() < 8  # JPEG
    assert split_ids(SMALL)["test"] == ["000006", "000007"]
    assert (tmp_path / "ImageSets/Main/fish_val.txt").read_text().split()[0] == "000004"


def test_masks_and_parts_are_written_as_voc_does(tmp_path):
    write_synthetic(tmp_path, SMALL)
    scene = render_scene(SMALL, 0)
    instances = Image.open(tmp_path / "SegmentationObject" / "000001.png")
    classes = Image.open(tmp_path / "SegmentationClass" / "000001.png")
    assert instances.mode == "P"
    assert instances.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    for number, item in enumerate(scene.objects, start=1):
        np.testing.assert_array_equal(np.asarray(instances) == number, item.mask)
        assert set(np.asarray(classes)[item.mask]) == {item.class_index + 1}
    root = ElementTree.parse(tmp_path / "Annotations" / "000001.xml").getroot()
    for element, item in zip(root.iter("object"), scene.objects, strict=True):
        part = element.find("part/bndbox")
        corners = [float(part.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")]
        assert (np.array(corners) - [1, 1, 0, 0]).tolist() == mask_box(item.part_mask).tolist()


def test_void_borders_are_optional(tmp_path):
    write_synthetic(tmp_path, dataclasses.replace(SMALL, void=True))
    mask = np.asarray(Image.open(tmp_path / "SegmentationObject" / "000001.png"))
    classes = np.asarray(Image.open(tmp_path / "SegmentationClass" / "000001.png"))
    assert (mask == 255).any() and ((mask == 255) == (classes == 255)).all()
    assert (mask == 1).any()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ("fish", "unicorn")},
        {"classes": ()},
        {"classes": ("fish", "fish")},
        {"object_side": (0.5, 0.2)},
        {"size": 4},
        {"objects_per_image": 3},
        {"num_trainval": 0},
        {"aspects": ()},
        {"instances": ()},
        {"distractors": (3, 1)},
        {"clutter": -0.1},
        {"context": 1.5},
    ],
)
def test_impossible_specifications_are_refused(change):
    with pytest.raises(ConfigError, match="found"):
        SyntheticSpec(**change)


def test_palette_is_vocs():
    palette = synthetic.voc_palette()
    assert palette[[0, 1, 2, 15, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]
    ]  # fmt: skip


def test_script_writes_and_reports(tmp_path, capsys):
    arguments = [
        "--out",
        str(tmp_path / "s"),
        "--num_trainval",
        "3",
        "--num_test",
        "1",
        "--size",
        "64",
    ]
    assert make_synthetic.main(arguments) == 0
    assert "Wrote 4 images" in capsys.readouterr().out
    assert make_synthetic.main(arguments) == 0
    assert "complete" in capsys.readouterr().out
    assert make_synthetic.main([*arguments, "--pretraining"]) == 1
    assert "settings" in capsys.readouterr().err
    assert make_synthetic.main([*arguments, "--classes", "unicorn"]) == 1
