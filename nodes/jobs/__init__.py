"""What the jobs of every host have in common: presets, opening, publishing, the state of a panel. Knows no host."""
