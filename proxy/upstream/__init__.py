"""Towards Redis: connections, pools of them, and the topology that says which node owns a slot."""
