"""Toy World, the embedded default: a small text-to-image diffusion model over a rendered world.

world.py says what can be in a picture, renderer.py draws it, tokenizer.py, text_encoder.py and unet.py are the
model, model.py loads the shipped weights and samples, scorer.py measures pictures.
"""
