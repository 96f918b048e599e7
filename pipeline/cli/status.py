"""Bare ``scan``: where the project stands, and the next step."""

import json
import shlex
from pathlib import Path

from pipeline import artifacts
from pipeline.cli.run import RUN
from pipeline.params import read_params
from pipeline.project import SUFFIX, command_name, is_clone, is_project


def status() -> None:
    """Prints a few lines."""
    here, scan = Path.cwd(), command_name()
    if not is_project(here) or is_clone(here):
        print("scan groups photos without labels.\n")
        for project in sorted(each.parent for each in here.glob(f"*{SUFFIX}/params.yaml")):
            print(f"project      {project.name}; go there to look at its groups")
        print(f"next         {scan} run PHOTOS            groups a folder of photos, in a project of its own")
        print(f"             {scan} --help                all commands")
        return
    settings = read_params()
    print(f"project      {here.name}, of {settings.data.path or settings.data.name}")
    asked = json.loads(RUN.read_text()).get("asked", {}).get("photos") if RUN.exists() else None
    again = f"{scan} run {shlex.quote(asked) if asked else 'PHOTOS'}"
    if not artifacts.PREDICTIONS.exists():
        print(f"groups       none yet\n\nnext         {again:<29} " + ("carries on" if asked else "groups photos"))
        return
    _say_groups()
    print(f"\nnext         {scan + ' show':<29} the groups\n             {again:<29} places new photos")
    print(f"             {scan + ' review':<29} a page in the browser: look, name, correct, check")
    print(f"             {scan + ' sort FOLDER':<29} copies of the photos, a folder for each group")


def _say_groups() -> None:
    from pipeline.groups.apply import Grouping, read_predictions
    from pipeline.report.words import range_of
    from pipeline.review.checks import promised

    grouping = Grouping()
    table = read_predictions(grouping).select(["group", "state"]).drop_null()
    shown = set(table["group"].to_pylist())
    named = sum(bool(grouping.name(group)) for group in shown)
    verdict = artifacts.load_json(artifacts.VERDICT)["word"].upper()
    found = range_of(artifacts.load_json(artifacts.GROUPS)) if not grouping.is_edited else f"{len(shown)} groups"
    print(f"groups       {found}, {named} with a name; verdict: {verdict}")
    states = table["state"].to_pylist()
    counts = {state: states.count(state) for state in dict.fromkeys(("sure", "to check", "fits nowhere"))}
    if proved := promised(grouping):
        print(f"checked      {proved}")
    print(f"photos       {len(states):,}: " + ", ".join(f"{count:,} {state}" for state, count in counts.items()))
