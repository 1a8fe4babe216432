"""The plan of a Keras model: the layout algebra, steps, the builder that mappings talk to, the registry."""
