"""Losses, one value per image."""
