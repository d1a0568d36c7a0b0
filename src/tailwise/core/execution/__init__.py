"""Running independent work items."""
