"""Readers of data sets: files of one layout -> image sets with labels, boxes apart."""
