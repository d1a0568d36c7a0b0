"""Questions about audits, plans and runs: read-only functions, answers, chat, and the same for agents (MCP)."""
