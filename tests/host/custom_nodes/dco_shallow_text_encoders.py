"""CLIP text encoders of three layers for all checkpoints, by the host's own option for another configuration.

Their 12 and 32 layers are most of what a prompt costs on a processor and tell a test nothing that three do not:
widths, tokens, pooling and the layer that is read stay those of SD1.5 and SDXL. The checkpoints of the tests are
written to match (HOST_TEXT_LAYERS in tests/checkpoints.py).
"""

import functools

import comfy.sd1_clip

SHALLOW = {f"{name}_model_config": {"num_hidden_layers": 3} for name in ("clip_l", "clip_g")}
original = comfy.sd1_clip.SDClipModel.__init__


@functools.wraps(original)
def shallow(self, *args, model_options=None, **kwargs):
    original(self, *args, model_options=SHALLOW | (model_options or {}), **kwargs)


comfy.sd1_clip.SDClipModel.__init__ = shallow
NODE_CLASS_MAPPINGS = {}
