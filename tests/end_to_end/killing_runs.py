"""A program that kills runs and resumes them: ``python -m tests.end_to_end.killing_runs SETTINGS``, a JSON object.

It has everything imported and forks, so that a run takes a second or two; each copy does what ``fllm-run`` does. Kills
at moments drawn from a seed: some after a time, others just before a change of the run's folder, as most of the time of
a run is spent between them. Prints a line of JSON for the run that nobody kills and for each killed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 300
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def changes_folder(event: str, arguments: tuple[Any, ...], folder: str) -> bool | None:
    """Say whether an audit event is a change of a folder; None where it names a file by that of an open folder."""
    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else any(letter in str(mode) for letter in "wax+")
        return bool(writes) and str(path).startswith(folder)
    if event in CHANGES and arguments[-1] not in (-1, None):
        return None
    return event in CHANGES and str(arguments[0]).startswith(folder)


def count_changes(folder: Path, last: int | None, told: Path) -> None:
    """Let this process die before a change of a folder, counted from 0; without one, write down how many there were."""
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        found = changes_folder(event, arguments, str(folder))
        if found or (found is None and done):  # before the first, rmtree() works on folders of others
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            if last is None:
                told.write_text(str(done), encoding="utf-8")

    sys.addaudithook(hook)


@dataclass(frozen=True)
class Runs:
    """Runs of one configuration.

    Attributes:
        arguments: Of a new run, but for its name.
        engine: Arguments of a resumed one as well.
        out: Folder of all of them.
    """

    arguments: list[str]
    engine: list[str]
    out: Path

    def forked(self, arguments: list[str], prepare: Callable[[], None] = lambda: None) -> int:
        """Give arguments to the command in a copy of this process; returns its number."""
        child = os.fork()
        if child:
            return child
        code = 3
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 1)
            signal.alarm(PATIENCE_S)
            prepare()
            from fllm import cli

            sys.argv = ["fllm-run", *arguments]
            cli.run_main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)

    def new(self, name: str) -> list[str]:
        return [*self.arguments, *self.engine, "--out", str(self.out), "--name", name]

    def again(self, name: str) -> list[str]:
        return ["--resume", str(self.out / name), *self.engine]

    def finish(self, name: str) -> None:
        """Continue a run until it is done, or begin it anew where nothing of it was saved."""
        saved = (self.out / name / "result.json").exists()
        complete = saved and json.loads((self.out / name / "result.json").read_bytes())["status"] == "completed"
        code = exit_code(self.forked(self.again(name) if saved else self.new(name)))
        if code != (2 if complete else 0):
            raise SystemExit(f"{name} could not be continued: exit code {code}")

    def facts(self, name: str) -> dict[str, Any]:
        """Describe a run that is done."""
        folder = self.out / name
        result = json.loads((folder / "result.json").read_bytes())
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        same = ("rounds.csv", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
        return {
            "status": result["status"],
            "digest": result["rounds"][-1]["adapter_sha256"],
            "files": sorted(files),
            "sha256": {file: hashlib.sha256(files[file].read_bytes()).hexdigest() for file in same},
        }


def exit_code(child: int) -> int:
    """Wait for a process; minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Do what the settings say."""
    wanted = json.loads(sys.argv[1])
    import fllm.runs  # with everything that it imports

    if not wanted["pages"]:
        fllm.runs.render = lambda *_: None  # type: ignore[attr-defined, assignment]
    out = Path(wanted["out"]).resolve()
    engine = ["--workers", str(wanted["workers"])] if wanted["workers"] > 1 else []
    runs = Runs([f"--set={key}={value}" for key, value in wanted["settings"].items()], engine, out)
    if wanted["chain"]:
        print(json.dumps(chain(runs, wanted["chain"])), flush=True)
        return
    drawn, told = random.Random(wanted["seed"]), out / "changes"
    began = time.monotonic()
    whole = runs.forked(runs.new("whole"), lambda: count_changes(out / "whole", None, told))
    if exit_code(whole) != 0:
        raise SystemExit("the run that nobody kills failed")
    took_s, changes = time.monotonic() - began, int(told.read_text(encoding="utf-8"))
    print(json.dumps({"took_s": took_s, "changes": changes, **runs.facts("whole")}), flush=True)
    for change in sorted(drawn.sample(range(changes), min(wanted["changes"], changes))):
        killed_and_resumed(runs, f"change-{change}", change)
    landed = attempts = 0
    while landed < wanted["times"]:  # a moment that came after the end does not count
        attempts += 1
        landed += killed_and_resumed(runs, f"time-{attempts}", drawn.uniform(0, took_s))


def killed_and_resumed(runs: Runs, name: str, moment: float | int) -> bool:
    """Kill a run, see it done and print what came of it; say whether it was still there to be killed."""
    killed = kill(runs, name, moment)
    rounds = rounds_of(runs.out / name)
    runs.finish(name)
    print(json.dumps({"moment": moment, "killed": killed, "rounds": rounds, **runs.facts(name)}), flush=True)
    return killed


def chain(runs: Runs, changes: list[int]) -> dict[str, Any]:
    """Kill one run again and again, each time before a change of its folder, and see it done in the end."""
    rounds = []
    for number, change in enumerate(changes):
        arguments = runs.again("chain") if number else runs.new("chain")
        code = exit_code(runs.forked(arguments, lambda last=change: count_changes(runs.out / "chain", last, runs.out)))  # type: ignore[misc]
        if code != -signal.SIGKILL:
            raise SystemExit(f"the run ended with code {code} before change {change}")
        rounds.append(rounds_of(runs.out / "chain"))
    runs.finish("chain")
    return {"rounds": rounds, **runs.facts("chain")}


def kill(runs: Runs, name: str, moment: float | int) -> bool:
    """Begin a run and kill it; say whether it was still there to be killed."""
    if isinstance(moment, int):
        folder = runs.out / name
        return exit_code(runs.forked(runs.new(name), lambda: count_changes(folder, moment, folder))) == -signal.SIGKILL
    child = runs.forked(runs.new(name))
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return exit_code(child) == -signal.SIGKILL


def rounds_of(folder: Path) -> int:
    """Return how many rounds of a killed run are recorded, that before training included."""
    file = folder / "result.json"
    return len(json.loads(file.read_bytes())["rounds"]) if file.exists() else 0


if __name__ == "__main__":
    main()
