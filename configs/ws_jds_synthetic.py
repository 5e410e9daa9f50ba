"""WS-JDS and its ablations on the synthetic set, the last stage of the backbone trained; minutes on two cores.

    make demo                                      # renders, finds proposals, pretrains
    wsod-jax train --config ws_jds_synthetic:ws_jds --workdir runs/ws_jds_synthetic/ws_jds

Variants are the rows of the paper's Table 1: wsddn, parallel, to_segmentation, to_detection, ws_jds.
"""

from wsod_jax import presets


def get_config(variant: str = "ws_jds"):
    """Return the configuration of one row of the table."""
    config = presets.on_synthetic(presets.ws_jds_small_set(variant, num_steps=300))
    config.backbone.frozen = ("conv1", "conv2", "conv3")
    return config
