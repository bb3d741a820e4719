"""Measurements behind figures in the documentation; not shipped."""
