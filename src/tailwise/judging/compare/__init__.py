"""Two audits, or many, against each other."""
