"""Analyses that rewrites ask: where elements come from, what is finite, which operators only select."""
