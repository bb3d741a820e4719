"""Direct Consistency Optimization: training, reward guidance and LoRA arithmetic, without any host.

The names below are the method; `dco_core.lora` holds LoRA files and their sums, `dco_core.toy_world` the embedded
model. peft is imported only when a LoRA is put into a network.
"""

from .adapters import AdapterConfig
from .captions import base_caption
from .denoiser import Denoiser, NetworkDenoiser
from .errors import DCOError
from .guidance import reward_guidance
from .losses import dco_loss, dco_margin, diffusion_loss, mean_squared_error
from .schedules import Schedule
from .trainer import Draw, Example, StepReport, TrainingConfig, evaluate, random_draws, train

__all__ = [
    "AdapterConfig",
    "DCOError",
    "Denoiser",
    "Draw",
    "Example",
    "NetworkDenoiser",
    "Schedule",
    "StepReport",
    "TrainingConfig",
    "base_caption",
    "dco_loss",
    "dco_margin",
    "diffusion_loss",
    "evaluate",
    "mean_squared_error",
    "random_draws",
    "reward_guidance",
    "train",
]
