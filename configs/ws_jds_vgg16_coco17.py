"""WS-JDS with VGG16 on COCO, 115k images to minival: box AP 10.5, AP50 20.3; mask AP 6.1, AP50 11.7 (Shen et al. 2019,
Table 5). The `wsddn` variant is its baseline: box AP 9.5, AP50 19.2.

    wsod-jax train --config ws_jds_vgg16_coco17 --workdir runs/ws_jds_coco17
    wsod-jax evaluate --workdir runs/ws_jds_coco17 --coco

The paper's 30 epochs, since no schedule of this set was released. The splits of 2017 are those images, renamed.
Proposals are MCG's, which learned from images with annotated edges.
"""

from wsod_jax import presets


def get_config(variant: str = "ws_jds"):
    """Return the configuration of WS-JDS, or of an ablation as in ws_jds_vgg16_voc07.py."""
    config = presets.ws_jds_vgg16(variant, presets.COCO17_TRAIN)
    return presets.on_coco(config, "2017", "train2017", "val2017")
