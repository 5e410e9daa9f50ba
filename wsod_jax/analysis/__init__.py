"""What figures and studies show: mined boxes, random walks, energy, baselines, proposals from maps."""
