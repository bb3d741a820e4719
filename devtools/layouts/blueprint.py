"""The subgraph blueprint: everything between photos and a picture in one node."""

from __future__ import annotations

from dataclasses import dataclass, field

from .layout import Layout, trainer_settings


@dataclass
class Blueprint:
    """A node of the frontend's library. layout: what is in it, and around it the nodes that its inputs come from and
    its outputs go to. outside: those nodes. sockets: the inputs that have no widget, and the captions. shown: widgets
    that the subgraph's node has, (node id, widget, label)."""

    layout: Layout
    outside: set[str]
    sockets: list[str]
    description: str
    aliases: list[str]
    shown: list[tuple[str, str, str]] = field(default_factory=list)


def personalise_then_guide() -> Blueprint:
    """A LoRA from photos, and a picture with reward guidance."""
    w = Layout()
    loader = w.add("CheckpointLoaderSimple", (-400, 0), (300, 100), ckpt_name="")
    photos = w.add("DCOLoadDataset", (-400, 200), (300, 100), folder="")
    latent = w.add("EmptyLatentImage", (-400, 400), (300, 100), width=1024, height=1024, batch_size=1)
    trainer = w.add(
        "DCOLoRATrainer", (0, 0), (400, 900), model=[loader, 0], clip=[loader, 1], vae=[loader, 2],
        images=[photos, 0], captions=[photos, 1], **trainer_settings("subject", "my_subject"),
    )  # fmt: skip
    prompt = w.add(
        "DCOEncodePrompt", (450, 0), (330, 170), clip=[loader, 1], lora=[trainer, 0],
        text="a photo of a <dog> on the beach",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (450, 220), (330, 90), clip=[loader, 1], text="")
    sampler = w.add(
        "DCORewardGuidanceSampler", (450, 360), (330, 450), model=[loader, 0], lora=[trainer, 0],
        positive=[prompt, 1], negative=[empty, 0], latent_image=[latent, 0], seed=1, steps=50, w_rg=3.0, w_text=7.5,
        sampler_name="ddim", scheduler="normal", denoise=1.0, personalized=[prompt, 0],
    )  # fmt: skip
    decoded = w.add("VAEDecode", (830, 0), (200, 50), samples=[sampler, 0], vae=[loader, 2])
    picture = w.add("PreviewImage", (1100, 0), (300, 300), images=[decoded, 0])
    saved = w.add("SaveLoRA", (1100, 400), (300, 100), lora=[trainer, 0], prefix="loras/copy")
    report = w.add("PreviewAny", (1100, 600), (300, 100), source=[trainer, 3])
    return Blueprint(
        w,
        {loader, photos, latent, picture, saved, report},
        ["model", "clip", "vae", "images", "captions", "latent_image"],
        "Trains a LoRA of your subject from photos and captions with Direct Consistency Optimization, then makes a "
        "picture of it with reward guidance.",
        ["dco", "dreambooth", "train lora", "lora training", "reward guidance", "my subject"],
        [
            (trainer, "steps", "training_steps"),
            (trainer, "rank", "rank"),
            (trainer, "name", "name_of_the_LoRA"),
            (prompt, "text", "prompt"),
            (sampler, "seed", "seed"),
            (sampler, "w_rg", "w_rg"),
            (sampler, "w_text", "w_text"),
        ],
    )
