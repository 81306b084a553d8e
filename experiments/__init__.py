"""Floor 2: hypotheses, judgement and lineage: where training, memory and notebook are joined."""
