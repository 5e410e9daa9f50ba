"""OIM with the instance-reweighted loss, VGG16, VOC 2012 train to val: mAP 44.4 (Lin et al. 2020, Table 3)."""

from configs import oim_ir_vgg16_voc12


def get_config():
    """Return the configuration."""
    config = oim_ir_vgg16_voc12.get_config()
    config.data.train_split = "train"
    config.data.test_split = "val"
    config.eval.corloc_split = "train"
    return config
