"""State, step, loop, optimizer, sharding, checkpoints, logging."""
