"""Make the pictures of the help pages, web/docs/pictures, out of the Toy World.

    .dev/venv/bin/python -m devtools.make_help_pictures [--folder FOLDER] [NAME ...]

NAME: regions, mask_prior, preservation, masks; all of them where none is given. FOLDER keeps what was trained (small
LoRAs, half a minute to two minutes each on a CPU), so that a second call only draws. Pictures are sampled in this
process, with the host's sampler and the nodes' guidance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dco_core.cli.commands import main as command_line
from dco_core.drawing.contact_sheet import Row, Section, draw_sheet
from dco_core.lora import read_lora, to_tensors
from dco_core.toy_world.references import toy_attributes, toy_masks, toy_references, write_toy_references
from dco_core.toy_world.renderer import render
from dco_core.toy_world.world import subject_references

from . import in_process_host as host
from .environment import ROOT

PICTURES = ROOT / "web" / "docs" / "pictures"
CELL = 128  # pixels
SEED, STEPS, W_TEXT, W_RG = 7, 20, 2.0, 1.6
_TRAINING = ["--steps", "300", "--learning-rate", "1e-3", "--rank", "8", "--layers", "all linear"]
_TWO_TOYS = ["--steps", "600", "--learned-tokens", "with-lora", "--token-learning-rate", "5e-3"]
_PRESERVED = (  # no toys, and not what is drawn below
    "a large square on white in flat style; a small heart in the sky in pastel style; a large blue circle on grass; a "
    "small green star at night in neon style; a large cross on the beach in outline style; a small yellow triangle at "
    "sunset; a large purple square in the middle; a small red heart on the left"
)
# name of the LoRA: (reference, captions, masks, options of the command line)
LORAS: dict[str, tuple[str, str, bool, list[str]]] = {
    "left": ("toy", "comprehensive", False, _TWO_TOYS),
    "right": ("toy-4", "comprehensive", False, _TWO_TOYS),
    "free": ("toy", "compact", False, []),
    "masks": ("toy", "compact", True, []),
    "mask_prior": ("toy", "compact", True, ["--mask-prior", "50"]),
    "dreambooth": ("toy", "comprehensive", False, ["--objective", "dreambooth"]),
    "preserved": (
        "toy", "comprehensive", False,
        ["--objective", "dreambooth", "--preservation-weight", "1", "--preservation-prompts", _PRESERVED],
    ),
}  # fmt: skip


class Maker:
    """The Toy World in the host of this process. folder: of references and LoRAs, which is kept or made."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        host.start()
        self.model, self.clip, self.vae = host.pack("nodes.host.toy_world").load(None, "epsilon")

    def lora(self, name: str) -> Any:
        """LORA_MODEL of LORAS, trained where it is not in the folder."""
        what, captions, masks, options = LORAS[name]
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            data = self.folder / f"{what}_{captions}{'_masks' * masks}"
            if not data.is_dir():
                write_toy_references(data, what, captions, masks)
            arguments = ["--model", "toy-world:epsilon", "--data", str(data), "--output", str(path)]
            if command_line(["train", *arguments, *_TRAINING, *options]):
                raise RuntimeError(f"{name} could not be trained.")
        return to_tensors(read_lora(path))

    def read(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def draw(self, model: Any, positive: list, seed: int = SEED) -> np.ndarray:
        """uint8 [256, 256, 3]."""
        import comfy.sample

        noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            latent = comfy.sample.sample(
                model, noise, STEPS, W_TEXT, "euler", "simple", positive, self.read(""), torch.zeros_like(noise),
                disable_pbar=True, seed=seed,
            )  # fmt: skip
        return _pixels(self.vae.decode(latent)[0])

    def with_lora(self, name: str) -> Any:
        """The model with a LoRA, as a LoRA loader gives it."""
        import comfy.sd

        return comfy.sd.load_lora_for_models(self.model, None, dict(self.lora(name)), 1.0, 0)[0]


def two_toys(maker: Maker) -> tuple[list[Tensor], np.ndarray, np.ndarray]:
    """Two toys side by side, each with a LoRA, a token, a prompt and a mask, with the settings and the seed of template
    6: the masks, the base model's picture, the guided one."""
    left = ((144 - torch.arange(256.0)) / 32).clamp(0, 1).expand(1, 256, 256)
    masks, personalized, positive = [left, 1 - left], [], []
    loras = [maker.lora("left"), maker.lora("right")]
    for lora, mask, side in zip(loras, masks, ("left", "right"), strict=True):
        text = f"a large <toy> on the {side}, on grass, in flat style"
        own, base, _ = (
            host.pack("nodes.guidance.prompts").DCOEncodePrompt.execute(maker.clip, lora, text).args
        )
        personalized.append(own)
        values = {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}
        positive += [[cross, {**options, **values}] for cross, options in base]
    node = host.pack("nodes.guidance.regions").DCORegionalLoRA
    chain = node.execute(loras[1], mask=masks[1], personalized=personalized[1]).args[0]
    guided = host.pack("nodes.guidance.guided").Guided(
        maker.model, loras[0], personalized[0], {"self_check": False}, masks[0], chain
    )
    base, mine = (maker.draw(guided.patched("reward", w_rg), positive) for w_rg in (0.0, W_RG))
    return masks, base, mine


def regions(maker: Maker) -> Section:
    """Masks, the base model's picture, both LoRAs in it."""
    masks, base, mine = two_toys(maker)
    shown = [_pixels(mask[0, :, :, None].expand(-1, -1, 3)) for mask in masks]
    headings = ("mask of the left LoRA", "mask of the right LoRA", "w_rg 0: the base model", f"w_rg {W_RG:g}")
    return Section([Row([*shown, base, mine])], headings)


def mask_prior(maker: Maker) -> Section:
    """Compact captions on pictures of one beach; then other places."""
    places = ("at night, in flat style", "on grass, in flat style")
    names = ("free", "masks", "mask_prior")
    models = [maker.model, *(maker.with_lora(name) for name in names)]
    rows = [
        Row(
            [maker.draw(m, maker.read(f"a large toy on the right, {place}")) for m in models],
            place.split(",")[0],
        )
        for place in places
    ]
    return Section(rows, ("base model", "no masks", "masks", "masks and mask prior"))


def preservation(maker: Maker) -> Section:
    """Pictures without the subject, LoRA on."""
    prompts = (
        "a small star on the right, on grass, in flat style",
        "a large heart on the left, on the beach, in flat style",
    )
    models = [maker.model, maker.with_lora("dreambooth"), maker.with_lora("preserved")]
    rows = [Row([maker.draw(m, maker.read(text)) for m in models], text) for text in prompts]
    return Section(rows, ("base model", "DreamBooth", "prompts preserved"))


def masks(maker: Maker) -> Section:
    """References, their masks, and what the loss sees of them."""
    scenes, _ = toy_references("toy")
    rows = []
    for image, mask in list(zip(render(scenes), toy_masks(scenes), strict=True))[:2]:
        shown, white = (image.movedim(0, -1) + 1) / 2, mask[..., None].float()
        parts = (shown, white.expand(-1, -1, 3), white * shown + (1 - white) * (0.85 + 0.05 * shown))
        rows.append(Row([_pixels(part) for part in parts]))
    return Section(rows, ("the picture", "its mask", "what is learned"))


def reference(what: str) -> np.ndarray:
    """A reference in which the toy is large and in the middle (`toy_attributes`)."""
    scenes, _ = subject_references()
    return _pixels((render(scenes.with_(**toy_attributes(what)))[1].movedim(0, -1) + 1) / 2)


def _pixels(image: Tensor) -> np.ndarray:
    """[H, W, 3] in 0..1 -> uint8, enlarged to 256 x 256 without smoothing."""
    pixels = image.float().clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    return np.asarray(Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST))


MADE = {"regions": regions, "mask_prior": mask_prior, "preservation": preservation, "masks": masks}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=list(MADE), metavar="NAME")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        maker = Maker(folder)
        PICTURES.mkdir(exist_ok=True)
        for name in args.names or MADE:
            sheet = Image.fromarray(draw_sheet([MADE[name](maker)], cell=CELL).picture)
            sheet.save(PICTURES / f"{name}.jpg", quality=88)
            print(
                f"wrote {(PICTURES / f'{name}.jpg').relative_to(ROOT)}: {sheet.width} x {sheet.height}",
                flush=True,
            )


if __name__ == "__main__":
    main()
