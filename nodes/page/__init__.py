"""The page LoRA Loom, of a WebUI's tab and of `lora-loom ui` alike: gradio, routes, and the jobs they ask for. What it stands in is handed to it."""
