"""Nodes that score pictures and draw the scores."""
