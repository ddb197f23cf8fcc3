"""Servers as SLURM jobs."""
