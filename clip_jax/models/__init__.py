"""Flax Linen modules, pure functions of parameters and arrays; they name axes and place nothing."""
