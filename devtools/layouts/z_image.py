"""The template for a flow model: Z-Image, its own loaders, resolution and guidance."""

from __future__ import annotations

from dco_core.suggested_scales import suggested_scales

from .layout import Layout, trainer_settings

_FILES = "https://huggingface.co/Comfy-Org/z_image_turbo/resolve/main/split_files"
Z_IMAGE = {
    "name": "z_image_bf16.safetensors",
    "url": "https://huggingface.co/Comfy-Org/z_image/resolve/main/split_files/diffusion_models/z_image_bf16.safetensors",
    "directory": "diffusion_models",
}
QWEN = {
    "name": "qwen_3_4b.safetensors",
    "url": f"{_FILES}/text_encoders/qwen_3_4b.safetensors",
    "directory": "text_encoders",
}
VAE = {"name": "ae.safetensors", "url": f"{_FILES}/vae/ae.safetensors", "directory": "vae"}

_READ_ME = """\
## Z-Image: train a subject

Z-Image predicts flow. What differs from SDXL is set here:

- **beta** **auto** is the paper's 1: DCO compares the noises that Z-Image's predictions imply.
- **w_text** (cfg) 4 and **w_rg** 1.6: the paper's ratio of 0.4, at the guidance this model is made for. Try 1.2 \
to 2.8.
- Text encoders of this kind learn **no tokens**: **&lt;dog&gt;** in captions says what the subject is; in prompts \
write **dog**.
- Train on *Z-Image*, not on *Turbo*: guidance is distilled into that one. The LoRA can be tried on both.

Photos and captions as in template 1. Plan for 24 GB of GPU memory; with less, *DCO Run Options* has gradient \
checkpointing, and the model can be loaded as fp8.

*Reward Guidance (DCO)* patches the model, so any sampler follows it.
"""


def train_z_image() -> Layout:
    """Workflow 5: Z-Image, with reward guidance as a patch for KSampler."""
    w = Layout()
    scales = suggested_scales("ZImage", "flow")
    assert scales is not None
    unet = w.add("UNETLoader", (0, 40), (330, 90), unet_name=Z_IMAGE["name"], weight_dtype="default")
    clip = w.add("CLIPLoader", (0, 190), (330, 110), clip_name=QWEN["name"], type="lumina2", device="default")
    vae = w.add("VAELoader", (0, 360), (330, 60), vae_name=VAE["name"])
    w.models |= {unet: [Z_IMAGE], clip: [QWEN], vae: [VAE]}
    images = w.add(
        "DCOPhotos", (0, 480), (330, 480), "My photos and captions", photos="", kind="subject", name="dog"
    )
    trainer = w.add(
        "DCOLoRATrainer", (380, 40), (400, 920), "Train my subject", model=[unet, 0], clip=[clip, 0], vae=[vae, 0],
        images=[images, 0], captions=[images, 1], **trainer_settings("subject", "my_subject_z_image"),
    )  # fmt: skip
    prompt = w.add(
        "CLIPTextEncode", (830, 40), (330, 140), "Prompt", clip=[clip, 0],
        text="a photo of a dog wearing a spacesuit, planting a flag on the moon",
    )  # fmt: skip
    empty = w.add("CLIPTextEncode", (830, 220), (330, 80), "Empty prompt", clip=[clip, 0], text="")
    latent = w.add("EmptySD3LatentImage", (830, 380), (330, 110), width=1024, height=1024, batch_size=1)
    guided = w.add(
        "DCORewardGuidance", (830, 550), (330, 220), "Reward guidance: move w_rg", model=[unet, 0], lora=[trainer, 0],
        w_rg=scales.w_rg,
    )  # fmt: skip
    sampler = w.add(
        "KSampler", (1210, 40), (320, 280), "Its cfg is w_text", model=[guided, 0], positive=[prompt, 0],
        negative=[empty, 0], latent_image=[latent, 0], seed=1, steps=30, cfg=scales.w_text,
        sampler_name="res_multistep", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    decoded = w.add("VAEDecode", (1210, 380), (320, 50), samples=[sampler, 0], vae=[vae, 0])
    picture = w.add(
        "SaveImage", (1580, 40), (340, 390), "My subject", images=[decoded, 0], filename_prefix="dco/z_image"
    )
    w.notes += [(1210, 490, 710, 470, _READ_ME)]
    w.groups += [
        ("1. Model and photos", -20, -40, 370, 1020, "#3f789e"),
        ("2. Train", 360, -40, 440, 1020, "#8A8"),
        ("3. Look", 810, -40, 1130, 1020, "#b58b2a"),
    ]
    w.app_inputs += [
        (trainer, "recipe"),
        (trainer, "steps"),
        (trainer, "name"),
        (prompt, "text"),
        (guided, "w_rg"),
    ]
    w.app_outputs += [picture]
    return w
