"""Diffusion: noise tables and what follows from a level (`schedule`), samplers (`sampling`). Pure functions."""
