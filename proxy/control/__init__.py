"""Loops that run by the second: what changes in PostgreSQL, who leads, what was lost.

The application starts them; they know connections and plans, and no client.
"""
