"""The input pipeline: a plan of updates -> batches of NumPy arrays with static shapes."""
