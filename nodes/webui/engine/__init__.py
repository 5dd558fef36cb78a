"""The model a WebUI has loaded, lent to the engine and given back unchanged."""
