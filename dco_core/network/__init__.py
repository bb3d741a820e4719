"""A network in training: its denoiser, LoRA layers, frozen layers, gradient checkpointing, compiling."""
