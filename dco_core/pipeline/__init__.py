"""From pictures and captions to examples, and from examples to a LoRA file."""
