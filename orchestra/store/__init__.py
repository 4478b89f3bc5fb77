"""What is on disk: the store of the conductor, the journal of the player."""
