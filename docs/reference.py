"""The pages of the reference, each written from the code that it describes."""

import contextlib
import inspect
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from prometheus_client.metrics import MetricWrapperBase
from samclip import cli

from docs import contract, messages
from services.gateway import openapi
from services.observability import metrics
from services.request import status


def pages() -> dict[str, str]:
    """Return the Markdown of each page by its name."""
    return {
        "cli": command_line(),
        # Inspected, because the blocking methods are made from the asynchronous ones.
        "client": "# Python client\n\n`import samclip`\n\n::: samclip\n"
        "    options:\n      force_inspection: true\n      inherited_members: true\n",
        "library": "# Python library\n\n`import samclip_core`\n\n::: samclip_core\n",
        "proto": contract.page(),
        "rest": rest(),
        "metrics": metric_names(),
        "errors": messages.page(),
    }


def command_line() -> str:
    """Return the help of every command."""
    sections = ["# Command line\n\nThe help of every command; [examples](../docs/cli.md)."]
    waiting: list[list[str]] = [[]]
    while waiting:
        words = waiting.pop(0)
        text = _help(words)
        sections.append(f"## {' '.join(['samclip', *words])}\n\n```text\n{text}\n```")
        # argparse indents the names of commands by four spaces, and nothing else.
        waiting += [[*words, name] for name in re.findall(r"^ {4}([a-z-]+)(?= {2}|$)", text, re.M)]
    return "\n\n".join(sections) + "\n"


def _help(words: list[str]) -> str:
    plain = {"COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"}
    output = io.StringIO()
    environment, stdout = mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(output)
    with environment, stdout, contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return output.getvalue().strip().replace(str(Path.home()), "~")


def metric_names() -> str:
    """Return every metric with its kind and labels."""
    declared = [made for made in vars(metrics).values() if isinstance(made, MetricWrapperBase)]
    rows = [
        [
            f"`{_exported(family.name, family.type)}`",
            family.type,
            _labels(made._labelnames),
            family.documentation,
        ]
        for made in declared
        for family in made.describe()
    ]
    at_a_scrape = (metrics.ready({}), ["application"]), (metrics.certificate(0), [])
    for made, labels in at_a_scrape:
        rows.append([f"`{made.name}`", made.type, _labels(labels), made.documentation])
    return (
        "# Metrics\n\nWhat `GET /metrics` reports; [Operations](../docs/operations.md) says how"
        " to use it.\nA histogram `X` is exported as `X_bucket`, `X_sum` and `X_count`.\n\n"
        + contract.table(["metric", "kind", "labels", "meaning"], sorted(rows))
        + "\n"
    )


def _exported(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def _labels(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def rest() -> str:
    """Return every route of the OpenAPI document, and the statuses of errors."""
    document = openapi.document()
    schemas = document["components"]["schemas"]
    sections = [
        "# REST\n\nThe routes of `GET /openapi.json`. The messages are those of the"
        " [gRPC contract](proto.md) in JSON; [API](../docs/api.md) explains them."
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            sections.append(f"## {method.upper()} {path}\n\n{operation['summary']}")
            if "requestBody" in operation:
                sections.append(_bodies(operation, schemas))
    rows = [
        [f"`{kind.__name__}`", str(one.http), one.code.name, inspect.getdoc(kind) or ""]
        for kind, one in status.TABLE.items()
    ]
    header = ["error", "HTTP", "gRPC", "meaning"]
    sections.append(f"## Errors\n\n{contract.table(header, rows)}")
    return "\n\n".join(sections) + "\n"


def _bodies(operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    content = operation["requestBody"]["content"]["application/json"]
    replies = operation["responses"]["200"]["content"]
    named = content.get("examples", {operation["operationId"]: {"value": content.get("example")}})
    parts = [f"**Body** {_link(content['schema'])}, for example:"]
    parts += [f"```json\n{_short(one['value'])}\n```" for one in named.values()]
    parts += [f"**Reply** {_link(reply['schema'])} (`{kind}`)" for kind, reply in replies.items()]
    return "\n\n".join(parts)


def _link(schema: dict[str, Any]) -> str:
    """Return links to the messages of a schema on the page of the contract."""
    names = dict.fromkeys(re.findall(r"#/components/schemas/(\w+)", json.dumps(schema)))
    return " or ".join(f"[`{name}`](proto.md#{name.lower()})" for name in names) or "a picture"


def _short(value: Any) -> str:
    """Return an example as JSON: short lists in one line, images in base64 cut off."""
    text = re.sub(
        r'"([A-Za-z0-9+/=]{40})[A-Za-z0-9+/=]{60,}"', r'"\1…"', json.dumps(value, indent=2)
    )
    return re.sub(r"\[\s+([^\[\]{}]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
