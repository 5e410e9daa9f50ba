"""Inference over views, detection and localization metrics, reports."""
