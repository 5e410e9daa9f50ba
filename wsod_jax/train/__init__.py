"""State, step, loop, host stage, optimizer, weight files, sharding, checkpoints, logging."""
