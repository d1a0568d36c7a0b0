"""Plans: what is compressed and how much, made from audits, read, edited, checked. Imports no torch."""
