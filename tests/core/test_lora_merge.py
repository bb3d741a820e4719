"""The sum of LoRAs against dense sums in fp64."""

import json

import pytest
import torch

from dco_core.errors import DCOError
from dco_core.lora import LoraLayer, LoraWeights, merge, tensors_sha256

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
OTHER_KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"


def layer(seed, rank=4, out=24, inner=16, kernel=(), alpha=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inner, *kernel, generator=generator)
    up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator)
    return LoraLayer(down.to(dtype), up.to(dtype), alpha)


def dense(layer):
    """dW in fp64, by its definition."""
    alpha = layer.rank if layer.alpha is None else layer.alpha
    return (
        torch.einsum("or,ri...->oi...", layer.up.double().flatten(1), layer.down.double())
        * alpha
        / layer.rank
    )


def assert_sum(merged, expected, tolerance=1e-6):
    assert merged.shape == tuple(expected.shape)
    assert merged.scale == 1 and merged.alpha == merged.rank
    assert (merged.delta().double() - expected).norm() <= tolerance * expected.norm()


def test_delta_is_the_definition():
    for made in (layer(0, alpha=1.5), layer(1, kernel=(3, 3), alpha=8.0), layer(2, dtype=torch.bfloat16)):
        torch.testing.assert_close(made.delta().double(), dense(made), rtol=1e-5, atol=1e-5)
        assert made.delta().dtype == torch.float32


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_merge_is_the_exact_sum_for_mixed_ranks_alphas_dtypes_and_signs(kernel):
    layers = [
        layer(0, rank=4, alpha=1.0, kernel=kernel),
        layer(1, rank=9, alpha=None, kernel=kernel, dtype=torch.float16),
        layer(2, rank=1, alpha=16.0, kernel=kernel, dtype=torch.bfloat16),
        layer(3, rank=2, alpha=-3.0, kernel=kernel),
    ]
    weights = [0.7, -1.3, 0.0, 2.5]
    merged = merge([LoraWeights({KEY: one}) for one in layers], weights).layers[KEY]
    expected = sum(w * dense(one) for w, one in zip(weights, layers, strict=True))
    assert_sum(merged, expected)
    assert merged.rank == 4 + 9 + 2
    assert merged.down.dtype == merged.up.dtype == torch.float32


def test_merge_splits_the_factor_evenly():
    one = layer(0, rank=4)
    for weight, sign in ((9.0, 1), (-9.0, -1)):
        merged = merge([LoraWeights({KEY: one})], [weight]).layers[KEY]
        torch.testing.assert_close(merged.down, 3 * one.down)
        torch.testing.assert_close(merged.up, sign * 3 * one.up)


def test_a_lora_minus_itself_is_zero():
    one = LoraWeights({KEY: layer(0)})
    assert merge([one, one], [0.8, -0.8]).layers[KEY].delta().abs().max() < 1e-5


def test_a_weight_of_zero_leaves_a_lora_out_even_if_it_is_nan():
    broken = LoraLayer(torch.full((2, 16), torch.nan), torch.ones(24, 2))
    sound = layer(0)
    lora = LoraWeights({KEY: broken, OTHER_KEY: broken}, {"bundle_emb.x": torch.ones(3)})
    merged = merge([LoraWeights({KEY: sound}), lora], [1.0, 0.0])
    assert list(merged.layers) == [KEY] and not merged.other
    assert_sum(merged.layers[KEY], dense(sound))


def test_modules_of_only_one_lora_are_carried():
    a, b = layer(0), layer(1, rank=7, alpha=2.0)
    merged = merge([LoraWeights({KEY: a}), LoraWeights({OTHER_KEY: b})], [0.5, 2.0])
    assert_sum(merged.layers[KEY], 0.5 * dense(a))
    assert_sum(merged.layers[OTHER_KEY], 2.0 * dense(b))
    assert merged.metadata["ss_network_dim"] == "Dynamic"


def test_different_shapes_of_one_module_are_refused_by_name():
    linear, conv = LoraWeights({KEY: layer(0)}), LoraWeights({KEY: layer(1, kernel=(3, 3))})
    with pytest.raises(DCOError, match=rf"{KEY}.*\[24, 16\].*\[24, 16, 3, 3\]"):
        merge([linear, conv], [1.0, 1.0])


def test_names_that_only_both_files_together_settle_are_one_module():
    """Alone, a LoRA of the first upsampler may be of SD1.5 or SDXL; the second LoRA is plainly of SDXL."""
    conv = layer(0, kernel=(3, 3))
    open_ = LoraWeights({"lora_unet_up_blocks_0_upsamplers_0_conv": conv})
    sdxl = LoraWeights(
        {
            "lora_unet_output_blocks_2_2_conv": conv,
            "lora_unet_middle_block_1_transformer_blocks_9_attn1_to_q": layer(1),
        }
    )
    merged = merge([open_, sdxl], [1.0, 1.0])
    assert_sum(merged.layers["lora_unet_output_blocks_2_2_conv"], 2 * dense(conv))
    assert len(merged.layers) == 2


def test_other_tensors_are_carried_and_a_clash_is_refused():
    key = "bundle_emb.cat.string_to_param.*"
    a = LoraWeights({KEY: layer(0)}, {key: torch.ones(2, 3)})
    b = LoraWeights({KEY: layer(1)}, {key: torch.zeros(2, 3)})
    same = merge([a, a], [1.0, -0.5])
    torch.testing.assert_close(same.other[key], torch.ones(2, 3))
    with pytest.raises(DCOError, match="bundle_emb.cat"):
        merge([a, b], [1.0, 1.0])
    one, two = (
        LoraWeights({KEY: layer(0)}, {f"bundle_emb.cat.{encoder}": torch.ones(2, 3)})
        for encoder in ("clip_l", "clip_g")
    )
    with pytest.raises(DCOError, match="different learned tokens cat"):
        merge([one, two], [1.0, 1.0])


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_make_no_sum_are_refused(weights):
    lora = LoraWeights({KEY: layer(0)})
    with pytest.raises(DCOError):
        merge([lora, lora], weights)
    with pytest.raises(DCOError):
        merge([], [])


def test_the_header_says_where_the_sum_came_from():
    a = LoraWeights(
        {KEY: layer(0)}, metadata={"modelspec.title": "dog", "ss_base_model_version": "sdxl_base_v1-0"}
    )
    b = LoraWeights({KEY: layer(1)}, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    metadata = merge([a, b], [1.0, -0.5]).metadata
    assert json.loads(metadata["dco.merge"]) == [
        {"sha256": tensors_sha256(a), "weight": 1.0, "title": "dog"},
        {"sha256": tensors_sha256(b), "weight": -0.5, "title": ""},
    ]
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert all(isinstance(value, str) for value in metadata.values())


def test_the_inputs_stay_as_they_are():
    one = LoraWeights({KEY: layer(0)})
    before = tensors_sha256(one)
    merge([one, one], [2.0, 3.0])
    assert tensors_sha256(one) == before


def test_the_fingerprint_follows_values_and_not_order():
    a, b = layer(0), layer(1)
    assert tensors_sha256(LoraWeights({KEY: a, OTHER_KEY: b})) == tensors_sha256(
        LoraWeights({OTHER_KEY: b, KEY: a})
    )
    assert tensors_sha256(LoraWeights({KEY: a})) != tensors_sha256(LoraWeights({KEY: b}))
    halved = LoraLayer(a.down, a.up, a.rank / 2)
    assert tensors_sha256(LoraWeights({KEY: a})) != tensors_sha256(LoraWeights({KEY: halved}))


@pytest.mark.parametrize(
    ("down", "up"),
    [((4, 16), (24, 5)), ((4, 16), (24, 4, 1, 1)), ((4, 16, 3, 3), (24, 4, 3, 3)), ((0, 16), (24, 0))],
)
def test_pairs_that_do_not_fit_are_refused(down, up):
    with pytest.raises(DCOError, match="LoRA pair"):
        LoraLayer(torch.zeros(down), torch.zeros(up))
