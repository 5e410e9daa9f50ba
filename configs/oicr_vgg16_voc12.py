"""OICR with VGG16 on VOC 2012: mAP 37.9, CorLoc 62.1 (Tang et al. 2017, Table 4).

The released code does not state its VOC 2012 schedule; PCL's (first step at 60k) stands in.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.on_voc(presets.vgg16_detector("oicr"), year="2012")
    config.train.num_steps = 90_000
    config.optim.decay_steps = (60_000,)
    config.eval.resize = "long"
    return config
