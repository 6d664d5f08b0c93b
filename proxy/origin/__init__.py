"""Towards PostgreSQL, where the data comes from and goes to: nothing here knows of clients.

Handlers and control loops use it. Statements come from policies or stand in this package; what a
client sends only ever becomes an argument.
"""
