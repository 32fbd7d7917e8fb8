"""Hundreds of samples at once, each way a client can talk to the stack; `make bench-load` does it with thousands."""

import pytest

from benchmarks.load import MODES, Mode, Watch, run_client
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

SAMPLES = 200
TOKENS = 4


@pytest.mark.row("many-samples-cleartext", "many-samples-h2", call="SamplingClient.sample")
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_200_samples_at_once_all_come_back_whole(stack: Stack, mode: Mode) -> None:
    with Watch(stack) as watch:
        report = run_client(stack, mode, SAMPLES, TOKENS)
    assert report["faults"] == []
    assert (report["samples"], report["tokens"]) == (SAMPLES, SAMPLES * TOKENS)
    assert watch.refused == 0
    if mode.tls:
        # A connection for each of the SDK's HTTP clients, which hold up to 50 requests, and those that it opens
        # before it knows that the first speaks HTTP/2: far from one per request, of which there are over 400.
        assert report["connections"] < SAMPLES
