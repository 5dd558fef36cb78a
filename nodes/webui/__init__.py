"""AUTOMATIC1111, Forge and reForge: their loaded model lent to the engine, a run at a time beside their pictures, the tab. Imported only by them."""
