"""A TensorBoard log, read back by TensorBoard."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dco_core.errors import DCOError
from dco_core.network.lora_layers import AdapterConfig
from dco_core.schedules import Schedule
from dco_core.training.checkpoints import Checkpoints
from dco_core.training.config import TrainingConfig
from dco_core.training.tensorboard import EventLog
from dco_core.training.trainer import Training
from tests.small_network import Denoiser, small_base, small_examples


def training(**changes):
    denoiser = Denoiser(small_base(), Schedule.stable_diffusion(), AdapterConfig(rank=2))
    checkpoints = changes.pop("checkpoints", None)
    return Training(denoiser, small_examples(), TrainingConfig(**changes), checkpoints=checkpoints)


def curve(folder, name):
    log = EventAccumulator(str(folder))
    log.Reload()
    return {event.step: event.value for event in log.Scalars(name)}


def test_every_step_and_every_score_is_in_the_log(tmp_path):
    run = training(steps=6, validation_steps=3)
    log = EventLog(tmp_path, run)
    run.run(log)
    log.close()
    assert curve(tmp_path, "train/loss") == pytest.approx({r.step: r.loss for r in run.history})
    assert curve(tmp_path, "train/gate") == pytest.approx({r.step: r.gate for r in run.history})
    assert curve(tmp_path, "validation/margin") == pytest.approx({s.step: s.margin for s in run.scores})
    assert list(curve(tmp_path, "validation/distance")) == [3, 6]


def test_going_on_from_a_checkpoint_replaces_the_steps_beyond_it(tmp_path):
    def stop(report):
        log(report)
        if report.step == 5:
            log.close()
            raise KeyboardInterrupt

    run = training(steps=8, checkpoints=Checkpoints(tmp_path / "checkpoints", 3, 0))
    run._save_while_stopping = lambda: None  # as after a loss of power: the checkpoint is that of step 3
    log = EventLog(tmp_path / "log", run)
    with pytest.raises(KeyboardInterrupt):
        run.run(stop)
    again = training(steps=8, checkpoints=Checkpoints(tmp_path / "checkpoints", 3, 0))
    assert again.step == 3
    log = EventLog(tmp_path / "log", again)
    again.run(log)
    log.close()
    assert curve(tmp_path / "log", "train/loss") == pytest.approx({r.step: r.loss for r in again.history})
    log = EventLog(tmp_path / "other", again)
    log.close()
    assert list(curve(tmp_path / "other", "train/margin")) == list(range(1, 9))


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DCOError, match="pip install tensorboard"):
        EventLog(tmp_path, training(steps=1))


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "log").write_text("")
    with pytest.raises(DCOError, match="choose another folder"):
        EventLog(tmp_path / "log", training(steps=1))
