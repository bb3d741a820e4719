"""Text encoders beyond CLIP cannot learn tokens: one sentence that names them, before anything is encoded."""

import importlib
import types

import pytest

from devtools import in_process_host as host

TOKENIZERS = {
    "comfy.text_encoders.flux.FluxTokenizer": "t5xxl",
    "comfy.text_encoders.sd3_clip.SD3Tokenizer": "t5xxl",
    "comfy.text_encoders.qwen_image.QwenImageTokenizer": "qwen25_7b",
    "comfy.text_encoders.z_image.ZImageTokenizer": "qwen3_4b",
}


@pytest.mark.parametrize("path", TOKENIZERS)
def test_they_are_refused_by_name(path):
    module, _, name = path.rpartition(".")
    clip = types.SimpleNamespace(tokenizer=getattr(importlib.import_module(module), name)())
    learned, core = (host.pack(m) for m in ("nodes.host.training.learned_tokens", "dco_core.training.learned_tokens"))
    specs = core.token_specs(["a <toy> on grass"], "", 0, {})
    with pytest.raises(host.pack("dco_core.errors").DCOError) as refused:
        learned.start(clip, specs, 0, {})
    sentence = str(refused.value)
    assert sentence.startswith("Learned tokens need CLIP text encoders") and TOKENIZERS[path] in sentence
    assert sentence.endswith("Turn learned tokens off: the LoRA learns the subject without them.")
