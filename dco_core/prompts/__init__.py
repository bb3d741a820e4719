"""The prompts that personalised models are evaluated on: the paper's kinds (App. D.2) for real models, and the Toy
World's own."""

from .evaluation import CATEGORIES, KINDS, evaluation_prompts, fill

__all__ = ["CATEGORIES", "KINDS", "evaluation_prompts", "fill"]
