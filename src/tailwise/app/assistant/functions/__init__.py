"""What can be asked of a workspace: one table for answers, tool calls of a chat, and MCP."""
