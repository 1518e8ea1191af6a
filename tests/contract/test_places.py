"""What callers wait for knows tenants: nothing else stands in front of their work."""

import ast

from tests.import_graph import MODULES

OTHER_LINES = {
    *("Semaphore", "BoundedSemaphore", "Lock", "RLock", "Condition", "to_thread"),
    *("ThreadPoolExecutor", "ProcessPoolExecutor", "run_in_executor"),
}
"""Places, locks and threads whose waiting line is the order of arrival."""
ALLOWED = {
    "services.batching.threads": "the threads behind the queue",
    "services.batching.decoder": "the device's threads, of which the queue fills as many as exist",
    "services.backbone.embedder": "the device's threads, likewise",
    "services.request.transit": "a lock around a few sums",
    "services.request.fan_out": "the parts of one request alone",
    "services.heads.own.app": "one load of the head, for which every request waits",
    "services.retrieval.tables": "the index's thread and its background, while files are written",
    "services.deployment.models": "loads of models, for which their requests wait together",
    "services.deployment.model": "a part of a load",
    "services.deployment.ingress": "a part of a load",
    "services.gateway.scrape": "the operator's figures",
}
"""Modules that need one all the same, with the reason."""


def test_callers_wait_in_queues_alone() -> None:
    for module, path in MODULES.items():
        online = module.startswith("services.") and not module.startswith("services.lake.")
        if online and module not in ALLOWED:
            names = {
                getattr(node, "attr", getattr(node, "id", ""))
                for node in ast.walk(ast.parse(path.read_text()))
            }
            assert not names & OTHER_LINES, f"{path}: use services.batching.threads"
