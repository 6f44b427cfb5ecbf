"""A run and pictures in, maps out."""
