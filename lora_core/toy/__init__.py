"""The toy model: a very small text-to-image model, the world it knows, and the script that made it."""
