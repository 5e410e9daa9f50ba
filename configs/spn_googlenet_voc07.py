"""SP-GoogLeNet-GAP on VOC 2007: pointing 88.2 (difficult 79.1), classification mAP 84.2 (Zhu et al. 2017, Tables 2 and 6).

    wsod-jax train --config spn_googlenet_voc07:spn --workdir runs/spn_googlenet
    wsod-jax train --config spn_googlenet_voc07:cam --workdir runs/cam_googlenet

`cam` is GoogLeNet-GAP, the same network with a uniform proposal map: pointing 80.8 (61.9), classification mAP 83.4.
The convolution after inception4e has no groups, as in Zhou et al. 2016; the released SPN has two
(--config.method.extra_groups=2). Its 2.1 for the kernel's reach is 0.15 of a side of 14 cells.
"""

from wsod_jax import presets


def get_config(variant: str = "spn"):
    """Return the configuration of one variant: spn or cam (also spn_stationary, which is not published)."""
    config = presets.spn(
        "googlenet", size=224, images=presets.VOC07_TRAINVAL, epochs=20, micro_batch=16
    )
    config.method.extra_groups = 1
    config.method.soft_proposal.solver = presets.of_variant(variant, presets.SOLVERS)
    return presets.on_voc(config)
