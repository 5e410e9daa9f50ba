"""WS-JDS on the playing cards, with SqueezeNet 1.1; data as in cards6.py.

    wsod-jax train --config ws_jds_cards6:ws_jds --workdir runs/ws_jds_cards6/ws_jds

Variants as in ws_jds_synthetic.py. Gradients reach the pixels, so that no features are cached; the updates are cut to
keep a run below half an hour on two cores.
"""

from wsod_jax import presets


def get_config(variant: str = "ws_jds"):
    """Return the configuration of WS-JDS, or of an ablation."""
    return presets.on_cards6(presets.ws_jds_small_set(variant, num_steps=300))
