"""The host's loaded models as networks to train."""
