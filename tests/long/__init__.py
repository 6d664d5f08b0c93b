"""Runs of acceptance scale: minutes each, seeds printed. `make long` runs them."""
