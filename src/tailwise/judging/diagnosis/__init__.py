"""What an audit means: rules with codes, and the findings they make. Stands on the audit alone."""
