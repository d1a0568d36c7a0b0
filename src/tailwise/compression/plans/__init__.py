"""Plans: decisions, each a site and a treatment; read, edited, checked, compared. Imports no torch."""
