"""What goes over the line between conductor and player: commands, batches, the strict AMP base."""
