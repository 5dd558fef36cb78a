"""Pictures read, drawn and plotted."""
