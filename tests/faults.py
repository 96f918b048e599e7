"""Kills (``make faults``): after each, one repetition gives the same bytes, leaves nothing over, and needs no hand.

Stages and deliveries are forks of this process, which has imported what they need, and strace kills them at a chosen
write. Whole runs are killed at a time that is drawn. It prints counts, and ends with 1 if a kill has cost anything.
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.fingerprint import stage_entries
from pipeline.finished import delete_noted
from pipeline.tracking.delivery import send_waiting
from pipeline.tracking.mlflow_runs import connect
from pipeline.yaml_file import read_yaml
from tests.project import OUTPUTS, STAGES, environment, files, make_dvc_project, run

WRITES = (
    "write,pwrite64,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,ftruncate,fsync,fdatasync"
)
# What stages and deliveries import while they work; a fork has it from the start.
IMPORTED = (
    *("torch", "sklearn.cluster", "matplotlib.pyplot", "pyarrow.parquet", "lightning_fabric", "faiss", "mlflow.pyfunc"),
    *("scan_core.models.files", "scan_core.compute.device", "scan_core.evaluation.scores"),
)
MADE = ("data", "models", "reports", ".scan", "dvc.lock", ".dvc/cache", "mlflow.db", "mlartifacts")  # by a run
PR_SET_PTRACER, ANY = 0x59616D61, ctypes.c_ulong(-1)


def forked(project: Path, work: Callable[[], object], trace: list[str] | None = None) -> tuple[int, str]:
    """The exit code of ``work`` in a fork whose folder is ``project``, and what it said; ``trace``: under strace."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when it is forgotten)
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            os.setsid()
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
            os.chdir(project)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if trace:
                os.kill(os.getpid(), signal.SIGSTOP)
            try:
                work()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception as error:  # noqa: BLE001 (it is shown)
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.stderr.flush()
        os._exit(code)
    if trace:
        os.waitpid(pid, os.WUNTRACED)
        tracer = subprocess.Popen(["strace", "-qq", "-p", str(pid), *trace], stderr=subprocess.DEVNULL)
        while int(re.findall(r"TracerPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) == 0:
            if tracer.poll() is not None:
                os.kill(pid, signal.SIGKILL)
                raise SystemExit("strace cannot trace a process here; allow ptrace, or run this as root")
            time.sleep(0.002)
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        tracer.wait()
    else:
        _, status = os.waitpid(pid, 0)
    said.seek(0)
    return os.waitstatus_to_exitcode(status), said.read()


def writes_of(project: Path, work: Callable[[], object]) -> list[tuple[str, int]]:
    """Each write of ``work``: the system call, and how many of its kind there were with it."""
    with tempfile.NamedTemporaryFile("r") as log:
        code, said = forked(project, work, ["-o", log.name, "-e", f"trace={WRITES}"])
        assert code == 0, said
        names = [match[1] for line in log if (match := re.match(r"(\w+)\(", line))]
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append((name, seen[name]))
    return found


def killed_at(project: Path, work: Callable[[], object], write: tuple[str, int]) -> bool:
    """Whether ``work`` was killed at ``write``; it may have fewer of them after a kill."""
    name, number = write
    kill = ["-o", "/dev/null", "-e", f"trace={WRITES}", "-e", f"inject={name}:signal=KILL:when={number}"]
    return forked(project, work, kill)[0] == -signal.SIGKILL


def spread(writes: list[tuple[str, int]], count: int) -> Iterator[tuple[str, int]]:
    """``count`` of ``writes``, from the first to the last."""
    for number in range(count):
        yield writes[number * (len(writes) - 1) // max(count - 1, 1)]


def stage_of(name: str) -> Callable[[], None]:
    """The work of a stage, as DVC starts it."""

    def work() -> None:
        os.environ.update(environment(SCAN_TRACKING="spool", SCAN_SAVE_SECONDS="0", SCAN_WORKERS="1", DVC_STAGE=name))
        importlib.import_module("torch").set_num_threads(1)
        importlib.import_module(f"stages.{name}").app([], standalone_mode=False)

    return work


def outputs_of(project: Path, stage: str) -> list[Path]:
    """What DVC deletes before the stage runs."""
    with contextlib.chdir(project):
        entry = stage_entries()[stage]
    named = [*entry.get("outs", []), *entry.get("metrics", [])]
    return [project / (name if isinstance(name, str) else next(iter(name))) for name in named]


def contents(project: Path, paths: set[str]) -> dict[str, bytes]:
    """The bytes of the files under ``project``."""
    return {path: (project / path).read_bytes() for path in sorted(paths)}


def delete(paths: list[Path]) -> None:
    """Deletes files and folders."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def left_over(project: Path) -> list[str]:
    """What only a run that is at work may have."""
    patterns = (
        "*.partial",
        "*.tmp",
        "*.making-*",
        ".scan/outputs/*",
        ".scan/resume/*/",
        ".scan/tracking/*/",
        ".scan/finished/*",
    )
    return sorted({path.relative_to(project).as_posix() for each in patterns for path in project.rglob(each)})


class Report:
    """Counts kills and what they have cost."""

    def __init__(self) -> None:
        self.failed = 0

    def part(self, name: str, kills: int, wanted: int, costs: list[str], seconds: float) -> None:
        """Prints one line, and those of what went wrong."""
        self.failed += len(costs)
        print(f"{name:<32} {kills:>4} kills of {wanted}, {len(costs)} with a cost, {seconds:,.0f} s", flush=True)
        for cost in costs:
            print(f"    {cost}", flush=True)


def kill_stages(base: Path, kills: int, report: Report) -> None:
    """Kills each stage at its writes."""
    whole = read_yaml(base / "dvc.lock")
    for number, stage in enumerate(STAGES):
        began, costs, done = time.monotonic(), [], 0
        project = base.with_name(f"stage-{stage}")
        shutil.copytree(base, project, symlinks=True)
        outputs, work = outputs_of(project, stage), stage_of(stage)
        before = contents(project, files(project))
        count = kills // len(STAGES) + (number < kills % len(STAGES))
        earlier = {"stages": {name: entry for name, entry in whole["stages"].items() if name != stage}}
        (project / "dvc.lock").write_text(json.dumps(earlier))  # DVC has not noted it
        delete(outputs)
        for write in spread(writes_of(project, work), count):
            shutil.rmtree(project / ".scan")
            delete(outputs)
            done += killed_at(project, work, write)
            delete(outputs)
            code, said = forked(project, work)
            (project / "dvc.lock").write_text(json.dumps(whole))  # now it has
            shutil.rmtree(project / ".scan" / "tracking", ignore_errors=True)
            with contextlib.chdir(project):
                delete_noted(Path())
            (project / "dvc.lock").write_text(json.dumps(earlier))
            left = left_over(project)
            if code or left or contents(project, files(project)) != before:
                what = said.strip().splitlines()[-1:] if code else left or "other bytes"
                costs.append(f"{stage} at {write[0]} {write[1]}: {what}")
        report.part(f"stage {stage}", done, count, costs, time.monotonic() - began)
        shutil.rmtree(project)


def dump(project: Path) -> str:
    """What MLflow knows of all runs, but for ids and times."""
    with contextlib.chdir(project):
        client, experiment = connect(project)
        runs = client.search_runs([experiment])
        ids = {run.info.run_id for run in runs}
        rows = [[each.info.status, each.data.params, each.data.metrics, each.data.tags] for each in runs]
        text = json.dumps(sorted(rows, key=str), sort_keys=True, default=str)
        versions = [sorted(each.tags.items()) for each in client.search_model_versions("")]
    for each in ids:
        text = text.replace(each, "RUN")
    return text + str(versions) + str(len(client.search_logged_models([experiment])))


def kill_deliveries(base: Path, spools: Path, kills: int, report: Report) -> None:
    """Kills the delivery of a whole pipeline's records at its writes to the database."""
    began, costs, done = time.monotonic(), [], 0
    project = base.with_name("delivery")

    def fresh() -> None:
        shutil.rmtree(project, ignore_errors=True)
        shutil.copytree(base, project, symlinks=True)
        shutil.copytree(spools, project / ".scan" / "tracking")

    def send() -> None:
        os.environ.update(environment())
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        send_waiting(project)

    known: list[str] = []
    fresh()
    writes = writes_of(project, send)
    forked(project, lambda: (project / "dump").write_text(dump(project)))
    known.append(re.sub(r"\d{13}", "TIME", (project / "dump").read_text()))
    for write in spread(writes, kills):
        fresh()
        done += killed_at(project, send, write)
        code, said = forked(project, send)
        forked(project, lambda: (project / "dump").write_text(dump(project)))
        now = re.sub(r"\d{13}", "TIME", (project / "dump").read_text())
        if code or left_over(project) or now != known[0]:
            what = said.strip().splitlines()[-1:] if code else left_over(project) or "other records"
            costs.append(f"delivery at {write[0]} {write[1]}: {what}")
    report.part("tracking database", done, kills, costs, time.monotonic() - began)
    shutil.rmtree(project)


def kill_makers(folder: Path, kills: int, report: Report) -> None:
    """Kills whoever makes mlflow.db."""
    began, costs, done = time.monotonic(), [], 0
    project = folder / "making"

    def make() -> None:
        os.environ.update(environment())
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        connect(project)

    project.mkdir()
    writes = writes_of(project, make)
    names = sorted(os.listdir(project))
    for write in spread(writes, kills):
        shutil.rmtree(project)
        project.mkdir()
        done += killed_at(project, make, write)
        code, said = forked(project, make)
        if code or sorted(os.listdir(project)) != names:
            costs.append(f"at {write[0]} {write[1]}: {said.strip().splitlines()[-1:] if code else os.listdir(project)}")
    report.part("making of mlflow.db", done, kills, costs, time.monotonic() - began)


def kill_runs(base: Path, kills: int, seed: int, report: Report) -> None:
    """Kills ``dvc repro``, with all that it has started, at times that are drawn; then does as ``make repro``."""
    began, costs, done, draw = time.monotonic(), [], 0, random.Random(seed)
    project = base.with_name("run")
    before = contents(base, OUTPUTS)
    lasts = 0.0
    for _ in range(kills):
        shutil.rmtree(project, ignore_errors=True)
        shutil.copytree(base, project, symlinks=True)
        delete([project / name for name in MADE])
        started = time.monotonic()
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=project, env=environment(), stdout=-3, stderr=-3, start_new_session=True
        )
        after = draw.uniform(1, lasts or 30)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        else:
            lasts = time.monotonic() - started
        process.wait()
        steps = (["settings", "check"], ["repro"], ["show"], ["runs", "--send"])
        results = [
            run(
                project,
                *(["dvc", "repro"] if step == ["repro"] else [sys.executable, "-m", "pipeline.cli", *step]),
                check=False,
            )
            for step in steps
        ]
        lasts = lasts or 1.5 * (time.monotonic() - started - after)
        wrong = [done.stderr.strip().splitlines()[-1:] for done in results if done.returncode]
        same = not wrong and contents(project, OUTPUTS) == before
        if wrong or left_over(project) or not same:
            costs.append(f"run after {after:.1f} s: {wrong or left_over(project) or 'other bytes'}")
    report.part("whole runs", done, kills, costs, time.monotonic() - began)


def main() -> int:
    """Runs all parts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    kills = {"stages": 300, "deliveries": 60, "makers": 20, "runs": 40}
    for name, default in kills.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"kills of {name}")
    parser.add_argument("--seed", type=int, default=0, help="of the times that are drawn")
    wanted = parser.parse_args()
    if not shutil.which("strace"):
        raise SystemExit("strace is missing; install it (apt-get install strace)")
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        base = make_dvc_project(Path(folder) / "base")
        run(base, "dvc", "repro", SCAN_TRACKING="spool", SCAN_WORKERS="1")
        run(base, sys.executable, "-m", "pipeline.cli", "settings", "check")
        spools = Path(folder) / "spools"
        shutil.move(base / ".scan" / "tracking", spools)
        forked(base, lambda: connect(base))  # so that deliveries meet a database
        for module in (*IMPORTED, *(f"stages.{each}" for each in STAGES)):
            importlib.import_module(module)
        if wanted.makers:
            kill_makers(Path(folder), wanted.makers, report)
        if wanted.stages:
            kill_stages(base, wanted.stages, report)
        if wanted.deliveries:
            kill_deliveries(base, spools, wanted.deliveries, report)
        if wanted.runs:
            kill_runs(base, wanted.runs, wanted.seed, report)
    print(f"{report.failed} kills have cost something" if report.failed else "no kill has cost anything")
    return bool(report.failed)


if __name__ == "__main__":
    sys.exit(main())
