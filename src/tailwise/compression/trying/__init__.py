"""Plans that prove themselves: candidates are tried on the model and scored on text before one is kept."""
