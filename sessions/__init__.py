"""Floor 1: the lab notebook."""
