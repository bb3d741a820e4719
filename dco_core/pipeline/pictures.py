"""What a run learns from, checked before there is a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ..captions.markers import base_caption, class_prompt
from ..data.folders import Picture, load_folder, made_smaller
from ..errors import DCOError
from ..training.config import TrainingConfig
from .generation import GenerationConfig

_NO_WORDS: Mapping[str, str] = MappingProxyType({})


class TrainingPictures:
    """Pictures with captions, masks and repeats, and what a run makes of them.

    class_images: for the objectives with prior preservation, in place of those that the base model would make; their
    captions do not matter. Raises DCOError for what cannot be trained.
    """

    def __init__(
        self, pictures: Sequence[Picture], config: TrainingConfig, generation: GenerationConfig | None = None,
        class_images: Sequence[Picture] = (),
    ):  # fmt: skip
        self.config, self.generation = config, generation or GenerationConfig()
        config.check()
        self.generation.check()
        self.pictures, self.class_images = list(pictures), list(class_images)
        self.captions = [picture.caption for picture in self.pictures]
        if self.pictures:
            config.check_masks(any(p.mask is not None for p in self.pictures))

    @property
    def notes(self) -> list[str]:
        """What was read otherwise than it is in the files."""
        return made_smaller([*self.pictures, *self.class_images])

    def class_prompt(self, initializers: Mapping[str, str] = _NO_WORDS) -> str:
        """The prompt of the subject's class, as the base model reads it; "" where the objective needs none.
        initializers: of learned tokens. Raises DCOError where nothing tells it."""
        if not self.config.reads_class_prompt:
            return ""
        prompt = self.generation.class_prompt.strip() or class_prompt(self.captions, initializers)
        if not prompt:
            raise DCOError(
                'class_prompt is empty and no caption marks the subject: write "a photo of a dog" (as --class-prompt '
                "on the command line), or mark <dog>."
            )
        return base_caption(prompt, initializers)


class FolderPictures(TrainingPictures):
    """TrainingPictures from folders. class_data: a folder of class images."""

    def __init__(
        self, data: Path, config: TrainingConfig, generation: GenerationConfig | None = None,
        class_data: Path | None = None,
    ):  # fmt: skip
        super().__init__((), config, generation)  # checked before a file is opened
        if class_data is not None and not config.with_prior:
            raise DCOError(
                f"Class images are for the objectives dreambooth-prior and dco-prior, not {config.objective}: "
                "leave --class-data out."
            )
        pictures = load_folder(data, require_captions=True)
        super().__init__(pictures, config, generation)
        self.class_prompt()
        self.class_images = [] if class_data is None else load_folder(class_data)
