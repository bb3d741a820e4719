"""A training run: settings, draws, objectives, the trainer, its checkpoints and reports."""
