"""What the template workflows hold: nodes as an API prompt, and where they stand.

`python -m devtools.make_workflows` turns this into the UI-format files with the real frontend.
"""

from __future__ import annotations

from collections.abc import Callable

from .blueprint import Blueprint, personalise_then_guide
from .compare import compare_methods
from .layout import Layout
from .sdxl import SDXL, reward_guidance, subject_in_style, train_a_subject
from .toy_world import try_it
from .two_subjects import two_subjects, two_toys
from .z_image import train_z_image

# The names are of characters that the frontend takes in a link (?template=NAME), and hold what people search for.
WORKFLOWS: dict[str, Callable[[], Layout]] = {
    "0_DCO_LoRA_training_Toy_World": try_it,
    "1_DCO_LoRA_training_SDXL_subject": train_a_subject,
    "2_DCO_reward_guidance": reward_guidance,
    "3_DCO_my_subject_in_my_style": subject_in_style,
    "4_DCO_and_DreamBooth_compared": compare_methods,
    "5_DCO_LoRA_training_Z_Image": train_z_image,
    "6_DCO_two_subjects_in_one_picture_Toy_World": two_toys,
    "7_DCO_two_subjects_in_one_picture_SDXL": two_subjects,
}

# The names are what the frontend's library of nodes shows.
BLUEPRINTS: dict[str, Callable[[], Blueprint]] = {"Personalise, then guide (DCO)": personalise_then_guide}

__all__ = ["BLUEPRINTS", "SDXL", "WORKFLOWS", "Blueprint", "Layout"]
