"""flax.linen modules: backbones, box head, heads."""
