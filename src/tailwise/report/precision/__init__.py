"""A precision study in pictures, as a page, and in the terminal. Imports no torch."""
