"""Certificates and keys of a federation: its authority, its server, and the sites' keys that sign what they send."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 5 * 365


@dataclass(frozen=True)
class Certified:
    """A private key, and the certificate of its public half."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def write(self, certificate_file: Path, key_file: Path) -> None:
        """Write both as PEM, the key for the owner's eyes only."""
        certificate_file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        write_private(key_file, _pem(self.key, serialization.PrivateFormat.PKCS8))


def make_authority() -> Certified:
    """Make the authority that a federation's sites trust, and no other."""
    key = _new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fllm federation authority")])
    builder = _builder(name, name, key.public_key(), key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Certified(key, builder.sign(key, hashes.SHA384()))


def make_server(authority: Certified, hosts: list[str]) -> Certified:
    """Make the server's certificate.

    Args:
        authority: Signs it.
        hosts: Names and addresses that clients may dial it by.
    """
    key = _new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fllm federation server")])
    builder = _builder(name, authority.certificate.subject, key.public_key(), authority.key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    builder = builder.add_extension(names, critical=False)
    return Certified(key, builder.sign(authority.key, hashes.SHA384()))


def write_node_key(private_file: Path, public_file: Path) -> None:
    """Write a new NIST P-384 key pair in OpenSSH's form, as Flower's SuperNodes sign with."""
    key = _new_key()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public_file.write_bytes(public + b"\n")
    write_private(private_file, _pem(key, serialization.PrivateFormat.OpenSSH))


def write_private(file: Path, content: bytes) -> None:
    """Write a new file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)


def end_of(certificate_file: Path) -> datetime:
    """Return when a certificate ends."""
    return x509.load_pem_x509_certificate(certificate_file.read_bytes()).not_valid_after_utc


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _pem(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """Return what both kinds have; begins a day ago, as clocks differ."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer, subject, public, x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=VALID_DAYS)
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer)
    return builder.add_extension(signed_by, critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
