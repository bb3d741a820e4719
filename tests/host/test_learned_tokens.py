"""Learned tokens in the real host: gradients, training, files, and prompts."""

from __future__ import annotations

import json

import pytest
import torch
from host_graph import Graph, facts, saved_file
from safetensors import safe_open
from safetensors.torch import load_file

from devtools.api import HostError

TOKENS = {
    "learned_tokens": "with the LoRA",
    "learned_tokens__token_learning_rate": 5e-3,
    "learned_tokens__initializers": "",
    "learned_tokens__vectors": 0,
}
ENCODERS = {"toy": {"toy_world": 128}, "sd15": {"clip_l": 768}, "sdxl": {"clip_l": 768, "clip_g": 1280}}


@pytest.fixture(params=["toy", "sd15", "sdxl"])
def any_family(request):
    if request.param != "toy":
        request.getfixturevalue(request.param)
    return request.param


def base_of(g, family):
    return g.toy() if family == "toy" else g.checkpoint(family)


def token_trainer(g, base, family, **changes):
    """A subject with the marker <toy> or <dog>."""
    values = TOKENS | {"steps": 3, "batch_size": 1, "rank": 2} | changes
    if family == "toy":
        return g.toy_trainer(base, **values)
    picture = g.add("DCOToyWorldReferences", what="subject")
    one = g.add("ImageFromBatch", image=[picture, 0], batch_index=0, length=1)
    return g.trainer(base, [one, 0], "a photo of a <dog> on a beach", **{"resolution": 64} | values)


def embeddings(host, stem):
    return sorted((host.base_dir / "models" / "embeddings").glob(f"{stem}*.safetensors"))


def test_the_training_encoder_gives_the_hosts_encoding_and_its_gradient(host, any_family):
    """Against the host's own encoding of the same rows, and central differences of it."""
    g = Graph()
    clip = base_of(g, any_family)["clip"]
    node = g.add("DCOTestTokenGradient", clip=clip, text="a <toy> and a <toy>, at night")
    found = facts(host.client.run(g.prompt), node)
    assert found["at_start"] < 1e-5  # rows that start as the words read as the words
    assert found["encoding"] < 1e-5
    assert found["gradient"] < 2e-2
    assert found["untouched"]


def test_training_moves_only_the_new_rows_and_the_image_from_files_is_the_fresh_one(host, any_family):
    stem = f"tok_{any_family}"
    g = Graph()
    base = base_of(g, any_family)
    trainer = token_trainer(g, base, any_family, name=f"{stem}")
    marker = "toy" if any_family == "toy" else "dog"
    prompt = f"a large <{marker}> at night"
    size = 256 if any_family == "toy" else 64
    encoded = g.add("DCOEncodePrompt", clip=base["clip"], lora=[trainer, 0], text=prompt)
    empty, latent = g.text(base["clip"], ""), g.latent(size)
    fresh = g.guided(
        base["model"], [trainer, 0], [encoded, 1], empty, latent, 2.0, 3.0, personalized=[encoded, 0], steps=2
    )
    plain = g.guided(base["model"], [trainer, 0], [encoded, 1], empty, latent, 2.0, 3.0, steps=2)
    with_tokens = g.compare(fresh, plain)
    hashed = g.compare(fresh, fresh)
    clip_hash = g.add("DCOTestClipHash", clip=base["clip"], after=[trainer, 0])
    outputs = host.client.run(g.prompt)
    assert facts(outputs, with_tokens)["relative"] > 1e-5  # the tokens matter
    text = outputs[trainer]["text"][0]
    assert f'The token <{marker}> works in any prompt as "embedding:{stem}' in text

    lora_path = host.base_dir / "output" / saved_file(outputs, trainer)
    (embedding,) = embeddings(host, stem)
    rows = load_file(embedding)
    assert {name: tuple(t.shape) for name, t in rows.items()} == {
        name: (1, width) for name, width in ENCODERS[any_family].items()
    }
    with safe_open(lora_path, "pt") as file:
        header = file.metadata()
        for name, tensor in rows.items():
            assert torch.equal(file.get_tensor(f"bundle_emb.{marker}.{name}"), tensor)
    assert json.loads(header["dco.tokens"]) == {marker: marker}
    assert header["modelspec.trigger_phrase"] == f"<{marker}>"
    assert header["dco.base_words"] == marker
    assert {"dco.beta", "dco.w_rg", "dco.w_text"} <= set(header)

    g = Graph()
    base = base_of(g, any_family)
    loaded = g.add("DCOLoadLoRA", lora_name=lora_path.name)
    again = g.add("DCOEncodePrompt", clip=base["clip"], lora=[loaded, 0], text=prompt)
    by_name = g.text(base["clip"], f"a large embedding:{embedding.stem} at night")
    positive, empty, latent = (
        g.text(base["clip"], f"a large {marker} at night"),
        g.text(base["clip"], ""),
        g.latent(size),
    )
    from_bundle = g.guided(
        base["model"], [loaded, 0], [again, 1], empty, latent, 2.0, 3.0, personalized=[again, 0], steps=2
    )
    from_file = g.guided(
        base["model"], [loaded, 0], positive, empty, latent, 2.0, 3.0, personalized=by_name, steps=2
    )
    same = g.compare(from_bundle, from_file)
    bundle = g.compare(from_bundle, from_bundle)
    after = g.add("DCOTestClipHash", clip=base["clip"], after=[again, 0])
    results = host.client.run(g.prompt)
    assert facts(results, same)["equal"]
    assert facts(results, bundle)["sha256"] == facts(outputs, hashed)["sha256"]
    assert facts(results, after) == facts(outputs, clip_hash)


def test_tokens_alone_leave_an_embedding_and_a_lora_without_layers(host):
    g = Graph()
    base = g.toy()
    trainer = token_trainer(
        g, base, "toy", name="tokens_alone", learned_tokens="alone (Textual Inversion)", steps=4
    )
    encoded = g.add("DCOEncodePrompt", clip=base["clip"], lora=[trainer, 0], text="a <toy>")
    empty, latent = g.text(base["clip"], ""), g.latent(256)
    guided = g.guided(
        base["model"], [trainer, 0], [encoded, 1], empty, latent, 3.0, 3.0, personalized=[encoded, 0]
    )
    plain = g.ksample(base["model"], [encoded, 0], empty, latent, 3.0)
    compared = g.compare(guided, plain)
    outputs = host.client.run(g.prompt)
    assert facts(outputs, compared)["relative"] < 1e-5  # w_rg = w_text: the base model on the learned token
    assert not list((host.base_dir / "output" / "loras").glob("tokens_alone*"))
    assert len(embeddings(host, "tokens_alone")) == 1
    assert "Saved" not in outputs[trainer]["text"][0]


def test_initializers_vectors_and_rates_are_used(host):
    def rows(**changes):
        g = Graph()
        token_trainer(g, g.toy(), "toy", name="options", **changes)
        host.client.run(g.prompt)
        return load_file(embeddings(host, "options")[-1])["toy_world"]

    plain = rows()
    other = rows(learned_tokens__initializers="<toy> = star")
    three = rows(learned_tokens__vectors=3)
    slow = rows(learned_tokens__token_learning_rate=1e-6)
    assert three.shape == (3, 128)
    assert (plain - slow).norm() > 10 * (slow - rows(learned_tokens__token_learning_rate=2e-6)).norm()
    assert (plain - other).norm() > (plain - slow).norm()


def test_two_tokens_at_once_from_a_phrase_and_with_more_vectors_than_words(host, sdxl):
    """Both encoders of SDXL; the start is what a rate of almost nothing leaves."""

    def train(rate):
        g = Graph()
        base = g.checkpoint("sdxl")
        picture = g.add("DCOToyWorldReferences", what="subject")
        one = g.add("ImageFromBatch", image=[picture, 0], batch_index=0, length=1)
        trainer = g.trainer(
            base, [one, 0], "a photo of a <rex> and a <bo> on a beach", resolution=64, rank=2, batch_size=1,
            steps=1, validation_steps=0, name="pair",
            **TOKENS | {"learned_tokens__token_learning_rate": rate,
                        "learned_tokens__initializers": "<rex> = golden retriever\n<bo> = dog, 3"},
        )  # fmt: skip
        outputs = host.client.run(g.prompt)
        path = host.base_dir / "output" / saved_file(outputs, trainer)
        return path, load_file(path), outputs[trainer]["text"][0]

    _, start, _ = train(1e-7)
    path, rows, text = train(5e-3)
    shapes = {k.removeprefix("bundle_emb."): tuple(t.shape) for k, t in rows.items() if "bundle_emb" in k}
    assert shapes == {
        "rex.clip_l": (2, 768),
        "rex.clip_g": (2, 1280),
        "bo.clip_l": (3, 768),
        "bo.clip_g": (3, 1280),
    }
    for key in (k for k in rows if k.startswith("bundle_emb")):
        assert (rows[key] - start[key]).norm(dim=1).min() > 1e-3
        torch.testing.assert_close(rows[key].norm(dim=1), start[key].norm(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        start["bundle_emb.bo.clip_l"][0], start["bundle_emb.bo.clip_l"][2], rtol=0, atol=1e-5
    )
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert json.loads(header["dco.tokens"]) == {"rex": "golden retriever", "bo": "dog"}
    assert header["dco.base_words"] == "golden retriever, dog"
    assert header["modelspec.trigger_phrase"] == "<rex>, <bo>"
    assert text.count("works in any prompt as") == 2
    rex, bo = (embeddings(host, f"{path.stem}{name}")[0].stem for name in ("rex", "bo"))

    g = Graph()
    base = g.checkpoint("sdxl")
    loaded = g.add("DCOLoadLoRA", lora_name=path.name)
    empty, latent = g.text(base["clip"], ""), g.latent(64)
    encoded = g.add("DCOEncodePrompt", clip=base["clip"], lora=[loaded, 0], text="(a <rex>:1.3), with a <bo>")
    by_name = g.text(base["clip"], f"(a embedding:{rex}:1.3), with a embedding:{bo}")
    plain = g.text(base["clip"], "(a golden retriever:1.3), with a dog")
    same = [
        g.compare(
            g.ksample(base["model"], a, empty, latent, 2.0), g.ksample(base["model"], b, empty, latent, 2.0)
        )
        for a, b in (([encoded, 0], by_name), ([encoded, 1], plain), ([encoded, 0], plain))
    ]
    shown = g.add("PreviewAny", source=[encoded, 2])
    outputs = host.client.run(g.prompt)
    assert [facts(outputs, node)["equal"] for node in same] == [True, True, False]
    assert outputs[shown]["text"] == ["(a golden retriever:1.3), with a dog"]


@pytest.mark.parametrize(
    "objective",
    ["DCO", "DreamBooth", "DreamBooth + prior preservation", "MaPO", "Output preservation", "DCO + prior preservation"],
)
def test_tokens_train_with_every_objective_beside_masks_dropout_and_accumulation(host, objective):
    made = "MaPO" in objective or "prior" in objective
    generation = {"objective__generated_images": 1, "objective__generation_steps": 2} if made else {}

    def rows(rate):
        g = Graph()
        mask = g.add("SolidMask", value=1.0, width=64, height=64)
        trainer = token_trainer(
            g, g.toy(), "toy", name="objectives", objective=objective, batch_size=2,
            gradient_accumulation_steps=2,
            masks=[mask, 0], caption_dropout=0.3, steps=2, learned_tokens__token_learning_rate=rate, **generation,
        )  # fmt: skip
        outputs = host.client.run(g.prompt)
        return load_file(host.base_dir / "output" / saved_file(outputs, trainer))["bundle_emb.toy.toy_world"]

    start, end = rows(1e-7), rows(1e-2)
    assert (end - start).norm() > 0.01
    torch.testing.assert_close(end.norm(dim=1), start.norm(dim=1), rtol=1e-4, atol=1e-6)


def test_a_prompt_without_markers_is_the_same_for_both(host):
    g = Graph()
    base = g.toy()
    trainer = token_trainer(g, base, "toy", name="unmarked", steps=2)
    encoded = g.add(
        "DCOEncodePrompt", clip=base["clip"], lora=[trainer, 0], text="a large star and a <heart>"
    )
    empty, latent = g.text(base["clip"], ""), g.latent(256)
    one = g.ksample(base["model"], [encoded, 0], empty, latent, 2.0)
    two = g.ksample(base["model"], g.text(base["clip"], "a large star and a heart"), empty, latent, 2.0)
    compared = g.compare(one, two)
    assert facts(host.client.run(g.prompt), compared)["equal"]


def test_training_goes_on_from_the_tokens_of_a_lora(host):
    g = Graph()
    base = g.toy()
    first = token_trainer(g, base, "toy", name="first_tokens", rank=3)
    second = token_trainer(
        g, base, "toy", name="second_tokens", start_from=[first, 0], steps=1
    )
    off = g.toy_trainer(base, name="kept_tokens", start_from=[first, 0], steps=1)
    outputs = host.client.run(g.prompt)
    tensors = [load_file(host.base_dir / "output" / saved_file(outputs, n)) for n in (first, second, off)]
    begun, gone_on, kept = (t["bundle_emb.toy.toy_world"] for t in tensors)
    assert 0 < (gone_on - begun).norm() < 0.2 * begun.norm()
    assert torch.equal(kept, begun)
    downs = [key for key in tensors[1] if key.endswith("lora_down.weight")]
    assert {tensors[1][key].shape[0] for key in downs} == {3}


@pytest.mark.parametrize(
    ("changes", "captions", "words"),
    [
        ({}, "a toy on the left", "No caption has a marker"),
        ({"learned_tokens__initializers": "<toy> = zebra"}, "a <toy>", '"zebra" of <toy> is not a word'),
        (
            {"learned_tokens__initializers": "<toy> = red star", "learned_tokens__vectors": 1},
            "a <toy>",
            "2 tokens",
        ),
        ({"learned_tokens__initializers": "<toy> = star\n<toy> = heart"}, "a <toy>", "<toy> already exists"),
        ({"learned_tokens__initializers": "<cat> = star"}, "a <toy>", "<cat> fits no caption"),
        ({}, "a <pad>", "<pad> already exists in toy_world"),
    ],
)
def test_bad_tokens_are_refused_before_anything_is_written(host, changes, captions, words):
    g = Graph()
    references = g.add("DCOToyWorldReferences", what="style")
    g.trainer(g.toy(), [references, 0], captions, name="refused", **TOKENS | changes)
    with pytest.raises(HostError) as error:
        host.client.run(g.prompt)
    assert words in str(error.value)
    assert not list((host.base_dir / "output" / "loras").glob("refused*"))


def test_a_token_of_another_text_encoder_is_refused(host, sd15):
    g = Graph()
    trainer = token_trainer(g, g.toy(), "toy", name="wrong", steps=1)
    g.add(
        "PreviewAny",
        source=[
            g.add("DCOEncodePrompt", clip=g.checkpoint(sd15)["clip"], lora=[trainer, 0], text="a <toy>"),
            0,
        ],
    )
    with pytest.raises(
        HostError, match="<toy> has rows for toy_world of width 128, this text encoder is clip_l"
    ):
        host.client.run(g.prompt)
