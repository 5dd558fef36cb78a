"""Run folders: checkpoints, listings, logs, what others read of them."""
