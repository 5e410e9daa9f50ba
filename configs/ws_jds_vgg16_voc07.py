"""WS-JDS with VGG16 on VOC 2007: mAP 45.6, CorLoc 64.5 (Shen et al. 2019, Tables 1 to 3).

    wsod-jax train --config ws_jds_vgg16_voc07 --workdir runs/ws_jds_voc07
    wsod-jax train --config ws_jds_vgg16_voc07:to_detection --workdir runs/to_detection_voc07

Variants are the rows of Table 1: `wsddn`, 36.9, no segmentation branch, on the same schedule; `parallel`, 37.3, with one;
`to_segmentation`, 37.7, and `to_detection`, 42.0, one guides the other; and `ws_jds`, both do. With the backbone frozen,
as the release has it, the first three train the same detector; --config.backbone.frozen="('conv1','conv2','conv3','conv4')"
lets the branches share what they learn. `released` is the released code's schedule and losses, but for its center loss.

Proposals are MCG's, which learned from images with annotated edges.
"""

from wsod_jax import presets


def get_config(variant: str = "ws_jds"):
    """Return the configuration of WS-JDS, or of an ablation."""
    config = presets.ws_jds_vgg16(variant, presets.VOC07_TRAINVAL)
    config = presets.on_voc(config, year="2007")
    config.proposals.path = "data/proposals/voc2007_mcg.npz"
    config.eval.passes = dict(corloc=presets.corloc_pass("trainval"))
    return config
