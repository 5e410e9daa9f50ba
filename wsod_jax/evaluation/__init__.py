"""Inference over views, decoding, metrics, evaluators, files of results, reports."""
