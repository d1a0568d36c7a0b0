"""A live model: walked block by block, calibrated, and evaluated."""
