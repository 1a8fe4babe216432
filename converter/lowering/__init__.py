"""Lower a program to a plan, and a plan to a Keras model."""
