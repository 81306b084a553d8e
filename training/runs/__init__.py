"""Runs: supervised, detached processes whose folder is their truth."""
