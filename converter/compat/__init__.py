"""Patches of other libraries: what each replaces, for which versions, and what is lost without it."""
