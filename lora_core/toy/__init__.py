"""The toy model: a small text-to-image model that draws emoji, sets of pictures to teach it, and the scripts that made both."""
