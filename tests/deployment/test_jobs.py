"""What is submitted, what sites are told of it, and what a site makes of that: no path comes from the server."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from device_models import InputError
from fllm.config import RunConfig
from fllm.deployment.control import FlowerRun
from fllm.deployment.jobs import DEVICE_KEYS, PATH_KEYS, Job, check_deployable, read_job, site_run, told, write_job
from fllm.deployment.settings import Site
from fllm.deployment.submitting import new_job, number_of, resumed_job, submit

SITE = Site(partition_id=0, num_partitions=2, superlink="127.0.0.1:8000", tls=False, state="/site/state")
JOB = Job("study", RunConfig(num_clients=2), "0123456789abcdef", "fllm federation submit")
SECRET = "/srv/hospital/secret"


def test_job_is_read_back(tmp_path: Path) -> None:
    job = replace(JOB, resumed=True, from_round=2, config=RunConfig(num_clients=2, device={"readout.bits": 6}))
    write_job(tmp_path, job)
    assert read_job(tmp_path, "study") == job


@pytest.mark.parametrize("name", ["../study", "..", "", "a/b", "none"])
def test_name_that_is_no_job_is_refused(tmp_path: Path, name: str) -> None:
    write_job(tmp_path, JOB)
    with pytest.raises(InputError, match="no such job" if name == "none" else "no name of a job"):
        read_job(tmp_path, name)


def test_job_with_a_setting_of_another_version_is_refused(tmp_path: Path) -> None:
    write_job(tmp_path, JOB)
    file = tmp_path / "jobs" / "study.json"
    plain = json.loads(file.read_text(encoding="utf-8"))
    plain["config"]["colour"] = "blue"
    file.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(InputError, match="colour: unknown key"):
        read_job(tmp_path, "study")


def test_no_path_of_the_server_is_told() -> None:
    paths = {
        "data_dir": SECRET,
        "model": SECRET,
        "adapter": SECRET,
        "network": SECRET,
        "device_model": SECRET + ".yaml",
    }
    text = told(replace(JOB, config=RunConfig(num_clients=2, device={"readout.bits": 6}, **paths)))
    assert SECRET not in text
    assert not {*PATH_KEYS, *DEVICE_KEYS} & set(json.loads(text)["config"])
    assert json.loads(text)["own_data"] is True
    files = told(replace(JOB, config=RunConfig(num_clients=2, task="csv", data_files=(SECRET,))))
    assert SECRET not in files
    assert json.loads(files)["own_data"] is True


def test_every_key_that_holds_a_path_is_known() -> None:
    """A new key of a run that names a file must not travel; this list is what was looked at."""
    texts = {
        name for name, field in RunConfig.model_fields.items() if re.search(r"\b(str|Any)\b", str(field.annotation))
    }
    harmless = {
        "device_model", "device", "client_devices", "token_period", "text_column", "label_column", "client_column",
        "split_column", "fields", "field_tokens", "client_timeout",
    }  # fmt: skip
    assert texts - harmless - set(PATH_KEYS) == set()


def test_site_takes_its_part_of_the_synthetic_cohort() -> None:
    found = site_run(told(JOB), SITE)
    assert found.config == JOB.config
    assert found.own_cases is False
    assert found.kept == Path("/site/state/0123456789abcdef")


def test_settings_of_the_site_win() -> None:
    job = replace(JOB, config=RunConfig(num_clients=2, device={"readout.bits": 6}))
    own = SITE.model_copy(update={"data_dir": "/site/cases", "model": "/site/base", "device_model": "gaincell_igzo"})
    found = site_run(told(job), own)
    assert (found.config.data_dir, found.config.model) == ("/site/cases", "/site/base")
    assert (found.config.device_model, found.config.device) == ("gaincell_igzo", {})
    assert found.own_cases is True
    assert site_run(told(job), SITE).config.device == {"readout.bits": 6}


@pytest.mark.parametrize("key", PATH_KEYS)
def test_path_that_comes_from_the_server_is_refused(key: str) -> None:
    plain = json.loads(told(JOB))
    plain["config"][key] = [SECRET] if key == "data_files" else SECRET
    with pytest.raises(InputError, match=f"names paths: {key}; expected paths in site.yaml alone"):
        site_run(json.dumps(plain), SITE)


@pytest.mark.parametrize("device", [SECRET + ".yaml", "gaincell_28nm.yaml", None])
def test_device_of_the_server_is_a_name_or_the_site_names_one(device: str | None) -> None:
    plain = json.loads(told(JOB))
    plain["config"]["device_model"] = device
    with pytest.raises(InputError, match=r"its device is a file of the server; set device_model in site\.yaml"):
        site_run(json.dumps(plain), SITE)


def test_devices_are_dealt_by_name_alone() -> None:
    config = RunConfig(num_clients=2, client_devices=("gaincell_28nm", "gaincell_igzo"))
    assert site_run(told(replace(JOB, config=config)), SITE).config == config
    mixed = config.model_copy(update={"client_devices": ("gaincell_28nm", SECRET + ".yaml")})
    assert SECRET not in told(replace(JOB, config=mixed))
    plain = json.loads(told(JOB))
    plain["config"]["client_devices"] = [SECRET]
    with pytest.raises(InputError, match="its device is a file of the server"):
        site_run(json.dumps(plain), SITE)
    own = SITE.model_copy(update={"device_model": "gaincell_igzo"})
    found = site_run(told(replace(JOB, config=mixed)), own).config
    assert (found.device_model, found.client_devices) == ("gaincell_igzo", ())


@pytest.mark.parametrize(("secure", "taken"), [({}, False), ({"threshold": 3}, False), ({"threshold": 4}, True)])
def test_site_can_insist_on_secure_aggregation(secure: dict[str, int], taken: bool) -> None:
    settings = secure and {"aggregation": True, **secure}
    text = told(replace(JOB, config=RunConfig(num_clients=5, secure=settings)))
    site_run(text, SITE)
    insisting = SITE.model_copy(update={"secure_threshold": 4})
    if taken:
        site_run(text, insisting)
        return
    with pytest.raises(InputError, match="has no secure aggregation of the threshold that this site asks for"):
        site_run(text, insisting)


@pytest.mark.parametrize("token", ["../../etc", "0123456789ABCDEF", "0" * 15, "0" * 17])
def test_token_cannot_leave_the_folder(token: str) -> None:
    plain = json.loads(told(JOB)) | {"token": token}
    with pytest.raises(InputError, match="a token of another form"):
        site_run(json.dumps(plain), SITE)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"token": "0", "own_data": true, "config": 3}'])
def test_message_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="run of the server: cannot be read"):
        site_run(text, SITE)


def test_site_without_cases_does_not_mix_made_up_ones_into_a_run_on_real_ones() -> None:
    text = told(replace(JOB, config=RunConfig(num_clients=2, data_dir=SECRET)))
    with pytest.raises(InputError, match=r"reads cases, and the site names none; set data_dir in site\.yaml"):
        site_run(text, SITE)


def test_run_that_sites_could_not_follow_is_refused() -> None:
    with pytest.raises(InputError, match="nothing is trained"):
        check_deployable(RunConfig(evaluate_only=True, adapter="a"))
    for changes in ({"lora": {"freeze_a": True}}, {"strategy": {"factors": "share_a"}}):
        with pytest.raises(InputError, match="sites do not have the adapter"):
            check_deployable(RunConfig(adapter="a", **changes))
        check_deployable(RunConfig(**changes))


class Refusing:
    """A SuperLink on which run 7 goes on."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.started: list[tuple[str, str]] = []

    def runs(self, number: str | None = None) -> list[FlowerRun]:
        return [FlowerRun("7", self.status, "", 0.0, 0, 0)]

    def start_run(self, app: Path, job: str, federation: str = "") -> str:
        self.started.append((app.name, job))
        return "7"


def test_run_is_submitted_once_and_resumed_when_it_has_ended(tmp_path: Path) -> None:
    control = Refusing("running")
    job = new_job(tmp_path, JOB.config, "study", "command")
    submitted = submit(tmp_path, job, control)  # type: ignore[arg-type]
    assert control.started == [("app", "study")]
    assert submitted.record_file == tmp_path / "runs" / "study" / "result.json"
    assert number_of(tmp_path, "study") == "7"
    with pytest.raises(InputError, match="a run is there already"):
        new_job(tmp_path, JOB.config, "study", "command")
    again = resumed_job(tmp_path, "study", None)
    assert again == replace(job, resumed=True)  # its token, too
    with pytest.raises(InputError, match="study: is running"):
        submit(tmp_path, again, control)  # type: ignore[arg-type]
    submit(tmp_path, again, Refusing("finished:failed"))  # type: ignore[arg-type]
    assert read_job(tmp_path, "study").resumed
    with pytest.raises(InputError, match="no such job"):
        resumed_job(tmp_path, "other", None)
