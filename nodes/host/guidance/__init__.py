"""Reward guidance inside the host's sampling loop."""
