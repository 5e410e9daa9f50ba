"""SPN with VGG16 on VOC 2012, train to val: pointing with prediction, mAP 82.9 (Zhu et al. 2017, Table 3)."""

from wsod_jax import presets


def get_config():
    """Return the configuration."""
    config = presets.spn("vgg16", size=224, images=presets.VOC12_TRAIN, epochs=20, micro_batch=16)
    return presets.on_voc(config, year="2012", train_split="train", test_split="val")
