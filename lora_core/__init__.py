"""The engine: torch at its heart; knows no host, no file format, no user interface."""
