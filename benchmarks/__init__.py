"""Measurements: `wire` without sockets, `endtoend` beside other proxies."""
