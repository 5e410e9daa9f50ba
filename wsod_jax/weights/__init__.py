"""Importers of pretrained weights."""
