"""From a Program to a plan, and from a plan to a Keras model."""
