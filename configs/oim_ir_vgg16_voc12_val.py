"""OIM with the instance-reweighted loss, VGG16, VOC 2012 train to val: mAP 44.4 (Lin et al. 2020, Table 3)."""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.oim_vgg16(reweight="paper")
    return presets.on_voc(config, year="2012", train_split="train", test_split="val")
