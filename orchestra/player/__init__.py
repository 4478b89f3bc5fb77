"""The daemon on a node, and its stage. It never imports the conductor."""
