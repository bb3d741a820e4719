"""Files that other programs write (peft, diffusers, LyCORIS), merged by the command, against their own dense dW."""

import pytest
import torch
from test_lora_readers import modules_of, tiny_sdxl_unet

from dco_core.cli.commands import main
from dco_core.lora import canonical_keys, read_lora

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
lycoris = pytest.importorskip("lycoris")

LYCORIS = {
    "locon": {"algo": "locon", "conv_dim": 2, "conv_alpha": 1},
    "tucker": {"algo": "locon", "conv_dim": 2, "conv_alpha": 1, "use_tucker": True},
    "loha": {"algo": "loha", "conv_dim": 2, "conv_alpha": 1},
    "loha of a high rank": {"algo": "loha", "linear_dim": 4, "linear_alpha": 2, "conv_dim": 2, "conv_alpha": 1},
    "tucker loha": {"algo": "loha", "conv_dim": 2, "conv_alpha": 1, "use_tucker": True},
    "lokr": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "conv_alpha": 3, "factor": 2},
    "lokr of factors": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "conv_alpha": 3, "factor": 4,
                        "decompose_both": True},
    "whole lokr": {"algo": "lokr", "linear_dim": 1000, "conv_dim": 1000, "factor": 2},
    "tucker lokr": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "conv_alpha": 3, "factor": 2, "use_tucker": True},
    "rank-stabilised": {"algo": "locon", "rs_lora": True, "conv_dim": 2, "conv_alpha": 1},
    "full": {"algo": "full"},
}  # fmt: skip


def randomised(parameters, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def by_key(deltas):
    names = canonical_keys(f"unet.{name}" for name in deltas)
    return {names[f"unet.{name}"]: delta.detach() for name, delta in deltas.items()}


def lycoris_file(path, arguments):
    """Saves a network of LyCORIS; {canonical key: dW} by what its modules add to an input."""
    unet = tiny_sdxl_unet()
    names = r"down_blocks\.1.*(attn1\.to_q|ff\.net\.2|resnets\.0\.conv1|downsamplers.*conv)$"
    lycoris.LycorisNetwork.apply_preset(
        {"target_module": [], "target_name": [names], "use_fnmatch": False, "enable_conv": True}
    )
    defaults = {"linear_dim": 2, "linear_alpha": 3.0}
    network = lycoris.create_lycoris(unet, 1.0, **(defaults | arguments))
    before = {n: m.weight.detach().clone() for n, m in modules_of(unet).items()}
    network.apply_to()
    assert len(network.loras) > 3
    randomised(p for p in network.parameters() if p.requires_grad)
    network.save_weights(path, torch.float32, {})
    names = {module: name for name, module in unet.named_modules()}
    unet.double(), network.double()
    deltas = {}
    for lora in network.loras:
        original = lora.org_module[0]
        deltas[names[original]] = added_by(lora, before[names[original]].double())
    return by_key(deltas)


def added_by(lora, weight):
    """dW of a LyCORIS module: what its output gains from every unit input, less the original weight."""
    inputs = weight[0].numel()
    lora = lora.eval()
    if weight.dim() == 2:
        eye = torch.eye(inputs).double()
        return (lora(eye) - lora(0 * eye)).T - weight
    eye = torch.eye(inputs).double().reshape(inputs, *weight.shape[1:])
    for module in (lora, lora.org_module[0]):  # without padding the kernel sees exactly its own window
        module.kw_dict = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
        module.stride, module.padding = (1, 1), (0, 0)
    return (lora(eye) - lora(0 * eye)).flatten(1).T.reshape(weight.shape) - weight


def peft_file(folder):
    """A folder of peft with alphas and ranks that differ; {canonical key: dW}."""
    unet = tiny_sdxl_unet()
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "to_k", "conv1"], rank_pattern={"to_k": 2}, alpha_pattern={"to_k": 7}
    )  # fmt: skip
    model = peft.get_peft_model(unet, config)
    randomised((p for n, p in model.named_parameters() if "lora_" in n), 1)
    model.save_pretrained(folder)
    deltas = {
        name: module.get_delta_weight("default")
        for name, module in unet.named_modules()
        if hasattr(module, "lora_A") and len(module.lora_A)
    }
    return by_key(deltas)


def diffusers_file(folder):
    """A file of diffusers, with the alpha in its header; {canonical key: dW}."""
    unet = tiny_sdxl_unet()
    unet.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=["to_q", "to_v", "ff.net.2"]),
        "mine",
    )
    randomised((p for n, p in unet.named_parameters() if "lora_" in n), 2)
    unet.save_lora_adapter(folder, adapter_name="mine", weight_name="diffusers.safetensors")
    deltas = {
        name: module.get_delta_weight("mine")
        for name, module in unet.named_modules()
        if hasattr(module, "lora_A") and len(module.lora_A)
    }
    return by_key(deltas)


def assert_is_the_sum(path, terms):
    merged = read_lora(path)
    assert set(merged.layers) == {key for deltas, _ in terms for key in deltas}
    for key, layer in merged.layers.items():
        there = [(deltas[key], weight) for deltas, weight in terms if key in deltas]
        expected = sum(weight * delta.double() for delta, weight in there)
        got = (layer.up.double().flatten(1) @ layer.down.double().flatten(1)).reshape(expected.shape)
        assert (got - expected).norm() <= 1e-6 * expected.norm(), key


@pytest.mark.parametrize("kind", LYCORIS)
def test_a_file_of_lycoris_is_exactly_what_its_modules_do(tmp_path, kind):
    deltas = lycoris_file(str(tmp_path / "a.safetensors"), LYCORIS[kind])
    assert main(["merge", f"{tmp_path}/a.safetensors=-0.5", "--output", f"{tmp_path}/out.safetensors"]) == 0
    assert_is_the_sum(tmp_path / "out.safetensors", [(deltas, -0.5)])


def test_lora_locon_and_lokr_of_four_writers_add_up(tmp_path):
    peft_deltas = peft_file(tmp_path / "peft")
    diffusers_deltas = diffusers_file(tmp_path)
    locon = lycoris_file(str(tmp_path / "locon.safetensors"), LYCORIS["locon"])
    lokr = lycoris_file(str(tmp_path / "lokr.safetensors"), LYCORIS["lokr"])
    files = {
        tmp_path / "peft" / "adapter_model.safetensors": (peft_deltas, 0.8),
        tmp_path / "diffusers.safetensors": (diffusers_deltas, -0.5),
        tmp_path / "locon.safetensors": (locon, 1.3),
        tmp_path / "lokr.safetensors": (lokr, -2.0),
    }
    arguments = [f"{path}={weight}" for path, (_, weight) in files.items()]
    out = tmp_path / "out.safetensors"
    assert main(["merge", *arguments, "--output", str(out)]) == 0
    assert_is_the_sum(out, list(files.values()))
