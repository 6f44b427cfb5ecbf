"""Searches over settings: spaces, and what decides which of their cells are trained for how long; pure."""
