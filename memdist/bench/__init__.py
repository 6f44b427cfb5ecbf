"""Figures, as ratios measured interleaved in one process."""
