"""Metrics for the tests of this folder."""

from __future__ import annotations

from datetime import UTC, datetime

from workflow_composer.metrics.record import RoutingMetric

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def metric(**fields):
    """A request that went well, changed by ``fields``."""
    values = {
        "timestamp": NOON.isoformat(timespec="milliseconds"),
        "request_id": "req-1",
        "strategy": "mine",
        "router": "provider",
        "task_type": "code",
        "query_length": 12,
        "model_used": "small",
        "candidate": "small",
        "tier": 0,
        "fallback_depth": 0,
        "escalated": False,
        "latency_ms": 100.0,
        "overhead_ms": 0.5,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost": 0.001,
        "success": True,
        "error": None,
        "attempts": 1,
    }
    return RoutingMetric(**{**values, **fields})
