"""Nodes that train: pictures, captions and a model in, a LoRA out."""
