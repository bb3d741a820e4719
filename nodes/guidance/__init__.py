"""Nodes that sample with reward guidance."""
