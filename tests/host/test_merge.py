"""The merge in the graph: the picture of the sum is the picture of the stacked loaders."""

from __future__ import annotations

from host_graph import Graph, facts, saved_file


def test_the_merged_lora_draws_what_stacked_loaders_draw(host):
    g = Graph()
    base = g.toy()
    subject = g.toy_trainer(base, rank=4, layers="all linear")
    style = g.toy_trainer(base, "style", rank=6, alpha=3.0, batch_size=1)
    merge = g.merge([[subject, 0], [style, 0]], weights="0.8, -0.5", name="merged")
    apply = {"bypass": False}
    merged = g.add("LoraModelLoader", model=base["model"], lora=[merge, 0], strength_model=1.0, **apply)
    first = g.add("LoraModelLoader", model=base["model"], lora=[subject, 0], strength_model=0.8, **apply)
    stacked = g.add("LoraModelLoader", model=[first, 0], lora=[style, 0], strength_model=-0.5, **apply)
    c, empty, start = g.text(base["clip"], "a large toy on grass"), g.text(base["clip"], ""), g.latent(256)
    pictures = [g.ksample([m, 0], c, empty, start, 2.0) for m in (merged, stacked, first)]
    same, other = g.compare(pictures[0], pictures[1]), g.compare(pictures[0], pictures[2])
    outputs = host.client.run(g.prompt)
    assert facts(outputs, same)["relative"] < 1e-5
    assert facts(outputs, other)["relative"] > 1e-4

    name = saved_file(outputs, merge).removeprefix("loras/")
    mark = len(host.log())
    loaded = g.add("LoraLoaderModelOnly", model=base["model"], lora_name=name, strength_model=1.0)
    by_file = g.add("DCOLoadLoRA", lora_name=name)
    guided = g.guided(base["model"], [by_file, 0], c, empty, start, 1.0, 1.0)
    from_file = g.compare(g.ksample([loaded, 0], c, empty, start, 2.0), pictures[0])
    as_lora = g.compare(guided, g.ksample([loaded, 0], c, empty, start, 1.0))
    outputs = host.client.run(g.prompt)
    assert facts(outputs, from_file)["relative"] < 1e-6
    assert facts(outputs, as_lora)["relative"] < 1e-5
    assert "lora key not loaded" not in host.log()[mark:]
