"""The values of metrics, as Prometheus is told them."""

from prometheus_client.metrics import MetricWrapperBase


def shown(metric: MetricWrapperBase) -> float:
    """Return the value of a metric with its labels; of a histogram, the sum."""
    (found,) = metric.collect()
    sums = [sample.value for sample in found.samples if sample.name.endswith("_sum")]
    return (sums or [found.samples[0].value])[0]
