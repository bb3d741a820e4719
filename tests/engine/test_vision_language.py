"""Captions by a real vision-language model of the host: Qwen3-VL, two layers small, with random weights."""

import dataclasses
import types

import pytest
import torch
from small_models import fill

from devtools import in_process_host as host


@pytest.fixture(scope="module")
def clip():
    import comfy.sd
    from comfy.text_encoders import qwen3vl

    @dataclasses.dataclass
    class Small(qwen3vl.Qwen3VL_4BConfig):
        hidden_size: int = 64
        intermediate_size: int = 96
        num_hidden_layers: int = 2
        num_attention_heads: int = 2
        num_key_value_heads: int = 1

    vision = {"hidden_size": 64, "intermediate_size": 96, "depth": 2, "deepstack_visual_indexes": [0]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(qwen3vl.QWEN3VL_CONFIGS, "small", Small)
        patch.setitem(qwen3vl.QWEN3VL_VISION, "small", vision)
        patch.setattr(qwen3vl, "QWEN3VL_VISION_COMMON", qwen3vl.QWEN3VL_VISION_COMMON | {"num_heads": 2})
        target = types.SimpleNamespace(
            params={}, clip=qwen3vl.te(model_type="small"), tokenizer=qwen3vl.tokenizer("small")
        )
        made = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    fill(made.cond_stage_model, seed=1)
    return made


def test_it_says_what_generate_text_says_of_the_same_picture(clip):
    from comfy_extras.nodes_textgen import TextGenerate

    describe = host.pack("nodes.host.vision_language").describe
    g = torch.Generator().manual_seed(0)
    pictures = [torch.rand(64, 96, 3, generator=g), torch.zeros(64, 64, 3)]
    with torch.inference_mode():
        answers = [describe(clip, "What is this?", picture, 12, 0) for picture in pictures]
        core = [
            TextGenerate.execute(clip, "What is this?", 12, {"sampling_mode": "off"}, image=p[None]).args[0]
            for p in pictures
        ]
        longer = describe(clip, "What is this?", pictures[0], 20, 0)
    assert answers == core
    assert answers[0] != answers[1]
    assert len(longer) > len(answers[0]) > 0


def test_the_caption_node_takes_its_answers(clip):
    captions = host.pack("nodes.training.captions")
    pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        out = captions.DCOComprehensiveCaption.execute(
            [pictures], ["subject"], ["dog"], [""], [clip], max_length=[9]
        )
    texts, asked = out.args
    assert len(texts) == 2 and all("<dog>" in text for text in texts)
    assert 'Call the subject exactly "dog"' in asked
