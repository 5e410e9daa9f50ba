"""SPN with VGG16 on VOC 2007: pointing 87.5 (difficult 78.1), CorLoc 60.6, Object Energy 62.2 (Zhu et al. 2017,
Tables 1, 2 and 4).

    wsod-jax train --config spn_vgg16_voc07 --workdir runs/spn_224
    wsod-jax train --config spn_vgg16_voc07:560 --workdir runs/spn_560
    wsod-jax train --config spn_vgg16_voc07:112 --workdir runs/spn_112
    wsod-jax evaluate --workdir runs/spn_224 --compare
    wsod-jax evaluate --workdir runs/spn_224 runs/spn_112 runs/spn_560

Pointing is the 224-pixel model's. CorLoc 60.6 was counted with the boxes of all three, any of which may hit: that is
"CorLoc any" of the last command. Which network has the published energy is not said.
The released VGG networks have a nearly flat spatial kernel: --config.method.soft_proposal.epsilon_rule=area
Images that keep their shape: --config.train.resize=short --config.eval.resize=short --config.eval.passes.corloc.resize=short
"""

from wsod_jax import presets

MICRO_BATCHES = {"112": 16, "224": 16, "560": 4}


def get_config(variant: str = "224"):
    """Return the configuration of one image size: 112, 224 or 560."""
    config = presets.spn(
        "vgg16",
        micro_batch=presets.of_variant(variant, MICRO_BATCHES),
        size=int(variant),
        images=presets.VOC07_TRAINVAL,
        epochs=20,
    )
    return presets.on_voc(config)
