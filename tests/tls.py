"""Certificates for tests, made by the openssl that every system has."""

import subprocess
from pathlib import Path


def certificate(directory: Path, name: str, issuer: Path | None = None) -> Path:
    """A file with the certificate of a host and its private key, both PEM; its own issuer or not.

    It is good as a certificate authority too.
    """
    file, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key)]
    command += ["-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-out", str(file)]
    if issuer is not None:
        command += ["-CA", str(issuer), "-CAkey", str(issuer.with_suffix(".key"))]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return file
