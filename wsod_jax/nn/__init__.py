"""flax.linen modules: backbones, box head, heads, and the networks made of them."""
