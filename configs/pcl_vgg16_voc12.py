"""PCL with VGG16 on VOC 2012: mAP 40.6, CorLoc 63.2 (Tang et al. 2018, Table 3; released solver, step at 60k).

The length after the step is not published; 20k updates follow it here.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.on_voc(presets.vgg16_detector("pcl"), year="2012")
    config.train.num_steps = 80_000
    config.optim.decay_steps = (60_000,)
    config.eval.resize = "long"
    return config
