"""Borrows ComfyUI's loaded models for training and gives them back unchanged."""
