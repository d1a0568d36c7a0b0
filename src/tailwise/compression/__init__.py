"""Plans of compression: how much of which tensor, and why. Stands on the audit alone; imports no torch."""
