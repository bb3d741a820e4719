"""The template that compares two ways of training as the paper does: a sweep each, two scores, a Pareto plot."""

from __future__ import annotations

from .layout import Layout, trainer_settings
from .toy_world import TOY_LORA, TOY_TRAINING

_METHODS = ("DreamBooth", "DCO")  # in the order of the plot's curves
# As in docs/evidence/protocol.md: its main checkpoint, its batch, and its w_rg after the base model's 0.
_STEPS, _BATCH = 1000, 2
_SWEEP = {
    "w_rg_values": "0, 0.6, 1, 1.4, 2", "across": "w_rg alone", "seed": 3, "steps": 10, "w_text": 2.0,
    "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
}  # fmt: skip

_READ_ME = """\
## Compare methods: press Run

Two LoRAs learn the same subject from the same captions; only the **objective** differs. About five minutes on a CPU, \
no download.

A point is a **w_rg**; 0 is the base model. *Likeness*: is it my subject? *Alignment*: is it what was asked for? Up \
and to the right is better; where bars overlap, the plot does not tell.

**What is known**, of twenty subjects. After the same steps DCO is liker than plain DreamBooth, because its larger \
gradients are clipped in every step: DreamBooth clipped as hard is liker still. What is DCO's own: at equal likeness \
pictures of other things change less, which this plot does not show.

**This is one seed.** A claim needs a study: **python -m dco_core evidence**.

**Your own model:** *Load Checkpoint* and *Load Dataset Folder* in place of the Toy World, *Image Similarity* and \
*Image-Text Score* in place of the scores.
"""


def compare_methods() -> Layout:
    """Workflow 4: DreamBooth and DCO on the Toy World, one plot of both."""
    w = Layout()
    world = w.add("DCOToyWorldLoader", (0, 40), (250, 100))
    subject = w.add("DCOToyWorldReferences", (0, 205), (250, 110), "My subject: 4 pictures", what="subject")
    prompts = w.add(
        "DCOEvaluationPrompts", (0, 360), (250, 190), "What is asked for", kind="stylization", category="toy world",
        word="toy", count=0, style="",
    )  # fmt: skip
    lora = w.add("DCOLoRAOptions", (0, 635), (250, 230), "Of both", **TOY_LORA)
    options = w.add(
        "DCOTrainingOptions", (0, 895), (250, 80), f"Of both: batch {_BATCH}", batch_size=_BATCH, options=[lora, 0]
    )
    positive = w.add(
        "CLIPTextEncode", (0, 930), (250, 80), "Each prompt in turn", clip=[world, 1], text=[prompts, 0]
    )
    empty = w.add("CLIPTextEncode", (0, 965), (250, 80), "Empty prompt", clip=[world, 1], text="")
    latent = w.add("EmptyLatentImage", (0, 1000), (250, 110), width=256, height=256, batch_size=1)
    w.collapsed |= {options, positive, empty, latent}
    scores = []
    for i, method in enumerate(_METHODS):
        y = 40 + 515 * i
        trainer = w.add(
            "DCOLoRATrainer", (290 + 330 * i, 40), (300, 900), f"Train with {method}", model=[world, 0],
            clip=[world, 1], vae=[world, 2], images=[subject, 0], captions=[subject, 1], options=[options, 0],
            **trainer_settings("custom", f"toy_{method.lower()}", **TOY_TRAINING | {"steps": _STEPS}, objective=method),
        )  # fmt: skip
        sweep = w.add(
            "DCORewardGuidanceSweep", (960, y), (280, 430), f"{method}: a sweep",
            model=[world, 0], lora=[trainer, 0], positive=[positive, 0], negative=[empty, 0],
            latent_image=[latent, 0], vae=[world, 2], **_SWEEP,
        )  # fmt: skip
        likeness = w.add(
            "DCOToyWorldScore", (1280, y), (240, 190), f"{method}: my subject?", images=[sweep, 0],
            references=[subject, 0], labels=[sweep, 2], what="subject likeness", prompts="",
        )  # fmt: skip
        w.collapsed.add(likeness)
        both = w.add(
            "DCOToyWorldScore", (1280, y + 60), (240, 330), f"{method}: as asked for?", images=[sweep, 0],
            scores=[likeness, 0], labels=[sweep, 2], what="prompt alignment", prompts=[prompts, 0],
        )  # fmt: skip
        scores.append(both)
    plot = w.add(
        "DCOParetoPlot", (1560, 40), (390, 250), "Which method has more of both?", names="\n".join(_METHODS),
        title="Toy World: the subject in other styles", x="alignment", y="likeness",
        **{f"curves__scores_{i}": [table, 0] for i, table in enumerate(scores)},
    )  # fmt: skip
    picture = w.add(
        "SaveImage", (1560, 335), (390, 320), "Up and to the right is better", images=[plot, 0],
        filename_prefix="dco/compare_methods",
    )  # fmt: skip
    w.notes += [(1560, 690, 390, 300, _READ_ME)]
    w.groups += [
        ("1. What is taught and asked", -20, -40, 290, 1080, "#3f789e"),
        ("2. Train: one thing differs", 280, -40, 650, 1080, "#8A8"),
        ("3. Sample", 940, -40, 310, 1080, "#b58b2a"),
        ("4. Score", 1260, -40, 280, 1080, "#a1309b"),
        ("5. Compare", 1550, -40, 410, 1080, "#a1309b"),
    ]
    w.app_inputs += [(prompts, "word"), (latent, "batch_size")]
    w.app_outputs += [picture]
    return w
