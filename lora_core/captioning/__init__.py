"""Captions written by a model the user has on disk or has loaded: what it is asked, what becomes of its answer. Nothing is downloaded."""
