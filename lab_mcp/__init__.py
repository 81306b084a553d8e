"""Floor 4: the app. CLI, service, keeper, bridge; composition only."""
