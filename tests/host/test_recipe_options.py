"""Every option of the trainer does something, and the right thing, in the real host."""

from __future__ import annotations

import json
import re

import pytest
import torch
from host_graph import Graph, facts, saved_file
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from devtools.api import HostError

PRIOR = {
    "objective": "DreamBooth + prior preservation",
    "objective__generated_images": 2,
    "objective__generation_steps": 2,
    "objective__generation_w_text": 2.0,
}
# enough sampling steps that the rejected images are likely ones: else the margin is won from the start
MAPO = PRIOR | {"objective": "MaPO", "objective__generated_images": 1, "objective__generation_steps": 12}
PRESERVE = {"objective": "Output preservation"}


def run(host, family="toy", extra=lambda g, base: {}, **changes):
    """(tensors, header, report) of a short training."""
    g = Graph()
    changes = {"steps": 3, "name": "option", "seed": 5} | changes
    if family == "toy":
        base = g.toy()
        node = g.toy_trainer(base, **changes | extra(g, base))
    else:
        base = g.checkpoint(family)
        data = g.add("LoadImageTextDataSetFromFolder", folder="photos")
        values = {"resolution": 64, "rank": 2, "batch_size": 1} | changes | extra(g, base)
        node = g.trainer(base, [data, 0], [data, 1], **values)
    outputs = host.client.run(g.prompt)
    path = host.base_dir / "output" / saved_file(outputs, node)
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata(), outputs[node]["text"][0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def baselines(host):
    """Trained once for each set of shared options."""
    cache = {}

    def of(**options):
        key = json.dumps(options, sort_keys=True)
        if key not in cache:
            cache[key] = run(host, **options)
        return cache[key]

    return of


DCO = {"objective__beta": 0.03}
PRESERVED = {
    "preservation": "prompts", "preservation__preservation_prompts": "blank; a large star at night",
    "preservation__preservation_weight": 50.0, "preservation__preservation_share": 1.0,
}  # fmt: skip
FOUND = {"objective__beta": "found on my images", "objective__beta__target_gate": 0.3}


@pytest.mark.parametrize(
    ("common", "change"),
    [
        (DCO, {"objective__beta": 0.3}),
        (DCO, {"reduction": "batch-mean"}),
        (DCO, {"weighting": "min-snr"}),
        ({"objective__beta": 0.0}, {"objective__beta": "found on my images", "objective__beta__target_gate": 0.1}),
        (DCO, {"objective": "DreamBooth"}),
        ({"objective": "DreamBooth"}, {"weighting": "min-snr"}),
        (PRIOR, {"objective__prior_weight": 3.0}),
        (PRIOR, {"objective__class_prompt": "a large star at night"}),
        (PRIOR, {"objective__generated_images": 3}),
        (PRIOR, {"objective__generation_steps": 3}),
        (PRIOR, {"objective__generation_w_text": 4.0}),
        (PRIOR, {"weighting": "min-snr"}),
        (MAPO, {"objective__mapo_beta": 1.0}),
        (MAPO, {"objective__generated_images": 2}),
        (MAPO, {"objective__generation_steps": 13}),
        (MAPO, {"weighting": "min-snr"}),
        (PRESERVE, {"objective__preservation_weight": 20.0}),
        (PRESERVE, {"objective__class_prompt": "a large star at night"}),
        (PRESERVE, {"weighting": "min-snr"}),
        (DCO, {"learning_rate": 3e-3}),
        (DCO, {"batch_size": 1}),
        (DCO, {"alpha": 2.0}),
        (DCO, {"steps": 4}),
        (DCO, {"offset_noise": 0.3}),
        (DCO, {"caption_dropout": 0.6}),
        (DCO, PRESERVED),
        (DCO | PRESERVED, {"preservation__preservation_weight": 3.0}),
        (DCO | PRESERVED, {"preservation__preservation_share": 0.3}),
        (DCO, {"dropout": 0.5}),
        (DCO, {"gradient_accumulation_steps": 2}),
        (DCO, {"seed": 6}),
        (DCO, {"optimizer": "adafactor"}),
        (DCO, {"lr_scheduler": "cosine"}),
        (DCO, {"lr_warmup_steps": 3}),
        (DCO, {"ema_decay": 0.5}),
        (DCO, {"precision": "bf16"}),
    ],
)
def test_an_option_changes_what_is_learned_and_nothing_else_does(host, baselines, common, change):
    plain = baselines(**common)[0]
    changed, header, _ = run(host, **common | change)
    assert plain.keys() == changed.keys()
    assert not same(plain, changed)
    assert all(tensor.isfinite().all() for tensor in changed.values())
    assert json.loads(header["dco.config"])["seed"] == change.get("seed", 5)


def memory(report, what):
    """The megabytes a report gives before some words."""
    number, unit = re.search(rf"([\d.]+) (MB|GB)(?= {what})", report).groups()
    return float(number) * (1000 if unit == "GB" else 1)


def test_gradient_checkpointing_needs_less_memory_and_learns_the_same(host, sd15, photos):
    kept, _, plain = run(host, "sd15", steps=4, gradient_checkpointing="off")
    again, _, report = run(host, "sd15", steps=4, gradient_checkpointing="on")
    assert memory(report, "of activations") < 0.5 * memory(plain, "of activations")
    assert "with gradient checkpointing" in report
    assert "with gradient checkpointing" not in plain
    assert memory(plain, "of the whole process") > 0
    # in main memory already, where there is no GPU: the same step
    away, _, report = run(
        host, "sd15", steps=4, gradient_checkpointing="on, offloaded", stream_weights="on"
    )
    assert "with gradient checkpointing, offloaded" in report
    for key, tensor in kept.items():
        torch.testing.assert_close(again[key], tensor, rtol=1e-3, atol=1e-5)
        assert torch.equal(away[key], again[key])


def test_compiled_blocks_learn_the_same(host, baselines):
    """With dynamo's eager backend: what a compiler makes of it is torch's, and takes minutes."""
    g = Graph()
    base = g.toy()
    model = [g.add("DCOTestCompileEagerly", model=base["model"]), 0]
    trainer = g.toy_trainer(base | {"model": model}, compile=True, steps=3, seed=5)
    count = g.add("DCOTestCompiledGraphs", after=[trainer, 0])
    outputs = host.client.run(g.prompt)
    assert facts(outputs, count) > 10
    compiled = load_file(host.base_dir / "output" / saved_file(outputs, trainer))
    for key, tensor in baselines(**DCO)[0].items():
        torch.testing.assert_close(compiled[key], tensor, rtol=1e-3, atol=1e-5)


def test_the_curves_are_written_for_tensorboard(host):
    run(host, **DCO, steps=5, tensorboard=True, name="logged")
    (folder,) = (host.base_dir / "output" / "dco_logs" / "loras_logged").iterdir()
    log = EventAccumulator(str(folder))
    log.Reload()
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_looking_ahead_learns_the_same(host, baselines):
    (naive, one, _), (ahead, four, _) = run(host, **DCO, look_ahead=1), run(host, **DCO, look_ahead=4)
    assert [json.loads(header["dco.config"])["look_ahead"] for header in (one, four)] == [1, 4]
    for key, tensor in naive.items():
        torch.testing.assert_close(ahead[key], tensor, rtol=1e-3, atol=1e-4)


def test_the_base_model_looks_ahead_on_a_device_of_its_own(host):
    """The CPU stands in for a second GPU: a thread of its own, and the same LoRA."""
    common = DCO | {"look_ahead": 2}
    alone = run(host, **common, steps=5)[0]
    beside, _, report = run(host, **common, steps=5, reference_device="cpu", reference_cache=False)
    assert same(alone, beside)
    assert "The base model looks ahead on cpu." in report
    with pytest.raises(HostError, match="reference_device is cuda:3, and this machine has"):
        run(host, **common, reference_device="cuda:3")


def test_streamed_weights_have_nothing_to_do_without_a_gpu(host):
    assert "No weights are streamed: the model trains in main memory." in run(host, **DCO, stream_weights="on")[2]


def test_the_same_options_train_the_same_lora(host, baselines):
    assert same(baselines(**DCO)[0], run(host, **DCO, name="option_again")[0])


@pytest.mark.parametrize(
    ("changes", "modules", "absent"),
    [
        ({"layers": "attention"}, ("attn1_to_q", "attn2_to_out_0"), ("ff_net",)),
        (
            {"layers": "cross-attention keys and values"},
            ("attn2_to_k", "attn2_to_v"),
            ("attn1", "to_q", "to_out"),
        ),
        ({"layers": "attention and feed-forward"}, ("attn1_to_q", "ff_net_2"), ("proj_in",)),
        ({"layers": "all linear"}, ("proj_in", "ff_net_2", "emb_layers_1"), ("in_layers_2",)),
        ({"layers": "all linear and convolution"}, ("in_layers_2", "attn1_to_q"), ()),
        ({"layer_filter": r"output_blocks.*to_[qk]$"}, ("to_q", "to_k"), ("input_blocks", "to_v")),
    ],
)
def test_the_choice_of_layers_is_what_the_file_holds(host, sdxl, photos, changes, modules, absent):
    tensors, header, _ = run(host, "sdxl", **changes, steps=1)
    names = {key.split(".")[0] for key in tensors}
    for module in modules:
        assert any(name.endswith(module) or module in name for name in names), module
    for module in absent:
        assert not any(module in name for name in names), module
    convolution = [t for key, t in tensors.items() if "in_layers_2.lora_down" in key]
    assert all(t.ndim == 4 for t in convolution)


def test_the_automatic_beta_is_the_papers_on_errors_of_the_noise_and_found_on_the_models_own(host, sd15, photos):
    assert "beta 1." in run(host, "sd15", objective__beta=0.0, steps=1)[2]
    on_images = run(host, "sd15", **FOUND, steps=1)[1]["dco.beta"]
    assert 0 < float(on_images) != 1.0
    _, header, report = run(host, objective__beta=0.0)
    assert float(header["dco.beta"]) == 1.0 and "beta 1." in report
    assert json.loads(header["dco.config"])["weighting"] == "epsilon"
    for options in (FOUND, {"objective__beta": 0.0, "weighting": "uniform"}):
        _, header, report = run(host, **options)
        assert 0 < float(header["dco.beta"]) != 1.0
        assert f"beta {float(header['dco.beta']):.4g}" in report
        assert json.loads(header["dco.config"])["weighting"] == "uniform"


def test_the_rank_and_the_resolution_are_the_ones_asked_for(host, sd15, photos):
    small, header, _ = run(host, "sd15", steps=1, rank=3)
    assert {t.shape[0] for key, t in small.items() if "lora_down" in key} == {3}
    assert header["ss_network_dim"] == "3"
    assert not same(small, run(host, "sd15", steps=1, rank=3, resolution=96)[0])


def test_buckets_and_real_sizes_reach_sdxl(host, sdxl, photos):
    """The pictures are 96x64 and 64x80."""
    buckets, header, _ = run(host, "sdxl", steps=2)
    square = run(host, "sdxl", steps=2, crop="square")[0]
    fixed = run(host, "sdxl", steps=2, size_conditioning="fixed (as the authors)")[0]
    assert not same(buckets, square)
    assert not same(buckets, fixed)
    assert json.loads(header["dco.config"])["crop"] == "aspect buckets"


def test_pictures_of_several_buckets_share_a_batch(host, sd15, photos):
    tensors, _, _ = run(host, "sd15", steps=2, batch_size=2, gradient_accumulation_steps=2)
    assert any(t.abs().max() > 0 for key, t in tensors.items() if "lora_up" in key)


def test_masks_say_where_an_image_counts(host, baselines):
    def half(g, base):
        left = g.add("SolidMask", value=1.0, width=128, height=256)
        empty = g.add("SolidMask", value=0.0, width=256, height=256)
        return {
            "masks": [
                g.add("MaskComposite", destination=[empty, 0], source=[left, 0], x=0, y=0, operation="add"),
                0,
            ]
        }

    def picture(g, base):
        return {"masks": [g.add("EmptyImage", width=256, height=256, batch_size=4, color=0xFFFFFF), 0]}

    plain = baselines(**DCO)[0]
    masked = run(host, extra=half, **DCO)[0]
    assert not same(plain, masked)
    everywhere = run(host, extra=picture, **DCO)[0]  # an IMAGE, white all over
    for key in plain:
        torch.testing.assert_close(plain[key], everywhere[key], rtol=1e-3, atol=1e-4)


def test_class_images_from_a_folder_take_the_place_of_generated_ones(host, photos):
    def own(g, base):
        return {"class_images": [g.add("LoadImageDataSetFromFolder", folder=photos), 0]}

    generated = run(host, **PRIOR, crop="square")[0]
    given = run(host, extra=own, **PRIOR, crop="square")[0]
    assert not same(generated, given)


def test_prior_preservation_and_mapo_generate_with_an_epsilon_model_too(host, sd15, photos):
    prior = {k: v for k, v in PRIOR.items() if "w_text" not in k}
    assert "Saved" in run(host, "sd15", steps=1, **prior)[2]
    assert "Saved" in run(host, "sd15", steps=1, **prior | {"objective": "MaPO"})[2]


def test_what_a_prompt_leaves_out_has_its_default(host):
    left_out = (
        "batch_size", "validation_steps", "objective__beta", "recipe__learning_rate", "recipe__offset_noise",
    )  # fmt: skip
    tensors, _, report = run(host, recipe="style", **dict.fromkeys(left_out))
    assert "Recipe style: steps 3, rank 4, learning rate 5e-05, offset noise 0.1" in report
    assert "(the paper: steps 1000, rank 64)" in report
    assert tensors and "Captions: no complaints (4 captions)." in report
    assert "Validation margin: best " in report  # as a trainer does unless told otherwise


def test_one_image_is_enough(host):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="subject")
    one = g.add("ImageFromBatch", image=[references, 0], batch_index=1, length=1)
    caption = "a large <toy> in the middle, on the beach, in flat style"
    node = g.trainer(g.toy(), [one, 0], caption, batch_size=1, name="one")
    assert "Captions: no complaints (1 caption)." in host.client.run(g.prompt)[node]["text"][0]


def test_training_goes_on_from_the_lora_of_a_trainer(host, baselines):
    """One step at a small rate moves little: what came in is still there, rank, alpha and layers too."""
    first = baselines(**DCO)[0]

    def start(g, base):
        trainer = g.toy_trainer(base, **DCO, steps=3, seed=5, name="begun")
        return {"start_from": [trainer, 0]}

    gone_on = run(
        host, extra=start, **DCO, rank=32, alpha=1.0, layers="all linear", steps=1, learning_rate=1e-6
    )[0]
    assert gone_on.keys() == first.keys()
    for key in first:
        torch.testing.assert_close(gone_on[key], first[key], rtol=0, atol=1e-4)


def half_masked(g, base):
    """The left half of every picture counts."""
    black, white = (g.add("SolidMask", value=v, width=w, height=256) for v, w in ((0.0, 256), (1.0, 128)))
    half = g.add("MaskComposite", destination=[black, 0], source=[white, 0], x=0, y=0, operation="add")
    return {"masks": [half, 0]}


@pytest.mark.parametrize("objective", [DCO, {"objective": "DreamBooth"}], ids=["DCO", "DreamBooth"])
def test_the_mask_prior_holds_what_is_outside_of_the_masks(host, objective):
    free, header, _ = run(host, extra=half_masked, **objective)
    held, told, _ = run(host, extra=half_masked, mask_prior=200.0, **objective)
    assert not same(free, held) and all(tensor.isfinite().all() for tensor in held.values())
    assert "mask_prior" not in json.loads(header["dco.config"])
    assert json.loads(told["dco.config"])["mask_prior"] == 200.0


def test_a_mask_prior_without_masks_and_unusable_prompts_are_one_sentence(host):
    with pytest.raises(HostError, match="mask_prior is 5, but no picture has anything outside of a mask"):
        run(host, mask_prior=5.0)
    with pytest.raises(HostError, match="has no prompt: write blank, class, bundled"):
        run(host, **PRESERVED | {"preservation__preservation_prompts": ";"})


def test_preservation_prompts_are_one_a_line_and_go_into_the_header(host):
    lines = PRESERVED | {"preservation__preservation_prompts": "blank\nclass\na large star at night"}
    found = json.loads(run(host, **lines)[1]["dco.config"])
    assert found["preservation_prompts"] == "blank\nclass\na large star at night"
    assert found["preservation_weight"] == 50.0
    # beside output preservation, whose own class prompt and weight are chosen with it
    both = PRESERVE | {"objective__preservation_weight": 2.0}
    assert json.loads(run(host, **both)[1]["dco.config"])["preservation_weight"] == 2.0
