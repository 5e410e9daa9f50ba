"""WS-JDS with VGG16 on VOC 2010: mAP 39.9, CorLoc 63.1 (Shen et al. 2019); the paper's 30 epochs, since no schedule of
this set was released.

    wsod-jax train --config ws_jds_vgg16_voc10 --workdir runs/ws_jds_voc10
    wsod-jax evaluate --workdir runs/ws_jds_voc10 --voc_server     # boxes of test are not public

Variants as in ws_jds_vgg16_voc07.py. Proposals are MCG's, which learned from images with annotated edges.
"""

from wsod_jax import presets


def get_config(variant: str = "ws_jds"):
    """Return the configuration of WS-JDS, or of an ablation."""
    config = presets.ws_jds_vgg16(variant, presets.VOC10_TRAINVAL)
    config = presets.on_voc(config, year="2010")
    config.proposals.path = "data/proposals/voc2010_mcg.npz"
    config.eval.passes = dict(corloc=presets.corloc_pass("trainval"))
    return config
