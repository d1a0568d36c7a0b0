"""What every room stands on: errors, registries, recipes, bytes at a place, and where work runs."""
