"""The frozen model behind a protocol (base.py), and the models that run without a host."""
