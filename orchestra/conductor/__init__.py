"""The daemon that keeps the queue. It never imports the player."""
