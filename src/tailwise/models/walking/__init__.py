"""Models walked through block by block, and what their layers see."""
