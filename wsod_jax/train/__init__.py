"""State, step, loop, optimiser, sharding, checkpoints, logging."""
