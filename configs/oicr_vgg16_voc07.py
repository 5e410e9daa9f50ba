"""OICR with VGG16 on VOC 2007: mAP 41.2, CorLoc 60.6 (Tang et al. 2017, Tables 1 and 2; released solver).

The authors' later trick of ignoring proposals far from every pseudo box is --config.method.ignore_iou_thr=0.1.
OICR with the instance-reweighted loss (OIM's Table 6: 43.4) is a row of configs/oim_vgg16_voc07.py.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.on_voc(presets.vgg16_detector("oicr"))
    config.eval.resize = "long"  # the released test code scales the long side
    return config
