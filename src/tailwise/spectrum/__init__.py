"""From a matrix to its eigenvalues, and from eigenvalues to fits. Arrays only: no files, no models."""
