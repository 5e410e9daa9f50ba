"""OIM with the instance-reweighted loss, VGG16, VOC 2012 trainval to test: mAP 45.3, CorLoc 67.1 (Lin et al. 2020,
Tables 3 and 4). Test boxes are not public: evaluation writes the predictions for the challenge server.
"""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    return presets.on_voc(presets.oim_vgg16(reweight="paper"), year="2012")
