"""Floor 1: memory. Documents are read, chunked, embedded, indexed and found again."""
