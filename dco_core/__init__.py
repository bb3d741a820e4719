"""Direct Consistency Optimization: training, reward guidance and LoRA arithmetic, without any host.

The names below are the method; `dco_core.lora` holds LoRA files and their sums, `dco_core.toy_world` the embedded
model. peft is imported only when a LoRA is put into a network.
"""

from .errors import DCOError
from .guidance import reward_guidance
from .losses import dco_loss, dco_margin, diffusion_loss, mean_squared_error
from .network.denoiser import Denoiser, NetworkDenoiser
from .network.lora_layers import AdapterConfig
from .schedules import Schedule
from .training.config import TrainingConfig
from .training.draws import Draw, random_draws
from .training.examples import Example
from .training.step_report import StepReport
from .training.trainer import Training, evaluate, train

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
    "dco_loss",
    "dco_margin",
    "diffusion_loss",
    "evaluate",
    "mean_squared_error",
    "random_draws",
    "reward_guidance",
    "train",
]
