"""ComfyUI's API, folders and version differences."""
