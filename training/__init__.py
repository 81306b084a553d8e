"""Floor 1: hardware, the trainer, and runs."""
