"""Foreign and hostile files: strengths by peft's own dense weights, names of unusual UNets, Flux names."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_lora_readers import layers_for, modules_of, tiny_sdxl_unet
from test_merge_writers import by_key, randomised

from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.lora import (
    LoraLayer,
    LoraWeights,
    canonical_keys,
    from_tensors,
    merge,
    open_lora,
    read_lora,
    write_lora,
)
from dco_core.lora.keys import UNET, diffusers_names, kohya_names
from devtools.hostile_files import joined, split

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
ATTENTION = "transformer_blocks_0_attn1_to_q"
CONFIGS = {
    "lokr": lambda: peft.LoKrConfig(
        r=3, alpha=5, target_modules=["to_q", "to_k", "conv1", "ff.net.2", "proj_in"], rank_pattern={"to_k": 4},
        alpha_pattern={"attn1.to_q": 7, "down.*conv1": 2},
    ),
    "lokr of factors": lambda: peft.LoKrConfig(
        r=1, alpha=5, decompose_both=True, decompose_factor=4, target_modules=["to_q", "conv1"]
    ),
    "tucker lokr": lambda: peft.LoKrConfig(r=1, alpha=5, use_effective_conv2d=True, target_modules=["to_q", "conv1"]),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=["to_q", "conv1"], rank_pattern={"to_q": 2}),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_says_the_strength_of_whole_factors_too(tmp_path, kind):
    unet = tiny_sdxl_unet()
    model = peft.get_peft_model(unet, CONFIGS[kind]())
    randomised((p for n, p in model.named_parameters() if "lokr_" in n or "hada_" in n), 1)
    model.save_pretrained(tmp_path)
    expected = by_key(
        {n: m.get_delta_weight("default") for n, m in unet.named_modules() if hasattr(m, "get_delta_weight")}
    )
    read = read_lora(tmp_path / "adapter_model.safetensors").layers
    assert set(read) == set(expected) and len(read) > 20
    for key, delta in expected.items():
        torch.testing.assert_close(read[key].delta().reshape(delta.shape), delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (lambda: peft.IA3Config(target_modules=["to_k"], feedforward_modules=[]), r"\(IA\)\^3"),
        (lambda: peft.BOFTConfig(boft_block_size=2, target_modules=["to_q"]), "BOFT"),
    ],
    ids=["ia3", "boft"],
)
def test_adapter_types_of_peft_are_named_when_they_are_refused(tmp_path, config, kind):
    model = peft.get_peft_model(tiny_sdxl_unet(), config())
    model.save_pretrained(tmp_path)
    with pytest.raises(DCOError, match=kind):
        read_lora(tmp_path / "adapter_model.safetensors")


def commands(path, other, out):
    return (
        ["merge", f"{path}=1", f"{other}=1", "--output", out], ["resize", path, "--rank", "1", "--output", out],
        ["convert", path, "--to", "diffusers", "--output", out], ["inspect", path, other],
    )  # fmt: skip


DEEP = "[" * 100_000
HEADERS = {
    "deep tokens": {"dco.tokens": DEEP}, "deep merge": {"dco.merge": DEEP}, "long number": {"dco.tokens": "1" * 5000},
    "long weight": {"dco.merge": "[" + "1" * 5000 + "]"},
    "huge weight": {"dco.merge": json.dumps([{"title": "a", "sha256": "b", "weight": 10**400}])},
    "huge alpha": {"lora_adapter_metadata": json.dumps({"lora_alpha": 10**400})},
    "slow pattern": {"lora_adapter_metadata": json.dumps({"lora_alpha": 1, "alpha_pattern": {"(a+)+": 2}})},
}  # fmt: skip
SHAPES = {"overflow": [0, 2**61, 7], "dimensions": [1] * 5000 + [0]}


@pytest.mark.parametrize("case", [*HEADERS, *SHAPES])
def test_a_hostile_header_is_one_clear_sentence_or_harmless(tmp_path, capsys, case):
    pair = {f"{KEY}.lora_A.weight": torch.ones(2, 8), f"{KEY}.lora_B.weight": torch.ones(6, 2)}
    path, other, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out"))
    save_file(pair, other)
    header, body = split(other.read_bytes())
    if case in HEADERS:
        header["__metadata__"] = HEADERS[case]
    else:
        header["x.diff"] = {"dtype": "F32", "shape": SHAPES[case], "data_offsets": [len(body), len(body)]}
    path.write_bytes(joined(header, body))
    for command in commands(path, other, out):
        status = main([str(part) for part in command])
        printed = capsys.readouterr().err
        assert status == 0 or (
            status == 1 and printed.startswith("error: ") and printed.count("\n") == 1 and len(printed) < 600
        )


@pytest.mark.parametrize(
    "parts",
    [
        {"lokr_w1": (128, 128), "lokr_w2": (128, 128)},
        {"lora_down.weight": (16000, 1), "lora_up.weight": (1, 16000)},
    ],
    ids=["whole lokr", "more rank than a layer can have"],
)
def test_a_small_file_takes_no_gigabytes(tmp_path, parts):
    save_file({f"{KEY}.{part}": torch.ones(size) for part, size in parts.items()}, tmp_path / "a.safetensors")
    save_file({f"{KEY}.lora_down.weight": torch.ones(2, 1),
               f"{KEY}.lora_up.weight": torch.ones(1, 2)}, tmp_path / "b.safetensors")  # fmt: skip
    limit = 6 << 30  # of addresses, which torch alone takes some of
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    code = (
        f"import json, resource, sys; from dco_core.cli.commands import main; before = {peak}\n"
        f"for command in json.loads(sys.argv[1]): print('done', main(command), {peak} - before)"
    )
    asked = commands(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked, default=str)], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    done = [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("done ")]
    assert len(done) == len(asked), run.stderr
    for status, grown in done:  # the most until then
        assert int(status) in (0, 1) and int(grown) < 512 * 1024, run.stderr


def test_an_input_is_never_the_output_and_never_changes_unseen(tmp_path, capsys):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, value in ((a, 1.0), (b, 2.0)):
        save_file({f"{KEY}.lora_down.weight": torch.full((1, 8), value),
                   f"{KEY}.lora_up.weight": torch.ones(6, 1)}, path)  # fmt: skip
    before = a.read_bytes()
    assert main(["merge", f"{a}=1", f"{b}=1", "--output", str(a)]) == 1
    assert "is one of the inputs" in capsys.readouterr().err and a.read_bytes() == before
    lora = open_lora(a)
    b.replace(a)
    with pytest.raises(DCOError, match="was changed while it was read"):
        lora.layers[KEY]


def test_names_of_a_unet_with_one_block_per_level_stay_as_they_are():
    ldm = [
        f"{UNET}{b}_1_{ATTENTION}"
        for b in ("input_blocks_1", "input_blocks_3", "input_blocks_5", "output_blocks_1")
    ]
    assert kohya_names(ldm, {}) == {key: key for key in ldm}
    with pytest.raises(DCOError, match="without two blocks per level"):
        diffusers_names(ldm, {})
    spelled = [
        f"unet.{b}.attentions.0.transformer_blocks.0.attn1.to_q" for b in ("down_blocks.1", "up_blocks.1")
    ]
    pair = {
        f"{n}.{p}.weight": torch.ones(s) for n in spelled for p, s in (("lora_A", (1, 8)), ("lora_B", (6, 1)))
    }
    read = from_tensors(pair)
    assert sorted(kohya_names(read.layers, read.paths).values()) == sorted(
        UNET + n[5:].replace(".", "_") for n in spelled
    )
    assert sorted(diffusers_names(read.layers, read.paths).values()) == spelled
    pairs = {
        f"{key}.{p}.weight": torch.ones(s)
        for key in ldm
        for p, s in (("lora_down", (1, 8)), ("lora_up", (6, 1)))
    }
    with pytest.raises(DCOError, match="cannot be matched"):
        merge([read, from_tensors(pairs)], [1.0, 1.0])


@pytest.mark.parametrize("layers_per_block", [1, 3])
def test_diffusers_loads_every_layer_of_a_unet_without_two_layers_per_block(tmp_path, layers_per_block):
    from dco_core.models.diffusers_model import DiffusersModel

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8, 8), layers_per_block=layers_per_block, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
    )  # fmt: skip
    names = canonical_keys(f"unet.{name}" for name, _ in unet.named_modules() if name)
    model = DiffusersModel.__new__(DiffusersModel)
    model._canonical = {path.removeprefix("unet."): key for path, key in names.items()}
    model._pipeline = type("Pipeline", (), {"unet": unet})()
    modules = {n: m for n, m in modules_of(unet).items() if "attentions" in n}
    lora = LoraWeights(layers_for(modules, names, (3.0,)))
    write_lora(tmp_path / "a.safetensors", lora, keys=dict(model.kohya_names()))
    write_lora(tmp_path / "b.safetensors", read_lora(tmp_path / "a.safetensors"))
    for file in ("a.safetensors", "b.safetensors"):
        again = read_lora(tmp_path / file)
        assert set(again.layers) == set(lora.layers)
        state, alphas = diffusers.StableDiffusionXLPipeline.lora_state_dict(
            tmp_path, weight_name=file, unet_config=unet.config
        )
        unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, adapter_name=file[0])
        loaded = {
            n: m.get_delta_weight(file[0])
            for n, m in unet.named_modules()
            if file[0] in getattr(m, "lora_A", {})
        }
        assert set(loaded) == set(modules)
        for name, delta in loaded.items():
            torch.testing.assert_close(
                delta, lora.layers[names[f"unet.{name}"]].delta(), rtol=1e-5, atol=1e-5
            )


def test_flux_is_converted_to_kohyas_names_with_q_k_and_v_joined_exactly(tmp_path):
    generator = torch.Generator().manual_seed(0)
    sizes = {"transformer_blocks.3.attn.to_q": (4, 1), "transformer_blocks.3.attn.to_v": (4, 2),
             "transformer_blocks.3.attn.to_out.0": (4, 2), "single_transformer_blocks.7.attn.to_k": (4, 3),
             "single_transformer_blocks.7.proj_mlp": (16, 2)}  # fmt: skip
    tensors, dense = {}, {}
    for name, (out, rank) in sizes.items():
        a, b = torch.randn(rank, 4, generator=generator), torch.randn(out, rank, generator=generator)
        tensors |= {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
        dense[name] = b @ a
    save_file(tensors, tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "a.safetensors"), "--to", "kohya", "--output", str(out)]) == 0
    zero = torch.zeros(4, 4)
    q, v, proj, k, mlp = dense.values()
    expected = {
        "double_blocks_3_img_attn_qkv": torch.cat([q, zero, v]), "double_blocks_3_img_attn_proj": proj,
        "single_blocks_7_linear1": torch.cat([zero, k, zero, mlp]),
    }  # fmt: skip
    read = read_lora(out).layers
    assert set(read) == {UNET + name for name in expected}
    for name, delta in expected.items():
        torch.testing.assert_close(read[UNET + name].delta(), delta)


def test_mixed_ranks_are_dynamic_in_the_header():
    from test_trained_header import TrainedHeader, TrainingConfig

    header = TrainedHeader(TrainingConfig(), 4, 2.0, "attention", "sd_v1", "epsilon", ["a"], {})
    layers = [LoraLayer(torch.ones(r, 8), torch.ones(6, r), 2.0) for r in (2, 3)]
    found = header.entries("a", 1, {}, layers=layers)
    assert (found["ss_network_dim"], float(found["ss_network_alpha"])) == ("Dynamic", 2.0)
    assert json.loads(found["dco.config"])["rank"] == "Dynamic"
