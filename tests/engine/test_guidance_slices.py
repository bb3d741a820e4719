"""LoRAs on parts of fused layers, and with rows in another order, as diffusers names them, against the host's merge."""

import pytest
import torch
from guiding import Case
from small_models import small_model


def _factor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def adapter(kind: str, out: int, inner: int, seed: int) -> dict[str, torch.Tensor]:
    if kind == "lora":
        return {"lora_A.weight": _factor(seed, 2, inner), "lora_B.weight": _factor(seed + 1, out, 2)}
    if kind == "dora":
        return adapter("lora", out, inner, seed) | {"dora_scale": 1 + _factor(seed + 2, out, 1).abs()}
    if kind == "loha":
        parts = {
            "hada_w1_a": (out, 2),
            "hada_w1_b": (2, inner),
            "hada_w2_a": (out, 2),
            "hada_w2_b": (2, inner),
        }
    else:
        parts = {"lokr_w1": (4, 4), "lokr_w2": (out // 4, inner // 4)}
    return {part: _factor(seed + i, *shape) for i, (part, shape) in enumerate(parts.items())}


def targets(model, *ends: str) -> dict[str, tuple[int, int]]:
    """{name in the host's key map: (out, in)} of the names that end so."""
    import comfy.lora

    parameters = dict(model.model.named_parameters())
    found = {}
    for name, to in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        if name.startswith("transformer.") and name.endswith(ends):
            key, offset = (to, None) if isinstance(to, str) else to[:2]
            out, inner = parameters[key].shape
            found[name] = (offset[2] if offset else out, inner)
    return found


QKV = ("attn.to_q", "attn.to_k", "attn.to_v", "attention.to_q", "attention.to_k", "attention.to_v")


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "dora"])
@pytest.mark.parametrize("family", ["flux", "sd3", "z-image"])
def test_query_key_and_value_of_a_fused_layer(family, kind):
    model = small_model(family)
    wanted = targets(model, *QKV)
    assert len(wanted) >= 6
    lora = {
        f"{name}.{part}": tensor
        for i, (name, (out, inner)) in enumerate(wanted.items())
        for part, tensor in adapter(kind, out, inner, 10 * i).items()
    }
    Case(family, lora=lora).check(tolerance=2e-5 if kind == "dora" else 1e-5)


def test_one_slice_alone_leaves_the_others_as_they_are():
    model = small_model("sd3")
    name, (out, inner) = next(iter(targets(model, "0.attn.to_k").items()))
    Case("sd3", lora={f"{name}.{part}": t for part, t in adapter("lora", out, inner, 3).items()}).check()


@pytest.mark.parametrize("kind", ["lora", "loha", "dora"])
@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_rows_that_diffusers_has_in_another_order(family, kind):
    """norm_out holds scale and shift the other way round."""
    wanted = targets(small_model(family), "norm_out.linear")
    assert len(wanted) == 1
    ((name, (out, inner)),) = wanted.items()
    Case(family, lora={f"{name}.{part}": t for part, t in adapter(kind, out, inner, 3).items()}).check()


def test_a_bias_on_a_slice_is_left_out_as_in_the_hosts_loader(caplog):
    model = small_model("flux")
    name, (out, inner) = next(iter(targets(model, "0.attn.to_k").items()))
    lora = {f"{name}.{part}": t for part, t in adapter("lora", out, inner, 3).items()}
    Case("flux", lora=lora | {f"{name}.diff_b": torch.ones(out)}).check()
    assert "bias differences on a part of a fused layer are left out" in caplog.text
