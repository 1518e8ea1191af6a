"""Certificates for tests, made with the openssl command."""

import ssl
import subprocess
from pathlib import Path


def certificate(directory: Path, name: str, issuer: Path | None = None, days: int = 2) -> Path:
    """Write a host's certificate and private key to one PEM file, and return the file.

    The certificate is signed by ``issuer``, or self-signed, and can itself be an issuer.
    """
    file, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", str(days), "-subj", f"/CN={name}", "-keyout", str(key)]
    command += ["-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-out", str(file)]
    if issuer is not None:
        command += ["-CA", str(issuer), "-CAkey", str(issuer.with_suffix(".key"))]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return file


def end(file: Path) -> float:
    """Return when a certificate expires, as Unix time."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(file)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return ssl.cert_time_to_seconds(run.stdout.strip().removeprefix("notAfter="))
