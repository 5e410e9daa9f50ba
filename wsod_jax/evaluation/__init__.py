"""Inference over views, detection and localisation metrics, reports."""
