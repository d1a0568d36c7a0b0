"""Gates: what a user expects of an audit, and whether it holds."""
