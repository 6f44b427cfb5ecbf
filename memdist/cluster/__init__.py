"""Slurm: jobs as text, submitted, surviving what ends them, seen and cancelled."""
