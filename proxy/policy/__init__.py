"""What the operator wants: policy files as types, read, checked and compiled.

`loader.load` reads a folder into `model.Policies`; `compiler.compile_ruleset` makes of it the
`wire.Ruleset` that traffic is judged by. Knows nothing of connections.
"""
