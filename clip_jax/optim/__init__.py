"""Optimizers: how the learning rate moves, which parameters decay or rest, and the update rules."""
