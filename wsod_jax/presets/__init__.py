"""Families of configurations, from which the files in configs/ start.

A configuration is an
`ml_collections.ConfigDict`, which is edited freely until `build.read_config` checks it. The families are:

    vgg16_detector, mist_vgg16, oim_vgg16   detectors with proposals and VGG16   then on_voc or on_coco
    ws_jds_vgg16                            WS-JDS and its ablations             then on_voc or on_coco
    spn                                     SPN and CAM as published             then on_voc or on_coco
    small_set, spn_small_set                frozen backbones, for a laptop       then on_synthetic or on_cards6
                                            and, for another backbone than theirs, on_lite0
"""

from wsod_jax.presets.published import (
    COCO14_TRAIN,
    COCO17_TRAIN,
    ILSVRC_TRAIN,
    VOC07_TRAINVAL,
    VOC10_TRAINVAL,
    VOC12_TRAIN,
    VOC12_TRAINVAL,
    WS_JDS,
    corloc_pass,
    mist_vgg16,
    of_variant,
    oim_vgg16,
    on_coco,
    on_voc,
    spn,
    vgg16_detector,
    ws_jds_vgg16,
)
from wsod_jax.presets.small_sets import (
    DETECTORS,
    SOLVERS,
    on_cards6,
    on_lite0,
    on_synthetic,
    small_set,
    spn_small_set,
    ws_jds_small_set,
)

__all__ = [
    "COCO14_TRAIN",
    "COCO17_TRAIN",
    "DETECTORS",
    "ILSVRC_TRAIN",
    "SOLVERS",
    "VOC07_TRAINVAL",
    "VOC10_TRAINVAL",
    "VOC12_TRAIN",
    "VOC12_TRAINVAL",
    "WS_JDS",
    "corloc_pass",
    "mist_vgg16",
    "of_variant",
    "oim_vgg16",
    "on_cards6",
    "on_coco",
    "on_lite0",
    "on_synthetic",
    "on_voc",
    "small_set",
    "spn",
    "spn_small_set",
    "vgg16_detector",
    "ws_jds_vgg16",
    "ws_jds_small_set",
]
