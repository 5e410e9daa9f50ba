"""Converters of other frameworks' weights and proposals. Used by commands only."""
