"""Random commands through the core and through the reference exchange, compared step by step."""
