"""Files and locks: what is written appears whole or not at all."""
