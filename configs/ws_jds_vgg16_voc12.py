"""WS-JDS with VGG16 on VOC 2012: mAP 39.1, CorLoc 63.5 (Shen et al. 2019); the paper's 30 epochs, since no schedule of
this set was released.

    wsod-jax train --config ws_jds_vgg16_voc12 --workdir runs/ws_jds_voc12
    wsod-jax evaluate --workdir runs/ws_jds_voc12 --voc_server     # boxes of test are not public

Variants as in ws_jds_vgg16_voc07.py. Proposals are MCG's, which learned from images with annotated edges.
"""

from wsod_jax import presets


def get_config(variant: str = "ws_jds"):
    """Return the configuration of WS-JDS, or of an ablation."""
    config = presets.ws_jds_vgg16(variant, presets.VOC12_TRAINVAL)
    config = presets.on_voc(config, year="2012")
    config.proposals.path = "data/proposals/voc2012_mcg.npz"
    config.eval.passes = dict(corloc=presets.corloc_pass("trainval"))
    return config
