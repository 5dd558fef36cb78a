"""What the user is told: errors and messages as data."""
