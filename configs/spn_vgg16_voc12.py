"""SPN with VGG16 on VOC 2012, train to val: pointing with prediction, mAP 82.9 (Zhu et al. 2017, Table 3)."""

from configs.spn import VOC12_TRAIN, spn, vgg16


def get_config():
    """Return the configuration."""
    config = spn(vgg16(), size=224, images=VOC12_TRAIN, epochs=20, micro_batch=16)
    config.data = dict(
        reader="voc",
        root="data/VOCdevkit",
        year="2012",
        train_split="train",
        test_split="val",
        difficult="drop",
    )
    config.eval.corloc_split = "train"
    config.localization.boxes = "components"
    return config
