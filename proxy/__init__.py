"""sidecache: a cache proxy that speaks the Redis protocol.

The import name is that of the folder. Another distribution, "proxy.py", installs a package of the
same name; the two cannot be installed together.
"""
