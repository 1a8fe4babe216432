"""Analyses that rewrites query: where elements come from, what is finite, which operators only select."""
