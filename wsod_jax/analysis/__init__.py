"""Looking at what a run did with single images."""
