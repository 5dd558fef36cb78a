"""A run from its config to its result. Start with step.py."""
