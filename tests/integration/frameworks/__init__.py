"""Programs of real frameworks, started as processes of their own against a port."""
