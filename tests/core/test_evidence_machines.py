"""A study by the workers of a Dask scheduler, each a process of its own, as on other machines."""

import pytest
from distributed import Client, LocalCluster

from dco_core.cli.commands import main
from dco_core.errors import DCOError
from dco_core.evidence import runner
from dco_core.evidence.jobs import jobs_of
from dco_core.evidence.runner import run
from dco_core.evidence.setting import setting_for
from dco_core.evidence.workspace import Workspace
from tests.core.test_evidence_study import small


def test_two_workers_do_every_job_of_a_study(tmp_path):
    study = small(styles=[], style_methods=[], merges=[], seeds=[0, 1])
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert run(study, tmp_path, ["cpu"], lambda line: None, cluster.scheduler_address) == []
        with Client(cluster) as client:
            executed = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert len(executed) == 2 and min(executed.values()) > 0
    workspace = Workspace(study, setting_for(study, tmp_path / "references", "cpu"), tmp_path, "cpu")
    done = [job for jobs in jobs_of(study) for job in jobs]
    assert len(done) >= 4 and all(workspace.done(job) for job in done)


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "_SCHEDULER_ANSWERS_IN", 1)
    with pytest.raises(DCOError, match="tcp://127.0.0.1:1 does not answer"):
        run(small(), tmp_path, ["cpu"], lambda line: None, "tcp://127.0.0.1:1")
    assert main(["evidence", "--output", str(tmp_path / "o"), "--scheduler", "nonsense", "--device", "cpu"]) == 1
    assert "nonsense does not answer" in capsys.readouterr().err
