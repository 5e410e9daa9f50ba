"""Scores to pseudo labels: pure, jittable, stop-gradient, one image each."""
