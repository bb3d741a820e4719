"""Two subjects in one picture of the Toy World, each by a LoRA of its own: everywhere, or each in its region
(guidance.regional_guidance). docs/evidence/protocol.md, fourth study.

The base draws two toys where each half of the picture has its own prompt, as the host's masked conditionings have it.
A picture is read half by half, the other half being the empty background, so that the scorers see one object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DCOError
from ..guidance import regional_guidance
from ..lora import LoraLayer, LoraWeights, merge, read_lora
from ..models.image_model import ImageModel
from ..models.loading import load_model
from ..network.denoiser import Denoiser, NetworkDenoiser
from ..sampling import sample
from ..toy_world import scorer
from ..toy_world.renderer import render
from .intervals import Interval, holm, interval
from .jobs import Job
from .labelled_sheet import labelled_sheet
from .pictures import noise_for, with_lora
from .setting import setting_for
from .study import load_study
from .tables import Row, markdown, write_table, write_text
from .toy_prompts import true_renders, true_scenes
from .workspace import Workspace

LORAS_OF, BASE, METHOD = "holding", "epsilon", "DCO"
BACKGROUNDS = ("on grass", "at night", "on white", "in the sky")
SIDES = ("left", "right")
W_TEXT, W_RG, STEPS, SIZE = 2.0, 1.4, 10, 32
FLOOR, EVERYWHERE, REGIONS, CEILING = "base model", "both everywhere", "each in its region", "true renders"
SCORES = ("likeness", "swapped", "obeyed")
# (score, what is expected of REGIONS - EVERYWHERE)
PRIMARY = (("likeness", "above"), ("swapped", "below"))


@functools.cache
def halves() -> tuple[Tensor, Tensor]:
    """What is left, and what is right: bool [1, 1, 32, 32]."""
    left = (torch.arange(SIZE) < SIZE // 2).expand(1, 1, SIZE, SIZE)
    return left, ~left


def joined(left: Tensor, right: Tensor) -> Tensor:
    """The left half of one [..., 32, 32] beside the right half of the other."""
    return torch.where(halves()[0].to(left.device), left, right)


@functools.cache
def soft_halves() -> tuple[Tensor, Tensor]:
    """The same with an edge of four pixels, as in template 6."""
    left = ((18 - torch.arange(float(SIZE))) / 4).clamp(0, 1).expand(1, 1, SIZE, SIZE)
    return left, 1 - left


class TwoPlaces(Denoiser):
    """phi with a prompt for each half, and theta: phi with what LoRAs add to it. A conditioning is a pair of texts,
    left and right. masks: of each LoRA, which reads the text of its side; None: one network everywhere, on both."""

    def __init__(self, phi: NetworkDenoiser, thetas: Sequence[NetworkDenoiser], masks: Sequence[Tensor] | None):
        self._phi, self._thetas, self._masks, self.schedule = phi, thetas, masks, phi.schedule

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Sequence[Any], *, adapter: bool) -> Tensor:
        if adapter and self._masks is None:
            return self._joined(self._thetas[0], x_t, t, conditioning, True)
        phi = self._joined(self._phi, x_t, t, conditioning, False)
        if not adapter:
            return phi
        assert self._masks is not None
        thetas = [
            theta.predict(x_t, t, [texts[side] for texts in conditioning], adapter=True)
            for side, theta in enumerate(self._thetas)
        ]
        return regional_guidance(thetas, phi, self._masks, [1.0] * len(thetas))

    def _joined(self, network: NetworkDenoiser, x_t: Tensor, t: Tensor, texts: Sequence[Any], adapter: bool) -> Tensor:
        left, right = zip(*texts, strict=True)
        return joined(*(network.predict(x_t, t, side, adapter=adapter) for side in (left, right)))

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {}

    def lora(self) -> dict[str, LoraLayer]:
        return {}


def prompts(side: str) -> list[str]:
    """Of a side of the picture, one a background."""
    return [f"a large toy on the {side}, {background}, in flat style" for background in BACKGROUNDS]


def draw(model: ImageModel, loras: Sequence[LoraWeights], method: str, seed: int) -> Tensor:
    """A picture of each background, [4, 3, 32, 32] in -1..1. loras: of the left and of the right."""
    texts = list(zip(*(model.encode_captions(prompts(side)) for side in SIDES), strict=True))
    (empty,) = model.encode_captions([""])
    phi = model.denoiser(None)
    if method == EVERYWHERE:
        places = TwoPlaces(phi, [with_lora(model, merge(loras, [1.0, 1.0]).layers)], None)
    else:
        places = TwoPlaces(phi, [with_lora(model, lora.layers) for lora in loras], soft_halves())
    noise = torch.cat([noise_for((3, SIZE, SIZE), seed, i, 1) for i in range(len(texts))])
    return sample(
        places, texts, None, [(empty, empty)] * len(texts), noise, w_rg=0.0 if method == FLOOR else W_RG,
        w_text=W_TEXT, steps=STEPS,
    )  # fmt: skip


def true_pictures(subjects: Sequence[str], seed: int) -> Tensor:
    """What a perfect model would draw, [4, 3, 32, 32]."""
    drawn = (true_renders(prompts(side), what, None, seed) for side, what in zip(SIDES, subjects, strict=True))
    return joined(*drawn)


def scores(pictures: Tensor, subjects: Sequence[str], seed: int) -> Row:
    """likeness: to the own subject, the mean over halves. swapped: to the other's. obeyed: both halves are as asked."""
    found: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    for side, half in enumerate(halves()):
        texts = prompts(SIDES[side])
        scenes = true_scenes(texts, subjects[side], None, seed)
        empty = torch.cat([render(scene.with_(centre=(-1000.0, -1000.0))) for scene in scenes])
        one = torch.where(half, pictures, empty)
        found["likeness"].append(scorer.subject_likeness(one, subjects[side]))
        found["swapped"].append(scorer.subject_likeness(one, subjects[1 - side]))
        found["obeyed"].append(scorer.prompt_alignment(one, texts))
    both = found["obeyed"][0] * found["obeyed"][1]
    means = {name: float(torch.stack(found[name]).mean()) for name in ("likeness", "swapped")}
    return means | {"obeyed": float(both.mean())}


def run(folder: Path, output: Path, on_message: Callable[[str], None] = print) -> Path:
    """The study on LoRAs that `--study holding` has left in `folder`; the path of its page. A unit is two subjects,
    averaged over who stands left. Raises DCOError where LoRAs are missing."""
    study = load_study(LORAS_OF)
    workspace = Workspace(study, setting_for(study, folder / "references", "cpu"), folder, "cpu")
    jobs = [Job(METHOD, study.subjects[place], None, seed, BASE) for place, seed in study.units()]
    missing = [workspace.name(job) for job in jobs if not workspace.done(job)]
    if missing:
        raise DCOError(
            f"{folder} has no LoRA of {missing[0]}: run `python -m dco_core evidence --study {LORAS_OF} --output "
            "FOLDER`."
        )
    model = load_model(study.models()[BASE], "cpu")
    rows: list[Row] = []
    shown: dict[str, Tensor] = {}
    for first, second in zip(jobs[::2], jobs[1::2], strict=True):
        loras = {job.subject: read_lora(workspace.main_lora(job)) for job in (first, second)}
        pair = [job.subject or "" for job in (first, second)]
        for method in (FLOOR, EVERYWHERE, REGIONS, CEILING):
            parts = []
            for subjects in (pair, pair[::-1]):
                pictures = true_pictures(subjects, first.seed)
                if method != CEILING:
                    pictures = draw(model, [loras[what] for what in subjects], method, first.seed)
                parts.append(scores(pictures, subjects, first.seed))
                if first is jobs[0]:
                    shown.setdefault(method, pictures)
            means = {name: sum(part[name] for part in parts) / len(parts) for name in SCORES}
            rows.append({"subjects": " and ".join(pair), "seed": first.seed, "method": method, **means})
        on_message(f"{' and '.join(pair)} done")
    return _report(rows, shown, output)


def _differences(rows: Sequence[Row], score: str) -> Interval:
    by = {(row["subjects"], row["method"]): row[score] for row in rows}
    units = list(dict.fromkeys(row["subjects"] for row in rows))
    return interval([by[unit, REGIONS] - by[unit, EVERYWHERE] for unit in units])


def _report(rows: Sequence[Row], shown: dict[str, Tensor], output: Path) -> Path:
    write_table(output / "tables" / "units.csv", rows)
    means = [
        {"method": method, **{name: sum(r[name] for r in own) / len(own) for name in SCORES}}
        for method in (FLOOR, EVERYWHERE, REGIONS, CEILING)
        if (own := [row for row in rows if row["method"] == method])
    ]
    found = {score: _differences(rows, score) for score in SCORES}
    p = holm([found[s].p_above() if expected == "above" else found[s].p_below() for s, expected in PRIMARY])
    lines = [
        {
            "each in its region - both everywhere": score, "expected": expected, "difference": str(found[score]),
            "p": f"{min(1.0, 2 * value):.2g}", "verdict": _verdict(found[score], expected, min(1.0, 2 * value)),
        }
        for (score, expected), value in zip(PRIMARY, p, strict=True)
    ]  # fmt: skip
    obeyed = found["obeyed"]
    lines.append({"each in its region - both everywhere": "obeyed (secondary)", "difference": str(obeyed)})
    labels, pictures = [], []
    for method, images in shown.items():
        for background, image in zip(BACKGROUNDS, images, strict=True):
            labels.append(f"{method}, {background}")
            pixels = ((image.movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte()
            pictures.append(pixels.repeat_interleave(4, 0).repeat_interleave(4, 1).numpy())
    _save(output / "figures" / "two_subjects.png", labelled_sheet(pictures, labels))
    text = "\n\n".join([
        "# Two subjects in one picture",
        "Made by\n\n    python -m dco_core evidence --study two-subjects --loras HOLDING --output OUTPUT\n\nfrom the "
        f"LoRAs of the study *{LORAS_OF}* ({METHOD}, base {BASE}), w_text {W_TEXT:g}, w_rg {W_RG:g}, {STEPS} steps. "
        f"Means over {obeyed.n} pairs of subjects; 95 % t intervals of paired differences; p two-sided, corrected by "
        "Holm.",
        markdown(means), markdown(lines), "![pictures of the first pair](figures/two_subjects.png)",
    ])  # fmt: skip
    write_text(output / "evidence.md", text + "\n")
    return output / "evidence.md"


def _verdict(found: Interval, expected: str, p: float) -> str:
    if not found.enough:
        return "too few units"
    if found.sign == (-1 if expected == "above" else 1):
        return "does not hold here"
    return "holds here" if p <= 0.05 and found.sign else "not shown here"


def _save(path: Path, picture: Any) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
