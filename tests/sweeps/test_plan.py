"""Which points a sweep has: keys found, the base device among them, equal ones seen as equal, mistakes refused."""

from __future__ import annotations

import shutil
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fllm.sweeps.plan
from device_models import InputError, load_device
from device_models.loading import key_units, preset_folder, preset_names
from fllm.config import SECTIONS, RunConfig, load_config
from fllm.model.identity import AdapterIdentity, write_identity
from fllm.sections import CueSettings, LoraSettings, PrivacySettings, SecureSettings, StrategySettings
from fllm.sweeps.design import Vary
from fllm.sweeps.plan import MANY_POINTS, ON_THE_DEVICE, Key, Plan, base_values, with_settings
from tests.sweeps.small import SMALLEST, make
from tests.sweeps.small import settings as settings_of

# Keys.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("readout.bitz=3", "--vary readout.bitz: unknown key; expected a key of the device or of the run; "
                           "did you mean readout.bits"),
        ("bits=3", "did you mean readout.bits or readout_qk.bits?"),
        ("tau=1 ms", "did you mean drift.tau or retention.tau?"),
        ("lora.rank=4", "--vary lora.rank: unknown key"),
        ("nothing like it=4", "--vary nothing like it: unknown key"),
        ("name=4", "unknown key"),
        ("provenance=4", "unknown key"),
        ("seed=1,2", "--vary seed: cannot be varied; repeat each point with --seeds"),
        ("dies=1,2", "--vary dies: cannot be varied; repeat each point with --dies"),
        ("threads=1,2", "--vary threads: cannot be varied; each point runs on one thread"),
        ("evaluate_only=true", "--vary evaluate_only: cannot be varied; use --mode evaluate"),
        ("device={}", "--vary device: cannot be varied; name a key of the device, such as retention.tau"),
        ("lora={}", "unknown key"),
        ("cues={}", "unknown key"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["evaluate", "train"])
def test_key_that_cannot_be_varied_is_refused(text: str, message: str, mode: str) -> None:
    with pytest.raises(InputError) as error:
        make(text, mode=mode)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "key",
    sorted(
        {*RunConfig.model_fields, "lora.r", "cues.mask", "strategy.kind"}
        - {*SECTIONS, "device", "dies", "seed", "threads", "evaluate_only"}
    ),
)
def test_keys_of_training_belong_to_mode_train(key: str) -> None:
    value = {"device_model": "ideal", "token_period": "1 us", "adaptation": "two_step"}.get(key, "3")
    if key in ON_THE_DEVICE:
        assert make(f"{key}={value}").keys[0].scope == "run"
        return
    with pytest.raises(InputError, match=f"--vary {key}: decides how the adapter is trained, .*use --mode train"):
        make(f"{key}={value}")


def test_key_of_training_is_varied_in_mode_train() -> None:
    plan = make("lora.r=4,8", "learning_rate=1e-3,6e-3", mode="train")
    assert [plan.config_of(point, 5).lora.r for point in plan.points] == [4, 4, 8, 8]
    assert [plan.config_of(point, 5).learning_rate for point in plan.points] == [1e-3, 6e-3] * 2
    assert {plan.config_of(point, 5).seed for point in plan.points} == {5}
    assert [point.base for point in plan.points] == [False, False, False, True]


@pytest.mark.parametrize("texts", [("readout.bits=3", "readout.bits=4"), ("readout.bits=3", "device.readout.bits=4")])
def test_key_is_varied_once(texts: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=r"a key is varied twice; received 'readout\.bits, readout\.bits'"):
        make(*texts)


def test_unit_of_a_key_ends_its_column() -> None:
    plan = make("retention.tau=1 ms", "readout.bits=3", "device_model=gaincell_igzo", design="list")
    assert [(key.scope, key.unit, key.column) for key in plan.keys] == [
        ("device", "s", "retention.tau_s"),
        ("device", None, "readout.bits"),
        ("run", None, "device_model"),
    ]


@pytest.mark.parametrize("key", key_units())
def test_column_of_a_device_key_is_its_own(key: str) -> None:
    """A column of a key must not fall on one that every table has."""
    from fllm.sweeps.table import columns_of

    unit = key_units()[key]
    columns = columns_of([key if unit is None else f"{key}_{unit}"])
    assert len(set(columns)) == len(columns)


def test_column_of_a_run_key_is_its_own() -> None:
    from fllm.sweeps.table import columns_of

    for key, value in {"token_period": "1 us", "adaptation": "two_step", "device_model": "ideal"}.items():
        columns = columns_of([made.column for made in make(f"{key}={value}").keys])
        assert len(set(columns)) == len(columns), key


def test_nothing_to_vary_is_refused() -> None:
    with pytest.raises(InputError, match="zero points: nothing is varied"):
        make()


@pytest.mark.parametrize("options", [{"dies": 0}, {"seeds": []}])
def test_no_replicates_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--dies and --seeds: out of range"):
        make("readout.bits=3", **options)


# The base device.


@pytest.mark.parametrize("written", ["5 ms", "5000 us", "0.005 s", "5e-3 s", "5.0 ms"])
def test_base_device_is_found_by_value(written: str) -> None:
    plan = make(f"retention.tau=1 ms,{written},9 ms")
    assert [point.base for point in plan.points] == [False, True, False]
    assert plan.points[1].settings == {"retention.tau": written}
    assert base_values(plan) == {"retention.tau": ("5 ms", 0.005)}


def test_base_device_is_added_where_the_design_leaves_it_out() -> None:
    plan = make("retention.tau=1 ms,9 ms", "readout.bits=3,5")
    assert [point.added for point in plan.points] == [False] * 4 + [True]
    assert [point.base for point in plan.points] == [False] * 4 + [True]
    assert plan.points[4].settings == {"retention.tau": "5 ms", "readout.bits": 5}
    assert plan.points[4].values == {"retention.tau": 0.005, "readout.bits": 5}


def test_override_that_is_what_the_file_says_changes_nothing() -> None:
    config = RunConfig(**SMALLEST, device={"retention.tau": "5 ms"})
    assert [point.base for point in make("retention.tau=5000 us,1 ms", config=config).points] == [True, False]


def test_override_is_part_of_the_base() -> None:
    config = RunConfig(**SMALLEST, device={"retention.tau": "1 ms", "window.tokens": 64})
    plan = make("retention.tau=1000 us,5 ms", config=config)
    assert [point.base for point in plan.points] == [True, False]
    assert base_values(plan) == {"retention.tau": ("1 ms", 0.001)}
    assert plan.config_of(plan.points[1], 0).device == {"retention.tau": "5 ms", "window.tokens": 64}


def test_key_that_the_base_device_does_not_set_has_no_base_value() -> None:
    plan = make("retention.beta=0.5,0.7", config=RunConfig(**SMALLEST, device={"retention.kind": "stretched",
                                                                                "retention.beta": 0.5}))  # fmt: skip
    assert base_values(plan) == {"retention.beta": (0.5, 0.5)}
    plan = make("write.capacitance=1 fF,null")
    device = load_device("gaincell_28nm")
    assert base_values(plan)["write.capacitance"][1] == device.write.capacitance


@pytest.mark.parametrize("device_model", preset_names())
def test_base_values_are_written_as_a_device_file_would(device_model: str) -> None:
    """Also those that no file states: the base device is added to a design by its values."""
    config = RunConfig(**SMALLEST, device_model=device_model)
    device, wrong = load_device(device_model), []
    for name, unit in key_units().items():
        key = Key(name, "device", unit, Vary(name, ""))
        plan = Plan(config, (key,), "list", None, "evaluate", 1, (0,))
        written, si = base_values(plan)[name]
        if written is None:
            continue
        again = attrgetter(name)(load_device(device_model, {name: written}))
        if again != attrgetter(name)(device) or key.si(written) != si:
            wrong.append((name, written, si, again))
    assert wrong == []


@pytest.mark.parametrize("text", ["drift.stress_time=1 s,2 s", "cell.coefficients=[1 uA/V],[2 uA/V]"])
def test_base_point_that_is_added_is_a_device(text: str) -> None:
    config = RunConfig(**SMALLEST, device_model="ideal" if text.startswith("cell") else "gaincell_28nm")
    plan = make(text, config=config)
    assert plan.points[-1].added
    of = plan.config_of(plan.points[-1], 0)
    assert plan.points[-1].base
    assert load_device(of.device_model, of.device).cell == load_device(config.device_model).cell


def test_null_is_a_value_that_a_base_may_have() -> None:
    config = RunConfig(**SMALLEST, device={"storage.levels": None})
    plan = make("storage.levels=null,16", config=config)
    assert [point.base for point in plan.points] == [True, False]
    assert not any(point.added for point in plan.points)


def test_run_keys_have_a_base_too() -> None:
    plan = make("token_period=1 us,10000 ns,auto", "adaptation=none")
    assert [point.base for point in plan.points] == [False, True, False]
    assert [point.values["token_period"] for point in plan.points] == [1e-6, 1e-5, "auto"]


# Equal points.


def same(*varied: str, **options: Any) -> list[int | None]:
    return [point.same_as for point in make(*varied, **options).points if not point.added]


@pytest.mark.parametrize(
    ("varied", "expected"),
    [
        (["retention.tau=1 ms,1000 us,2 ms,1 ms"], [None, 0, None, 0]),
        (["retention.tau=5 ms,5000 us"], [None, 0]),
        (["variability.gain_sigma=0.1,0.10,1e-1"], [None, 0, 0]),
        (["variability.gain_sigma=1,1.0"], [None, 0]),
        (["token_period=1 us,1000 ns"], [None, 0]),
        (["readout.bits=4,3,4"], [None, None, 0]),
        (["device_model=ideal,gaincell_igzo,ideal"], [None, None, 0]),
    ],
)
def test_equal_points_are_seen(varied: list[str], expected: list[int | None]) -> None:
    assert same(*varied) == expected


def test_points_that_differ_are_told_apart() -> None:
    """True is no 1, a level that is not set is no 0, and words are no numbers."""
    points = make("readout.bits=3:8", "retention.tau=log:1 ms:2 ms:5", "write.ktc=true,false",
                  config=RunConfig(**SMALLEST, device={"write.capacitance": "1 fF"})).points  # fmt: skip
    assert len({point.sha256 for point in points}) == len(points)
    assert {point.same_as for point in points} == {None}


def test_device_by_name_and_by_path_is_one_point(tmp_path: Path) -> None:
    shipped = preset_folder() / "gaincell_igzo.yaml"
    plan = make(f"device_model=gaincell_igzo,{shipped},gaincell_28nm,{preset_folder() / 'gaincell_28nm.yaml'}")
    assert [point.same_as for point in plan.points] == [None, 0, None, 2]
    assert [point.base for point in plan.points] == [False, False, True, False]


def test_device_file_that_differs_in_one_byte_is_another_point(tmp_path: Path) -> None:
    copy = shutil.copy(preset_folder() / "gaincell_igzo.yaml", tmp_path / "other name.yaml")
    assert same(f"device_model=gaincell_igzo,{copy}") == [None, 0]
    with Path(copy).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert same(f"device_model=gaincell_igzo,{copy}") == [None, None]


def test_setting_that_another_device_has_anyway_changes_nothing() -> None:
    igzo = load_device("gaincell_igzo").retention.tau
    plan = make("device_model=gaincell_28nm,gaincell_igzo", f"retention.tau=5 ms,{igzo} s")
    again = make("device_model=gaincell_igzo", f"retention.tau={igzo} s")
    alone = make("device_model=gaincell_igzo")
    assert plan.points[3].sha256 == again.points[0].sha256 == alone.points[0].sha256
    assert len({point.sha256 for point in plan.points}) == 4


def test_digests_do_not_depend_on_the_design() -> None:
    grid = make("readout.bits=3:5", "retention.tau=1 ms,5 ms")
    other = make("retention.tau=5 ms,2 ms", "readout.bits=3,4", design="list")
    of = {(p.values["readout.bits"], p.values["retention.tau"]): p.sha256 for p in grid.points}
    assert other.points[0].sha256 == of[3, 0.005]
    assert other.points[1].sha256 not in of.values()


@settings(max_examples=15, deadline=None)
@given(numbers=st.lists(st.integers(1, 12), min_size=1, max_size=6), factor=st.sampled_from([1, 1000]))
def test_same_as_names_the_first_of_equal_points(numbers: list[int], factor: int) -> None:
    unit = {1: "ms", 1000: "us"}
    texts = [f"{n * (f := factor if i % 2 else 1)} {unit[f]}" for i, n in enumerate(numbers)]  # in turns 3 ms, 3000 us
    points = [point for point in make(f"retention.tau={','.join(texts)}").points if not point.added]
    for number, point in enumerate(points):
        first = numbers.index(numbers[number])
        assert point.same_as == (None if first == number else first)
        assert point.sha256 == points[first].sha256


# Values that cannot be.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("readout.bits=3,99", "readout.bits"),
        ("readout.bits=3,five", "readout.bits"),
        ("readout.bits=3,4.5", "readout.bits"),
        ("readout.bits=3,true", "readout.bits"),
        ("readout.bits=.nan,3", "readout.bits"),
        ("variability.gain_sigma=0.1,.nan", "variability.gain_sigma"),
        ("variability.gain_sigma=0.1,.inf", "variability.gain_sigma"),
        ("retention.tau=1 ms,5 mV", "retention.tau"),
        ("retention.tau=1 ms,5", "retention.tau"),
        ("retention.tau=0 s:1 ms:1 ms", "retention.tau"),
        ("retention.kind=exponential,logarithmic", "retention.kind"),
        ("device_model=ideal,absent.yaml", "absent.yaml: no such device file"),
        ("device_model=ideal,gaincell_28mm", "did you mean gaincell_28nm"),
        ("device_model=3", "device_model"),
        ("token_period=1 us,0 us", "token_period"),
        ("token_period=1 us,5 V", "token_period"),
        ("adaptation=none,three_step", "adaptation"),
        ("write.ktc=true,2", "write.ktc"),
    ],
)
def test_value_that_no_point_can_have_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        make("window.tokens=16,32,64", text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["retention.tau=-1 ms:5 ms", "readout.bits=0:8", "readout.bits=3:64"])
@pytest.mark.parametrize("design", ["random", "sobol"])
def test_end_of_a_span_that_no_point_can_have_is_refused(text: str, design: str) -> None:
    with pytest.raises(InputError, match=text.partition("=")[0]):
        make(text, design=design, points=4)


def test_combination_that_fails_alone_is_kept_for_the_table() -> None:
    plan = make("storage.v_zero=0.1 V,0.8 V", "storage.v_max=0.5 V,0.9 V")
    assert len(settings_of(plan)) == 4
    with pytest.raises(InputError, match="voltages out of order"):
        config = plan.config_of(plan.points[2], 0)
        load_device(config.device_model, config.device)


@pytest.mark.parametrize("highest", [["0.9 V"] + ["0.5 V"] * 20, ["0.5 V"] * 20 + ["0.9 V"]])
def test_value_that_few_others_allow_is_no_mistake(highest: list[str]) -> None:
    """A level of 0.8 V is possible with the highest of all levels alone, at either end of a long list."""
    plan = make(f"storage.v_max={','.join(highest)}", "storage.v_zero=0.1 V,0.8 V")
    assert len(settings_of(plan)) == 42


# Many points.


def test_very_many_points_want_to_be_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"1,000,000,000 points; expected at most 10,000; add --yes"):
        make("window.tokens=1:1000", "readout.bits=1:1000", "variability.gain_sigma=0:0.999:0.001")
    monkeypatch.setattr(fllm.sweeps.plan, "MANY_POINTS", 5)
    with pytest.raises(InputError, match="6 points"):
        make("readout.bits=3:8")
    assert len(make("readout.bits=3:8", confirmed=True).points) == 6
    assert len(make("readout.bits=3:7").points) == 5
    assert MANY_POINTS == 10_000


# Settings by dotted key.

OTHER: dict[str, Any] = {
    "device_model": "ideal", "device": {"readout.bits": 3, "retention.tau": "1 ms"}, "token_period": "auto",
    "model": "folder", "adaptation": "two_step", "data_dir": "data", "fields": ("history", "labs"), "num_cases": 41,
    "cues": CueSettings(mask="keep", studies="hidden", mentions="neutral", panel="full"), "split": "kfold",
    "validation_fraction": 0.1, "num_folds": 3, "fold": 1, "field_tokens": {"labs": 20}, "partition": "iid",
    "dirichlet_alpha": 0.5, "lora_baselines": ("local",), "centralised_steps": 7, "calibration": "content_free",
    "generation": True, "client_devices": ("ideal",), "chip_table": True,
    "num_hospitals": 3, "label_concentration": 2.5, "test_fraction": 0.3, "max_tokens": 100, "num_clients": 3,
    "num_rounds": 2, "batch_size": 3, "local_steps": 5, "learning_rate": 1e-4, "note_loss": 0.5,
    "lora": LoraSettings(
        r=2, alpha=3.0, dropout=0.1, targets=("q_proj",), rslora=True, freeze_a=True, train_scalers=True
    ),
    "strategy": StrategySettings(kind="fedmedian"),
    "optimiser": "sgd", "training_chips": "new", "network": "5g", "dies": 3, "seed": 9, "threads": 1,
    "clients_per_round": 2, "min_clients": 2, "client_timeout": "1 min", "wire": "int8", "evaluate_every": 2,
}  # fmt: skip
"""Of every key of the diagnosis another value than the default."""
TABLE: dict[str, Any] = {
    "task": "csv", "data_files": ("table.csv",), "text_column": "note", "label_column": "class",
    "client_column": "site", "split_column": "part", "privacy": PrivacySettings(kind="record"),
    "secure": SecureSettings(aggregation=True),
}  # fmt: skip
"""The same of the keys that only a table has, or that do not go with those."""


def test_every_key_has_another_value() -> None:
    default = RunConfig()
    assert set(OTHER) | set(TABLE) == set(RunConfig.model_fields) - {"adapter", "evaluate_only"}
    own, others = default.lora.model_dump(), OTHER["lora"].model_dump()
    assert [key for key in own if own[key] == others[key]] == []
    for others in (OTHER, TABLE):
        config = RunConfig(**others)
        assert [key for key in others if getattr(config, key) == getattr(default, key)] == []


def test_nothing_is_lost_where_nothing_is_set() -> None:
    assert with_settings(RunConfig(**OTHER), {}) == RunConfig(**OTHER)
    assert with_settings(RunConfig(**TABLE), {}) == RunConfig(**TABLE)
    assert with_settings(RunConfig(), {}) == RunConfig()


def test_adapter_of_the_base_run_is_kept_with_its_settings(tmp_path: Path) -> None:
    """Told once, they are the adapter's; varied, they contradict it."""
    lora = LoraSettings(r=2, freeze_a=True)
    device = {"name": "d", "file_sha256": "1", "overrides": {}, "token_period": "auto"}
    write_identity(tmp_path, AdapterIdentity(base={"name": "b", "sha256": "0"}, device=device, lora=lora))
    config = load_config(None, {"adapter": str(tmp_path)})
    assert config.lora == lora
    assert with_settings(config, {"seed": 3}) == load_config(None, {"adapter": str(tmp_path), "seed": 3})
    with pytest.raises(InputError, match=r"lora\.r: contradicts the adapter"):
        make("lora.r=2,4", config=config, mode="train")
    assert len(make("learning_rate=1e-3", config=config, mode="train").points) == 2


def test_run_that_only_evaluates_is_no_base_of_a_sweep() -> None:
    with pytest.raises(InputError, match="evaluate_only: the base run trains nothing"):
        make("readout.bits=3", config=RunConfig(**SMALLEST, adapter="a", evaluate_only=True))


DOTTED = {
    **{key: value for key, value in OTHER.items() if key not in (*SECTIONS, "device")},
    **{f"cues.{key}": value for key, value in OTHER["cues"].model_dump().items()},
    **{f"lora.{key}": value for key, value in OTHER["lora"].model_dump().items()},
    "strategy.kind": "fedmedian",
    **{f"device.{key}": value for key, value in OTHER["device"].items()},
}


@pytest.mark.parametrize("key", DOTTED)
def test_one_key_is_set_and_the_others_stay(key: str) -> None:
    value = list(DOTTED[key]) if isinstance(DOTTED[key], tuple) else DOTTED[key]
    changed = with_settings(RunConfig(), {key: value})
    assert changed == load_config(None, {key: value})
    assert changed != RunConfig()
    assert with_settings(RunConfig(**OTHER), {key: value}) == RunConfig(**OTHER)
    one_by_one = RunConfig()
    for name, each in DOTTED.items():
        one_by_one = with_settings(one_by_one, {name: list(each) if name == "fields" else each})
    assert one_by_one == RunConfig(**OTHER)


def test_configuration_of_a_point_is_one_die_on_one_thread() -> None:
    plan = make("readout.bits=3", "token_period=1 us", config=RunConfig(**SMALLEST | {"threads": 2, "dies": 3}))
    config = plan.config_of(plan.points[0], 7)
    assert (config.dies, config.threads, config.seed) == (1, 1, 7)
    assert (config.device, config.token_period) == ({"readout.bits": 3}, "1 us")
