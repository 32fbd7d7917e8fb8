"""The SDK over HTTPS: it trusts the CA through SSL_CERT_FILE, speaks HTTP/2, trains, samples and downloads."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.load import envoy_stats
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

# Another process, because what is trusted is read from the environment once.
CLIENT = """
import json, urllib.request
import numpy as np
import tinker

service = tinker.ServiceClient()
trainer = service.create_lora_training_client("tinsmith/tiny-qwen3", rank=8, seed=1).result()
tokens = list(range(100, 124))
datum = tinker.Datum(
    model_input=tinker.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={
        "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], np.int64)),
        "weights": tinker.TensorData.from_numpy(np.ones(len(tokens) - 1, np.float32)),
    },
)
losses = []
for _ in range(3):
    output = trainer.forward_backward([datum], "cross_entropy").result()
    losses.append(output.metrics["loss:sum"])
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
sampler = trainer.save_weights_and_get_sampling_client()
answer = sampler.sample(tinker.ModelInput.from_ints(tokens), 2, tinker.SamplingParams(max_tokens=5, stop=[]))
path = trainer.save_weights_external("tls").result().path
urls = service.create_rest_client().get_external_weights_urls(path).result().urls
sizes = {name: len(urllib.request.urlopen(url).read()) for name, url in urls.items()}
print(json.dumps({
    "losses": losses,
    "tokens": [len(sequence.tokens) for sequence in answer.result().sequences],
    "schemes": sorted({url.split(":")[0] for url in urls.values()}),
    "sizes": sizes,
}))
"""


@pytest.mark.row("tls-h2", call="everything, over HTTPS")
def test_the_sdk_does_everything_over_http2_inside_tls(stack: Stack) -> None:
    before = envoy_stats(stack)
    environment = {**os.environ, **stack.client_environment, "TINKER_BASE_URL": stack.tls_url}
    run = subprocess.run(
        [sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["losses"][2] < seen["losses"][0], "it has learnt"
    assert seen["tokens"] == [5, 5]
    assert seen["schemes"] == ["https"], "files come the same way"
    assert seen["sizes"]["adapter_model.safetensors"] > 0
    after = envoy_stats(stack)
    requests = {
        version: after[f"http.https.downstream_rq_{version}_total"]
        - before.get(f"http.https.downstream_rq_{version}_total", 0)
        for version in ("http1", "http2")
    }
    # What speaks HTTP/1.1 is urllib, which fetches the files.
    assert requests["http1"] == len(seen["sizes"])
    assert requests["http2"] > 10
