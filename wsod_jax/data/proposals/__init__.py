"""Box proposals: the set and its file, selective search, recall."""
