"""Ways to compute all eigenvalues of a matrix that arrives in row blocks; one module each."""
