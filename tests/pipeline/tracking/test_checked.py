"""What a person's check has proved stands with the model's version in MLflow, for as long as it holds."""

import pytest

from pipeline.groups import edits
from pipeline.groups.apply import Grouping
from pipeline.groups.file import model_digest
from pipeline.review import checks
from pipeline.tracking import checked
from pipeline.tracking.checked import note_checked, tell_mlflow
from pipeline.tracking.execution import model_name
from pipeline.tracking.mlflow_runs import connect
from tests.pipeline.groups.conftest import content_of, write_run
from tests.pipeline.tracking.test_spool import database, project  # noqa: F401 (fixtures)


@pytest.fixture
def client(project, monkeypatch):  # noqa: F811
    """Of a registry with a version of the model that is there and one of another model."""
    monkeypatch.chdir(project)
    write_run([0] * 6 + [1] * 6)
    client, name = connect(project)[0], model_name(project)
    client.create_registered_model(name)
    for model in (model_digest(), "another"):
        client.create_model_version(name, "here", tags={"scan.model": model})
    return client


def said(client, project):  # noqa: F811
    versions = sorted(client.search_model_versions(f"name = '{model_name(project)}'"), key=lambda each: each.version)
    assert "scan.checked" not in versions[1].tags
    return versions[0].tags.get("scan.checked")


def test_a_check_is_told_and_taken_back_once_groups_change(client, project):  # noqa: F811
    note_checked(project)
    assert said(client, project) is None
    for row in range(4):
        checks.check(Grouping(), content_of(row), row > 0)
    note_checked(project)
    assert said(client, project) == "sure images: 75 % right (4 checked; 95 %: 30 to 95)"
    edits.merge([1, 2])
    note_checked(project)
    assert said(client, project) is None


def test_mlflow_is_asked_only_if_there_is_news_and_until_it_has_the_version(client, project, monkeypatch):  # noqa: F811
    started = []
    monkeypatch.delenv("SCAN_TRACKING")
    monkeypatch.setattr(checked.subprocess, "Popen", lambda command, **_: started.append(command[1:]))
    tell_mlflow()
    assert not started
    checks.check(Grouping(), content_of(1), True)
    tell_mlflow()
    assert started == [["-m", "pipeline.tracking.checked", str(project)]]
    note_checked(project)
    tell_mlflow()
    assert len(started) == 1
    write_run([0] * 6 + [1] * 6, model=b"not registered yet")
    checks.check(Grouping(), content_of(1), True)
    note_checked(project)
    tell_mlflow()
    assert len(started) == 2
