"""A run's configuration: typed sections, read from plain values, changed by the command line."""
