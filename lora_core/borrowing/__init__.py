"""Trains on modules a host has loaded, without copying or changing them; what differs between hosts is in layers.py."""
