"""Headers of LoRA files."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Set

# ss_base_model_version of kohya: modelspec.architecture.
ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1/lora",
    "sd_v2": "stable-diffusion-v2-512/lora",
    "sd_v2_v": "stable-diffusion-v2-768-v/lora",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base/lora",
    "sd3": "stable-diffusion-3/lora",
    "flux1": "flux-1-dev/lora",
}


def one_or_dynamic(found: Set[int | float]) -> int | float | str:
    """The one rank or alpha of a file, or kohya's word for those that differ."""
    return next(iter(found)) if len(found) == 1 else "Dynamic"


def training_metadata(
    *,
    title: str,
    rank: int | float | str,
    alpha: float | str,
    steps: int,
    learning_rate: float,
    seed: int,
    config: Mapping[str, object],
    base_model_version: str | None = None,
    comment: str = "",
    date: datetime.datetime | None = None,
    dated: bool = True,
    extra: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """Header of a trained LoRA: `ss_*` as kohya's scripts write it (A1111, Forge), `modelspec.*` 1.0.0 (the
    hash is left out: it would have to be computed over the finished file), and `dco.config`, the complete
    training configuration as JSON, from which a run can be repeated.

    rank, alpha: numbers, or one_or_dynamic's word.
    base_model_version: kohya's name, `sdxl_base_v1-0`, `sd_v1`, ...; None if unknown, and then left out.
        modelspec's name of the architecture goes with it (ARCHITECTURES).
    dated: False leaves the date out, so that the same run gives the same file.
    extra: further entries, such as `modelspec.trigger_phrase`; they win over the standard ones.
    """
    date = date or datetime.datetime.now(datetime.timezone.utc)
    finished = {
        "ss_training_finished_at": date.timestamp(),
        "modelspec.date": date.isoformat(timespec="seconds"),
    }
    entries: dict[str, object] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_base_model_version": base_model_version,
        "ss_output_name": title,
        "ss_steps": steps,
        "ss_learning_rate": learning_rate,
        "ss_seed": seed,
        "ss_training_comment": comment or None,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES.get(base_model_version or ""),
        "modelspec.title": title,
        "dco.config": json.dumps(dict(config), sort_keys=True),
    }
    entries |= finished if dated else {}
    entries |= extra or {}
    return {key: str(value) for key, value in entries.items() if value is not None}
