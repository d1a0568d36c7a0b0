"""Number formats: what a matrix becomes when it is stored with fewer bits. Arrays only: no files, no models."""
