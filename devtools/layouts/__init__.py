"""What the template workflows hold: nodes as an API prompt, and where they stand.

`python -m devtools.make_workflows` turns this into the UI-format files with the real frontend.
"""

from __future__ import annotations

from collections.abc import Callable

from .compare import compare_methods
from .layout import Layout
from .sdxl import SDXL, reward_guidance, subject_in_style, train_a_subject
from .toy_world import try_it

WORKFLOWS: dict[str, Callable[[], Layout]] = {
    "0 - Try it (Toy World, CPU)": try_it,
    "1 - Train a subject": train_a_subject,
    "2 - Reward guidance": reward_guidance,
    "3 - My subject in my style": subject_in_style,
    "4 - Compare methods (Toy World, CPU)": compare_methods,
}

__all__ = ["SDXL", "WORKFLOWS", "Layout"]
