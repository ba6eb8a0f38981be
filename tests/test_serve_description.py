"""schemathesis: requests made from the OpenAPI description, right and wrong; nothing but described statuses and shapes.

`positive_data_acceptance` stays out: JSON Schema can't say that the last message is the user's, or that a string holds
a recording, so a request that fits the schema may still be refused.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serve_fakes import FakeEngine, FakeSpeaker

from llasm.serve.api import application
from llasm.serve.settings import Settings

# Under these names the server is asked; any other would end at the guard.
app, _ = application(FakeEngine(places=10_000), FakeSpeaker(), Settings(allow_hosts="testserver,testclient"))
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@schema.hook
def map_body(context, body):
    """Most requests would otherwise end at the unknown model."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 4:
        body["model"] = "fake"
    return body


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_description_is_true(case):
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


def test_every_route_is_described():
    assert {operation.ok().path for operation in schema.get_all_operations()} == {
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/audio/transcriptions",
        "/v1/audio/speech",
        "/health",
        "/metrics",
    }
