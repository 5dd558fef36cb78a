"""What engine and formats share, which do not import each other: no host, no torch, no disk."""
