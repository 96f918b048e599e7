"""The warm python: a command ends, prints and finds its surroundings as it would in a python of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.warm import WarmPython

MODULE = """
import json, os, signal, sys
import secret
what = sys.argv[1]
if what == "tell":
    print(json.dumps({
        "arguments": sys.argv[1:], "folder": os.getcwd(), "mark": os.environ.get("MARK"),
        "home": os.environ.get("HOME"), "input": sys.stdin.read(), "secret": secret.VALUE, "name": __name__,
        "parent": os.getppid(), "ahead": "colorsys" in sys.modules,
    }))
    print("to standard error", file=sys.stderr)
elif what == "status":
    sys.exit(int(sys.argv[2]))
elif what == "words":
    sys.exit("it went wrong")
elif what == "raise":
    raise ValueError("a mistake")
elif what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "wait":
    try:
        print(os.getpid(), flush=True)
        signal.pause()
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture(scope="module")
def warm():
    server = WarmPython(dict(os.environ), ("colorsys",))
    yield server
    server.close()


@pytest.fixture()
def project(tmp_path):
    (tmp_path / "talk.py").write_text(MODULE)
    (tmp_path / "secret.py").write_text(f"VALUE = {tmp_path.name!r}\n")
    return tmp_path


def call(python, project, *words, **options):
    return subprocess.run([str(python), "-m", "talk", *words], cwd=project, capture_output=True, text=True, **options)


def test_a_command_finds_its_folder_environment_arguments_and_files(warm, project):
    environment = {key: value for key, value in os.environ.items() if key != "HOME"} | {"MARK": "7"}
    done = call(warm.folder / "python", project, "tell", "a b", "'", input="given", env=environment)
    told = json.loads(done.stdout)
    assert told.pop("parent") != os.getpid() and told.pop("ahead")
    assert told == {
        "arguments": ["tell", "a b", "'"], "folder": str(project), "mark": "7", "home": None, "input": "given",
        "secret": project.name, "name": "__main__",
    }  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "to standard error\n")


def test_each_command_has_the_project_of_its_own_folder(warm, project, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "talk.py").write_text(MODULE)
    (other / "secret.py").write_text("VALUE = 'other'\n")
    for folder, expected in ((project, project.name), (other, "other"), (project, project.name)):
        assert (
            json.loads(call(warm.folder / "python", folder, "tell", stdin=subprocess.DEVNULL).stdout)["secret"]
            == expected
        )


@pytest.mark.parametrize(("words", "status", "error"), [
    (["status", "0"], 0, ""), (["status", "3"], 3, ""), (["raise"], 1, "ValueError: a mistake"),
    (["words"], 1, "it went wrong"), (["die"], 128 + signal.SIGKILL, ""),
])  # fmt: skip
def test_a_command_ends_with_its_own_status(warm, project, words, status, error):
    done = call(warm.folder / "python", project, *words)
    assert done.returncode == status and error in done.stderr


def test_what_is_no_module_runs_as_usual(warm, project):
    done = subprocess.run(
        [str(warm.folder / "python"), "-c", "import sys; print('colorsys' in sys.modules, sys.executable)"],
        cwd=project, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"False {sys.executable}\n"


def ended(pid):
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_a_command_ends_with_the_one_who_asked_for_it(warm, project):
    asking = subprocess.Popen([warm.folder / "python", "-m", "talk", "wait"], cwd=project, stdout=subprocess.PIPE)
    pid = int(asking.stdout.readline())
    asking.kill()
    asking.wait()
    asking.stdout.close()
    assert ended(pid)


def test_an_interrupt_from_the_terminal_reaches_the_command_and_its_status_the_terminal(warm, project):
    asking = subprocess.Popen([warm.folder / "python", "-m", "talk", "wait"], cwd=project, stdout=subprocess.PIPE)
    pid = int(asking.stdout.readline())
    for each in (asking.pid, pid):  # as a terminal does, to all of its group
        os.kill(each, signal.SIGINT)
    assert asking.wait(timeout=20) == 130
    asking.stdout.close()


def test_without_its_server_the_python_runs_commands_by_itself(project):
    server = WarmPython(dict(os.environ), ("colorsys",))
    server._server.kill()
    server._server.wait()
    assert not json.loads(call(server.folder / "python", project, "tell", stdin=subprocess.DEVNULL).stdout)["ahead"]
    server.close()
    assert not server.folder.exists()


def test_a_server_that_cannot_start_is_no_obstacle(project):
    server = WarmPython(dict(os.environ), ("no_such_library",))
    assert call(server.folder / "python", project, "status", "4").returncode == 4
    server.close()


def test_the_server_ends_with_who_started_it(project):
    program = (
        "import os, sys\nfrom experiments.warm import WarmPython\n"
        "print(WarmPython(dict(os.environ), ('colorsys',))._server.pid, flush=True)\nos._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended(int(done.stdout))
