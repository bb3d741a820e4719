"""Learned tokens in the host's own CLIP-L at half precision, where the authors' code does not train them."""

import types

import pytest
import torch
from small_models import fill

from dco_core.training.learned_tokens import TokenSpec
from devtools import in_process_host as host


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=str)
def clip(request):
    import comfy.sd
    import comfy.sd1_clip

    target = types.SimpleNamespace(
        params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer
    )
    made = comfy.sd.CLIP(target, model_options={"dtype": request.param})
    fill(made.cond_stage_model, seed=1)
    return made


def test_rows_are_fp32_and_a_step_smaller_than_half_precision_can_hold_moves_them(clip):
    learned = host.pack("nodes.host.training.learned_tokens")
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    assert table.dtype in (torch.float16, torch.bfloat16)
    before = table.detach().clone()
    tokens = learned.start(clip, [TokenSpec("rex", "golden retriever")], seed=0)
    row = tokens.rows()["rex"]["clip_l"]
    assert row.dtype == torch.float32 and row.shape == (2, 768)
    ids = clip.tokenizer.clip_l.tokenizer("golden retriever")["input_ids"][1:-1]
    assert torch.equal(row.detach(), before[ids].float())

    encoder = learned.TrainingTextEncoder(clip, tokens)
    ((cond, _),) = encoder.encode(encoder.tokens("a photo of a <rex> on a beach"))
    cond.float().square().mean().backward()
    assert row.grad.dtype == torch.float32 and row.grad.isfinite().all()
    assert (row.grad.norm(dim=1) > 0).all()
    start = row.detach().clone()
    torch.optim.AdamW([row], lr=5e-6, weight_decay=0).step()  # the authors' rate
    moved = (row.detach() - start).abs()
    assert (moved > 1e-6).float().mean() > 0.9
    assert (
        row.detach().to(table.dtype) == start.to(table.dtype)
    ).float().mean() > 0.5  # half precision loses it
    assert torch.equal(table, before)


@pytest.mark.parametrize("name", ["|startoftext|", "|endoftext|"])
def test_a_token_of_the_vocabulary_is_refused(clip, name):
    learned = host.pack("nodes.host.training.learned_tokens")
    with pytest.raises(ValueError, match="already exists in clip_l: choose another name"):
        learned.start(clip, [TokenSpec(name, "dog")], seed=0)


def test_one_vector_for_an_initializer_of_several_tokens_is_refused(clip):
    learned = host.pack("nodes.host.training.learned_tokens")
    with pytest.raises(ValueError, match=r'"golden retriever" of <rex> is 2 tokens in clip_l, not 1'):
        learned.start(clip, [TokenSpec("rex", "golden retriever", 1)], seed=0)
