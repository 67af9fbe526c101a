"""What ``fllm federation init`` writes, and which settings are refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

import fllm.federation
from device_models import InputError
from device_models.strict_yaml import read_yaml
from fllm.deployment.folders import make_federation, write_connection
from fllm.deployment.settings import Federation, Site, check_settings, read_federation, read_site, split_address


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "made"
    make_federation(folder, 2, "fl.example.org:8443", tls=True)
    return folder


def test_folder_holds_what_each_party_needs(made: Path) -> None:
    ours = {str(file.relative_to(made).as_posix()) for file in made.rglob("*") if file.is_file()}
    site = {f"sites/site-{n}/{name}" for n in (0, 1) for name in ("site.yaml", "ca.crt", "node.key")}
    keys = {"ca.crt", "ca.key", "server.crt", "server.key", "nodes/site-0.pub", "nodes/site-1.pub"}
    assert ours == {"federation.yaml", "app/pyproject.toml", *keys, *site}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_private_keys_are_for_their_owner_alone(made: Path) -> None:
    private = list(made.rglob("*.key"))
    assert len(private) == 4
    for file in private:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_server_certificate_names_the_address_and_this_machine(made: Path) -> None:
    authority = x509.load_pem_x509_certificate((made / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((made / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_each_site_has_its_own_key_on_p384(made: Path) -> None:
    numbers = []
    for name in ("site-0", "site-1"):
        private = load_ssh_private_key((made / "sites" / name / "node.key").read_bytes(), None)
        public = load_ssh_public_key((made / "nodes" / f"{name}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        numbers.append(private.private_numbers().private_value)
    assert len(set(numbers)) == 2


def test_settings_are_read_back(made: Path) -> None:
    assert read_federation(made) == Federation(
        sites=2, address="fl.example.org:8443", tls=True, listen="0.0.0.0", control_port=8444
    )
    site = read_site(made / "sites" / "site-1" / "site.yaml")
    assert (site.partition_id, site.num_partitions, site.superlink) == (1, 2, "fl.example.org:8443")
    assert site.data_dir is site.model is site.device_model is None
    assert Path(site.state) == (made / "sites" / "site-1" / "state").resolve()


def test_every_setting_of_a_site_is_in_its_file(made: Path) -> None:
    assert set(read_yaml(made / "sites" / "site-0" / "site.yaml")) == set(Site.model_fields)


def test_application_names_objects_that_are_there_and_carries_no_code(made: Path) -> None:
    app = tomllib.loads((made / "app" / "pyproject.toml").read_text(encoding="utf-8"))
    components = app["tool"]["flwr"]["app"]["components"]
    assert set(components.values()) == {"fllm.federation.apps:server_app", "fllm.federation.apps:client_app"}
    assert (Path(fllm.federation.__file__).parent / "apps.py").is_file()
    assert [file.name for file in (made / "app").iterdir()] == ["pyproject.toml"]
    assert app["project"]["dependencies"] == []


def test_insecure_federation_has_no_keys_and_stays_on_this_machine(tmp_path: Path) -> None:
    federation = make_federation(tmp_path / "made", 3, "127.0.0.1:8000", tls=False)
    assert (federation.listen, federation.control_port) == ("127.0.0.1", 8000)
    assert not [*(tmp_path / "made").rglob("*.key"), *(tmp_path / "made").rglob("*.crt")]
    with pytest.raises(InputError, match="without TLS the address must be of this machine"):
        make_federation(tmp_path / "other", 3, "fl.example.org:8000", tls=False)
    assert not (tmp_path / "other").exists()


def test_folder_that_is_there_is_left_alone(made: Path) -> None:
    before = (made / "ca.key").read_bytes()
    with pytest.raises(InputError, match="is there already; name a new folder"):
        make_federation(made, 2, "127.0.0.1:8000", tls=True)
    assert (made / "ca.key").read_bytes() == before


@pytest.mark.parametrize("address", ["fl.example.org", ":8000", "host:0", "host:70000", "http://host:80", "a b:80"])
def test_address_of_another_form_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="--address: not an address"):
        make_federation(tmp_path / "made", 2, address, tls=True)
    assert not (tmp_path / "made").exists()


def test_addresses_of_all_forms_are_read() -> None:
    assert split_address("[::1]:8000") == ("::1", 8000)
    assert split_address("10.0.0.1:443") == ("10.0.0.1", 443)


SITE = {"partition_id": 0, "num_partitions": 2, "superlink": "127.0.0.1:8000", "tls": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition_id": 2}, "partition_id must be below num_partitions"),
        ({"superlink": "fl.example.org:8443"}, "without TLS the superlink must be on this machine"),
        ({"superlink": "nowhere"}, "site.yaml: superlink: not an address"),
        ({"datadir": "x"}, "site.yaml: datadir: unknown key; did you mean data_dir"),
        ({"tls": "yes"}, "site.yaml: tls: Input should be a valid boolean"),
    ],
)
def test_settings_of_a_site_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings(Site, SITE | changes, "site.yaml")


def test_control_port_differs_from_that_for_sites() -> None:
    tree = {"sites": 1, "address": "127.0.0.1:8000", "tls": True, "listen": "127.0.0.1", "control_port": 8000}
    with pytest.raises(InputError, match="control_port must differ"):
        check_settings(Federation, tree, "federation.yaml")


def test_file_without_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no settings"):
        read_federation(tmp_path)
    with pytest.raises(InputError, match="no such file; copy the site's folder"):
        read_site(tmp_path / "site.yaml")


def test_relative_paths_of_a_site_are_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chip.yaml").write_text("", encoding="utf-8")
    file = tmp_path / "site.yaml"
    text = "".join(f"{key}: {str(value).lower()}\n" for key, value in SITE.items())
    file.write_text(text + "data_dir: cases\nmodel: base\ndevice_model: chip.yaml\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path.parent)
    site = read_site(file)
    expected = [str(tmp_path.resolve() / name) for name in ("cases", "base", "chip.yaml")]
    assert [site.data_dir, site.model, site.device_model] == expected
    file.write_text(text + "device_model: gaincell_28nm\n", encoding="utf-8")
    assert read_site(file).device_model == "gaincell_28nm"


def test_connection_follows_a_folder_that_was_moved(tmp_path: Path) -> None:
    write_connection(tmp_path / "home", 8444, tmp_path / "ca.crt")
    link = tomllib.loads((tmp_path / "home" / "config.toml").read_text(encoding="utf-8"))["superlink"]
    assert link["federation"] == {"address": "127.0.0.1:8444", "root-certificates": str(tmp_path.resolve() / "ca.crt")}
    assert link["default"] == "federation"
    write_connection(tmp_path / "home", 8000, None)
    link = tomllib.loads((tmp_path / "home" / "config.toml").read_text(encoding="utf-8"))["superlink"]
    assert link["federation"] == {"address": "127.0.0.1:8000", "insecure": True}
    with pytest.raises(InputError, match="quotation mark"):
        write_connection(tmp_path / "home", 8000, tmp_path / "o'clock" / "ca.crt")


def test_starting_needs_no_torch() -> None:
    code = (
        "import sys; import fllm.deployment.servers, fllm.deployment.submitting, fllm.deployment.reporting;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
