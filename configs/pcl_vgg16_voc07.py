"""PCL with VGG16 on VOC 2007: mAP 43.5, CorLoc 62.7 (Tang et al. 2018, Tables 1 and 2; released solver).

With --config.method.ignore_iou_thr=0.1 the authors report mAP 47.2.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.on_voc(presets.vgg16_detector("pcl"))
    config.train.num_steps = 50_000
    config.eval.resize = "long"  # the released test code scales the long side
    return config
