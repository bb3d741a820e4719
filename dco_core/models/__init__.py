"""What training from pictures needs of a model, and the models there are outside a host."""
