"""Files of other frameworks -> ours: weights and proposals. Only commands use it."""
