"""flax.linen modules: backbones, necks, heads."""
