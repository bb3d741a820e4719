"""Smaller LoRAs: the best of their rank, with the error that is told; block weights; streamed files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dco_core
from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.lora import LoraLayer, LoraWeights, bundled, merge, open_lora, read_lora, write_lora
from dco_core.merging import (
    ErrorReport,
    Size,
    block_of,
    blocks_for,
    layer_type_of,
    merge_with,
    parse_blocks,
    reduce,
)
from dco_core.merging.methods import Exact

ROOT = Path(dco_core.__file__).parents[1]
DOWN = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
MIDDLE = "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2"
UP = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_output_blocks_2_2_conv"
TEXT = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


def lora(seed, rank=6, decay=0.5, dtype=torch.float32, keys=(DOWN, MIDDLE, UP, CONV, TEXT)):
    """Random layers whose singular values fall, so that ranks by energy differ from full ones."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for i, key in enumerate(keys):
        kernel = (3, 3) if key == CONV else ()
        falling = (decay * (1 + i / 4)) ** torch.arange(rank)
        down = torch.randn(rank, 20, *kernel, generator=generator)
        up = torch.randn(24, rank, *(1 for _ in kernel), generator=generator)
        up = up * falling.reshape(1, -1, *(1 for _ in kernel))
        layers[key] = LoraLayer(down.to(dtype), up.to(dtype), float(1 + i))
    return LoraWeights(
        layers, bundled({f"token{seed}": {"clip_l": torch.ones(1, 8)}}), {"modelspec.title": f"t{seed}"}
    )


def delta(layer):
    return layer.scale * layer.up.double().flatten(1) @ layer.down.double().flatten(1)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_reduced_layer_is_as_near_as_its_rank_allows_and_the_report_is_the_error(dtype):
    whole, report = lora(0), ErrorReport()
    small = reduce(whole, Size(rank=3), dtype, report)
    for key, layer in small.layers.items():
        target = delta(whole.layers[key])
        s = torch.linalg.svdvals(target)
        error = (delta(layer) - target).norm()
        assert layer.rank == 3
        if dtype is None:
            assert error == pytest.approx(s[3:].norm().item(), rel=1e-4)  # Eckart and Young
        assert report.layers[key][0] == pytest.approx(error.item(), rel=0.02)
        assert report.layers[key][1] == pytest.approx(target.norm().item(), rel=1e-5)
    errors = [(delta(small.layers[k]) - delta(whole.layers[k])).norm() for k in whole.layers]
    norms = [delta(whole.layers[k]).norm() for k in whole.layers]
    total = torch.stack(errors).norm() / torch.stack(norms).norm()
    assert report.total == pytest.approx(total.item(), rel=0.02)
    assert report.blocks()["up 1"] == pytest.approx((errors[2] / norms[2]).item(), rel=0.02)


@pytest.mark.parametrize("limit", [0.3, 0.05, 1e-3])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_wanted_error_is_kept_by_every_layer_with_the_smallest_rank(limit, dtype):
    whole = lora(1, rank=8)
    small = reduce(whole, Size(max_error=limit), dtype)
    for key, layer in small.layers.items():
        target = delta(whole.layers[key])
        s = torch.linalg.svdvals(target)
        assert (delta(layer) - target).norm() <= limit * target.norm()
        assert layer.rank == 1 or s[layer.rank - 1 :].norm() > 0.9 * limit * target.norm()
    assert len({layer.rank for layer in small.layers.values()}) > 1 or limit < 0.01


def test_full_rank_is_lossless_and_nothing_is_clamped():
    whole = lora(2, rank=6)
    small = reduce(whole, Size(rank=100))
    for key, layer in small.layers.items():
        assert (delta(layer) - delta(whole.layers[key])).norm() <= 1e-6 * delta(whole.layers[key]).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "falling", "twice the same", "underflow", "outliers"])
def test_the_rounding_of_large_layers_is_estimated_and_the_report_says_so(kind, dtype):
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(1280, 32, generator=generator), torch.randn(32, 640, generator=generator)
    if kind == "falling":
        up = up * 0.7 ** torch.arange(32)
    elif kind == "twice the same":
        up, down = torch.cat([up[:, :16]] * 2, 1), torch.cat([down[:16]] * 2)
    elif kind == "underflow":
        up = up * 1e-7
    elif kind == "outliers":
        up[:3] *= 1000
    whole, report = LoraWeights({UP: LoraLayer(down, up, 8.0)}), ErrorReport()
    small = reduce(whole, Size(), dtype, report)
    target = delta(whole.layers[UP])
    error = (delta(small.layers[UP]) - target).norm() / target.norm()
    assert report.total == pytest.approx(error.item(), rel=0.08 if report.estimated else 0.005)
    # a few rows are most of it: measured in full
    assert report.estimated == (kind != "outliers") == ("estimated" in report.text())


def test_sizes_that_cannot_be_are_refused():
    for bad in ({"rank": 0}, {"max_error": -0.1}, {"max_error": 1.0}):
        with pytest.raises(DCOError):
            Size(**bad)
    with pytest.raises(DCOError, match="use fp32, or a larger max error"):
        reduce(lora(3), Size(max_error=1e-5), torch.float16)


@pytest.mark.parametrize(
    ("key", "block", "kind"),
    [
        (DOWN, "down 4", "attn1_to_q"),
        (MIDDLE, "middle", "feed-forward"),
        (UP, "up 1", "attn2_to_k"),
        (CONV, "up 2", "convolution"),
        (TEXT, "text", "self_attn_q_proj"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "text 2", "feed-forward"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "down 4", "proj_in"),
        ("lora_unet_double_blocks_3_img_attn_qkv", "double_blocks 3", "qkv"),
        ("lora_unet_up0_transformer_attn1_to_q", "up 0", "attn1_to_q"),
        ("lora_unet_time_embed_0", "other", "other"),
    ],
)
def test_blocks_and_layer_types(key, block, kind):
    assert block_of(key) == block and layer_type_of(key) == kind


def test_block_weights_are_weights():
    a, b = lora(0), lora(1)
    rules = blocks_for("up = 0.5; 1: down 4 = 0\n2: *ff_net* = -2; text = 3; 2: text = 1", [a, b])
    merged = merge([a, b], [2.0, 1.0], rules)
    factors = {DOWN: (0, 1), MIDDLE: (1, -2), UP: (0.5, 0.5), CONV: (0.5, 0.5), TEXT: (3, 1)}
    for key, (fa, fb) in factors.items():
        expected = 2 * fa * delta(a.layers[key]) + fb * delta(b.layers[key])
        assert (delta(merged.layers[key]) - expected).norm() <= 1e-6 * expected.norm()


def test_presets_are_rules_and_mistakes_are_named():
    style = parse_blocks("1: style (SDXL)", 2)
    assert [style(0, key) for key in (DOWN, UP, TEXT)] == [0, 1, 0]
    assert [style(1, key) for key in (DOWN, UP, TEXT)] == [1, 1, 1]
    for text, words in (("up", "NAME = NUMBER"), ("up = x", "no number"), ("3: up = 1", "there are 2")):
        with pytest.raises(DCOError, match=words):
            parse_blocks(text, 2)
    with pytest.raises(DCOError, match="the blocks are down 4, middle, up 1, up 2, text"):
        blocks_for("upp = 0", [lora(0)])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_streamed_file_is_the_file_of_the_whole(tmp_path, dtype):
    for i in (0, 1):
        write_lora(tmp_path / f"{i}.safetensors", lora(i, rank=3 + i, dtype=torch.float16))
    paths = [tmp_path / f"{i}.safetensors" for i in (0, 1)]
    whole = merge([read_lora(path) for path in paths], [0.7, -0.3])
    write_lora(tmp_path / "whole.safetensors", whole, dtype=dtype)
    report = ErrorReport()
    streamed = merge_with(Exact(), [open_lora(path) for path in paths], [0.7, -0.3], report=report)
    write_lora(tmp_path / "streamed.safetensors", streamed, dtype=dtype, late=report.header)
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "streamed"))
    assert set(a) == set(b) and {"bundle_emb.token0.clip_l", "bundle_emb.token1.clip_l"} < set(a)
    for key in a:
        assert torch.equal(a[key], b[key]), key
    with safe_open(tmp_path / "streamed.safetensors", "pt") as file:
        assert json.loads(file.metadata()["dco.merge"]) == json.loads(whole.metadata["dco.merge"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells peak memory")
@pytest.mark.parametrize(("keys", "limit"), [("kohya", 40e3), ("diffusers", 160e3)])
def test_a_merge_by_command_needs_less_memory_than_its_files(tmp_path, keys, limit):
    """The output has 100 MB; beside what the imports take, 40 MB are enough. diffusers keys, whose layers have one rank
    that is known last, need the output once."""
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        layers = {
            f"lora_unet_input_blocks_4_1_transformer_blocks_{i}_attn1_to_q": LoraLayer(
                torch.randn(128, 1024, generator=generator).half(),
                torch.randn(1024, 128, generator=generator).half(),
            )
            for i in range(48)
        }
        write_lora(tmp_path / f"{name}.safetensors", LoraWeights(layers))
    code = (
        "import re, pathlib, torch, dco_core.cli.commands as c\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        f"assert c.main(['merge', r'{tmp_path}/a.safetensors', r'{tmp_path}/b.safetensors=-1', '--output', "
        f"r'{tmp_path}/out.safetensors', '--keys', '{keys}']) == 0\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.safetensors").stat().st_size > 100e6
    assert int(done.stdout.split()[-1]) < limit  # kB


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_resize_convert_and_inspect(tmp_path, capsys):
    a, small, named, back = (tmp_path / f"{name}.safetensors" for name in ("a", "small", "named", "back"))
    write_lora(a, lora(0, dtype=torch.float16))
    assert run("resize", a, "--output", small, "--rank", 2) == 0
    assert "in total; ranks 2 to 2, before up to 6" in capsys.readouterr().out
    assert {layer.up.dtype for layer in read_lora(small).layers.values()} == {torch.float16}
    assert run("convert", a, "--to", "diffusers", "--output", named) == 0
    assert "unet.up_blocks.0.upsamplers.0.conv.lora_A.weight" in load_file(named)
    assert run("convert", named, "--to", "kohya", "--output", back) == 0
    for key, layer in read_lora(back).layers.items():
        expected = delta(read_lora(a).layers[key])
        assert (delta(layer) - expected).norm() <= 1e-3 * expected.norm()
    capsys.readouterr()
    picture, drawing = tmp_path / "fit.png", tmp_path / "fit.svg"
    assert run("inspect", a, small, "--plot", picture) == 0
    printed = capsys.readouterr().out
    assert "learned tokens: token0" in printed and "float16" in printed and "column cosine" in printed
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 1000
    assert run("inspect", a, small, "--plot", drawing) == 0
    assert "<svg" in drawing.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["merge", "{a}=x", "--output", "{out}"], "no weight"),
        (["merge", "{a}=0", "--output", "{out}"], "all weights are 0"),
        (["merge", "{a}=nan", "--output", "{out}"], "finite"),
        (["merge", "{a}", "--output", "{out}.txt"], "no .safetensors file"),
        (["merge", "{a}", "none.safetensors", "--output", "{out}"], "no LoRA file"),
        (["merge", "{a}", "--output", "{out}", "--method", "np-lora"], "content and a style LoRA"),
        (["merge", "{a}", "--output", "{out}", "--blocks", "upp=1"], "fits no layer"),
        (["resize", "{a}", "--output", "{out}"], "--rank R, --max-error E"),
        (["resize", "{a}", "--output", "{out}", "--rank", "0"], "at least 1"),
        (["inspect", "{a}", "--plot", "x.png"], "two files"),
        (["inspect", "{a}", "{a}", "--plot", "x.txt"], "ends in .png, .svg, .pdf"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence_and_leave_nothing(tmp_path, capsys, arguments, words):
    a, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    write_lora(a, lora(0))
    assert run(*[text.format(a=a, out=out) for text in arguments]) == 1
    printed = capsys.readouterr().err
    assert words.lower() in printed.lower() and printed.startswith("error: ") and "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
