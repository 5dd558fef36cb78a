"""Formats on disk: the only part of convert that reads or writes files."""
