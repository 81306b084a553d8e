"""How well memory finds: collections with judgements, measures, intervals, and a person's own judgements."""
