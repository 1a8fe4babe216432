"""Faults planted in conversions, to see which of the three proofs catches them."""
