"""The template that compares two ways of training as the paper does: a sweep each, two scores, a Pareto plot."""

from __future__ import annotations

from .layout import Layout, trainer_settings
from .toy_world import TOY_TRAINING

# A row of nodes for each method, in the order of the plot's curves.
_ROWS = {"DreamBooth": 120, "DCO": 1520}
# The base model, the paper's ratios w_rg / w_text of 0.3, 0.5 and 0.7, and two where guidance is pushed.
_SWEEP = {
    "w_rg_values": "0, 0.6, 1, 1.4, 3, 5", "across": "w_rg alone", "seed": 3, "steps": 20, "w_text": 2.0,
    "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "lora_strength": 1.0,
    "more_loras": "this one alone",
}  # fmt: skip

_READ_ME = """\
## Compare methods: press Run

Two LoRAs learn the same subject. Settings, seed and captions are the same; only the **objective** differs. Some \
minutes on a CPU, no download.

**Pictures** (4). A row is a prompt, a column a `w_rg`: 0 is the base model and the same for both; 0.6 to 1.4 are \
the paper's ratios to `w_text` (0.3 to 0.7), 3 and 5 push it.

**Scores** (5). *Is it my subject?* Likeness to the four references. *Is it what was asked for?* The share of the \
prompt's factors that the picture obeys. A copy of a reference has the first and not the second, the base model the \
second and not the first.

**Plot** (6). A point is a `w_rg`: the mean over the prompts, with its standard error. Up and to the right is better, \
so a method is better where its curve lies *outside* the other's. Where bars overlap, the plot does not tell. \
In the run that made the thumbnail, both obeyed 0.98 of the prompts' parts or more at every `w_rg`, DreamBooth with \
more likeness: so short a training gives it nothing to lose.

**This is one seed.** Another `seed` in both trainers moves the curves. A claim needs a study over seeds:

`python -m dco_core evidence`

trains more methods, and draws their spread: `docs/evidence.md`.

### With your own model
1. *Load Checkpoint* and *Load Dataset Folder* in place of the Toy World; *Evaluation Prompts*: category `object` or \
`live subject`, your `word`. The trainers, the latent and `w_text` (7.5, `w_rg` 2 to 5) as in template 1 and 2.
2. *Image Similarity Score* in place of the first score (DINOv2, which it downloads once, or *Load CLIP Vision*), \
your photos as `references`.
3. *Image-Text Score* in place of the second (SigLIP). Both are the paper's.

With learned tokens (`<dog>`) the prompts go through *Encode DCO Prompt*. For more pictures a point, raise \
`batch_size` of the latent. For a third method, copy a row and connect it to the plot.
"""


def compare_methods() -> Layout:
    """Workflow 4: DreamBooth and DCO on the Toy World, a row a method, one plot of both."""
    w = Layout()
    world = w.add("DCOToyWorldLoader", (0, 120), (290, 90))
    subject = w.add("DCOToyWorldReferences", (0, 330), (290, 100), "My subject: 4 images", what="subject")
    w.add("PreviewImage", (0, 490), (290, 290), "My subject", images=[subject, 0])
    prompts = w.add(
        "DCOEvaluationPrompts", (0, 840), (290, 180), "What is asked for", kind="customization", category="toy world",
        word="toy", count=0, style="",
    )  # fmt: skip
    positive = w.add(
        "CLIPTextEncode", (0, 1120), (290, 120), "Each prompt in turn", clip=[world, 1], text=[prompts, 0]
    )
    empty = w.add("CLIPTextEncode", (0, 1310), (290, 100), "Empty prompt", clip=[world, 1], text="")
    latent = w.add("EmptyLatentImage", (0, 1480), (290, 110), width=512, height=512, batch_size=1)
    scores = []
    for method, y in _ROWS.items():
        trainer = w.add(
            "DCOLoRATrainer", (370, y), (340, 560), f"Train with {method}", model=[world, 0], clip=[world, 1],
            vae=[world, 2], images=[subject, 0], captions=[subject, 1],
            **trainer_settings(**TOY_TRAINING, objective=method, filename_prefix=f"loras/toy_{method.lower()}"),
        )  # fmt: skip
        sweep = w.add(
            "DCORewardGuidanceSweep", (780, y), (340, 480), f"{method}: a sweep over w_rg",
            model=[world, 0], lora=[trainer, 0], positive=[positive, 0], negative=[empty, 0],
            latent_image=[latent, 0], vae=[world, 2], **_SWEEP,
        )  # fmt: skip
        sheet = w.add(
            "DCOContactSheet", (1190, y), (640, 200), f"{method}: a row a prompt", images=[sweep, 0],
            labels=[sweep, 2], row_names=[prompts, 1], title=method, columns=0,
        )  # fmt: skip
        w.add(
            "PreviewImage",
            (1190, y + 260),
            (640, 1020),
            f"{method}: more w_rg to the right",
            images=[sheet, 0],
        )
        likeness = w.add(
            "DCOToyWorldScore", (1900, y), (360, 220), f"{method}: is it my subject?", images=[sweep, 0],
            references=[subject, 0], labels=[sweep, 2], what="subject likeness", prompts="",
        )  # fmt: skip
        both = w.add(
            "DCOToyWorldScore", (1900, y + 340), (360, 220), f"{method}: is it what was asked for?",
            images=[sweep, 0], scores=[likeness, 0], labels=[sweep, 2], what="prompt alignment",
            prompts=[prompts, 0],
        )  # fmt: skip
        scores.append(both)
    plot = w.add(
        "DCOParetoPlot", (2330, 120), (440, 360), "Which method has more of both?", names="\n".join(_ROWS),
        title="Toy World: the subject in new places", x="alignment", y="likeness",
        **{f"curves__scores_{i}": [table, 0] for i, table in enumerate(scores)},
    )  # fmt: skip
    w.add("PreviewAny", (2830, 120), (440, 440), "The points in numbers", source=[plot, 1])
    w.add(
        "SaveImage", (2330, 640), (940, 660), "Up and to the right is better", images=[plot, 0],
        filename_prefix="dco/compare_methods",
    )  # fmt: skip
    # tall enough for where the second row begins
    w.groups += [
        ("1. What is taught and asked", -20, 40, 330, 1580, "#3f789e"),
        ("2. Train: one thing differs", 350, 40, 380, 1900, "#8A8"),
        ("3. Sample", 760, 40, 380, 1900, "#b58b2a"),
        ("4. Look", 1170, 40, 680, 1900, "#b58b2a"),
        ("5. Score", 1880, 40, 400, 1900, "#a1309b"),
        ("6. Compare", 2310, 40, 980, 1280, "#a1309b"),
    ]
    w.notes.append((-540, 40, 500, 700, _READ_ME))
    return w
