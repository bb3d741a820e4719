"""Nodes for LoRA files and their sums."""
