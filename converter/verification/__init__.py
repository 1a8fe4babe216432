"""Compare outputs and weights, given as arrays, independent of their origin."""
