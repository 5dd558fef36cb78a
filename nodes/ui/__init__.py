"""`lora-loom ui`: the page on its own, on models that no other program holds; and the folder of a Space that shows it."""
