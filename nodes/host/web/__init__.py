"""Routes, panel and live values of ComfyUI's page."""
