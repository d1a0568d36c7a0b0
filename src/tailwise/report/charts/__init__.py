"""Charts: one function each, from audits to a Vega-Lite figure (an Altair chart)."""
