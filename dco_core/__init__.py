"""Direct Consistency Optimization: training, reward guidance and LoRA arithmetic, without any host.

The names below are the method; `dco_core.lora` holds LoRA files and their sums, `dco_core.toy_world` the embedded
model. peft is imported only when a LoRA is put into a network.
"""

from .adapters import AdapterConfig
from .captions import base_caption
from .config import TrainingConfig
from .denoiser import Denoiser, NetworkDenoiser
from .errors import DCOError
from .examples import Draw, Example, random_draws
from .guidance import reward_guidance
from .losses import dco_loss, dco_margin, diffusion_loss, mean_squared_error
from .reports import StepReport
from .schedules import Schedule
from .trainer import Training, evaluate, train

__all__ = [
    "AdapterConfig",
    "DCOError",
    "Denoiser",
    "Draw",
    "Example",
    "NetworkDenoiser",
    "Schedule",
    "StepReport",
    "Training",
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
