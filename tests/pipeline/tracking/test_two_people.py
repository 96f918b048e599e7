"""Two people who run clones of one project and record them on one MLflow server."""

import signal
import subprocess
import sys
import urllib.request

import pytest
from mlflow import MlflowClient

from tests.docker.servers import free_port, stop, wait_until
from tests.project import environment, make_dvc_project, run, set_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server on SQLite."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]

    def answers():
        try:
            return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
        except OSError:
            return False

    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_until(answers, process, log, 120)
        yield address
    finally:
        stop(process, signal.SIGTERM)


def test_two_people_have_two_rows_with_their_names_and_share_a_version_if_its_bytes_agree(tmp_path, server):
    folders = {person: tmp_path / person / "flowers" for person in ("ann", "ben")}
    make_dvc_project(folders["ann"])
    run(tmp_path, "git", "clone", "-q", str(folders["ann"]), str(folders["ben"]))

    def repro(person):
        run(folders[person], "git", "config", "user.name", person)
        said = run(folders[person], "dvc", "repro", LOGNAME=person, MLFLOW_TRACKING_URI=server).stderr
        assert "MLflow" not in said, said

    def rows():
        (experiment,) = (each for each in client.search_experiments() if each.name == "flowers")
        found = client.search_runs([experiment.experiment_id], "tags.`scan.kind` = 'pipeline'")
        return sorted((row.data.tags["mlflow.user"], row.info.status) for row in found)

    client = MlflowClient(server, server)
    repro("ann")
    repro("ben")
    assert rows() == [("ann", "FINISHED"), ("ben", "FINISHED")]
    assert len(client.search_model_versions("name = 'flowers'")) == 1  # the same settings, seed and machine
    set_params(folders["ben"], {"seed": 1})
    repro("ben")
    assert rows() == [("ann", "FINISHED"), ("ben", "FINISHED"), ("ben", "FINISHED")]
    versions = client.search_model_versions("name = 'flowers'")
    assert len(versions) == 2 and len({version.tags["scan.sha256"] for version in versions}) == 2
