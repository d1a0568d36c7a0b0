"""One module an area: what its pages need, handed to a template."""
