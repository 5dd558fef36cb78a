"""The ComfyUI adapter: the only code that imports comfy, folder_paths and server. Everything borrowed here is given back unchanged."""
