"""Floor 3: what the assistant can do, one module per family of MCP tools."""
