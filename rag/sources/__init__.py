"""What may be fetched from outside when it is switched on: papers from arXiv, results of a web search."""
