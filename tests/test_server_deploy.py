"""The Kubernetes manifest and the systemd unit in docs/: valid, and what they say is so of the server."""

from __future__ import annotations

import argparse
import configparser
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gemma_tpu.cli.parser import make_parser
from gemma_tpu.server.settings import KEYS_VARIABLE

DOCS = Path(__file__).parent.parent / "docs"
MANIFEST, UNIT = DOCS / "server.yaml", DOCS / "server.service"


def manifest() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def parsed(arguments: list[str]) -> argparse.Namespace:
    return make_parser(arguments).parse_args(arguments)


def test_the_manifest_is_valid() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    documents = manifest()
    assert [document["kind"] for document in documents] == ["Deployment", "Service"]
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    del documents[0]["spec"]["selector"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents[0], "1.31", strict=True)


def test_what_the_manifest_says_of_the_server() -> None:
    deployment, service = manifest()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["gemma-tpu"]
    arguments = parsed(container["args"])
    (port,) = container["ports"]
    assert (arguments.host, arguments.port) == ("0.0.0.0", port["containerPort"])
    assert pod["terminationGracePeriodSeconds"] > arguments.drain_timeout
    assert KEYS_VARIABLE in [variable["name"] for variable in container["env"]]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert arguments.checkpoint.startswith(mounts["checkpoints"])
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/health", "/health", "/ready"]
    assert {probe["port"] for probe in probes} == {port["name"]} == {service["spec"]["ports"][0]["targetPort"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read(UNIT)
    return parser["Service"]


def test_the_unit_is_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    program = unit()["ExecStart"].split()[0]
    here = tmp_path / "gemma-tpu.service"
    for broken in (False, True):
        text = UNIT.read_text().replace(program, "/bin/true")  # which must exist
        here.write_text(text.replace("Type=exec", "Type=sometimes") if broken else text)
        found = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True)
        said = [line for line in found.stderr.splitlines() if here.name in line]
        assert bool(said) == broken, found.stderr


def test_what_the_unit_says_of_the_server() -> None:
    service = unit()
    _, *words = service["ExecStart"].split()
    arguments = parsed(words)
    assert float(service["TimeoutStopSec"]) > arguments.drain_timeout
    credential, _, _ = service["LoadCredential"].partition(":")
    assert arguments.api_keys == f"${{CREDENTIALS_DIRECTORY}}/{credential}"
    assert service["Environment"].endswith(f"=/var/cache/{service['CacheDirectory']}")
