"""Weights that come from elsewhere and weights that leave: one file a foreign family, safe reading, import and export."""
