"""Plans made: from an audit and a request. Imports no torch."""
