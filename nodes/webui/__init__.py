"""A1111, Forge, reForge and Forge classic: their loaded model lent to the engine, a run at a time beside their pictures, the tab. Imported only by them."""
