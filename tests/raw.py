"""The protocol without the SDK, to send what the SDK never would and to see what it never shows."""

from typing import Any

import httpx
import tinker

from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_local import Stack

MODEL = "tinsmith/tiny-qwen3"


class RawClient:
    """Speaks HTTP to the gateway, or to one of the services behind it."""

    def __init__(self, stack: Stack, service: str | None = None) -> None:
        url = stack.base_url if service is None else stack.service_url(service)
        self.http = httpx.Client(base_url=f"{url}/api/v1", headers={"X-API-Key": stack.api_key}, timeout=60)

    def post(self, url: str, /, **body: Any) -> Any:
        """What an endpoint that must succeed answers."""
        answer = self.http.post(url, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def new_session(self) -> str:
        return self.post("/create_session", tags=[], sdk_version="0.38.0")["session_id"]

    def new_model(self, session_id: str | None = None, **lora: Any) -> str:
        address = {"session_id": session_id or self.new_session(), "model_seq_id": 0}
        promise = self.post("/create_model", **address, base_model=MODEL, lora_config={"rank": 4, **lora})
        return self.result(promise["request_id"])["model_id"]

    def result(self, request_id: str) -> dict[str, Any]:
        answer = self.poll(request_id)
        return answer.json() if "json" in answer.headers["content-type"] else {"protobuf": answer.content}

    def poll(self, request_id: str, **body: Any) -> httpx.Response:
        # As the SDK does: by this header the gateway finds the service that wakes the poll.
        kind = "Sample" if ":sample:" in request_id else "Forward"
        headers = {"X-Tinker-Request-Type": kind, "Accept": "application/x-protobuf"}
        return self.http.post("/retrieve_future", json={"request_id": request_id, **body}, headers=headers)

    def is_running(self, request_id: str) -> bool:
        """Whether a promise is there and not ended: then a poll is held."""
        try:
            answer = self.http.post("/retrieve_future", json={"request_id": request_id}, timeout=1)
        except httpx.ReadTimeout:
            return True
        return "try_again" in answer.text

    def submit(self, body: pb.ForwardBackwardRequest | bytes) -> httpx.Response:
        content = body if isinstance(body, bytes) else body.SerializeToString()
        headers = {"content-type": "application/x-protobuf"}
        return self.http.post("/forward_backward", content=content, headers=headers)

    def forward_backward(self, message: pb.ForwardBackwardRequest) -> dict[str, Any]:
        promise = self.submit(message)
        assert promise.status_code == 200, promise.text
        return self.result(promise.json()["request_id"])


def skip_a_turn(trainer: tinker.TrainingClient) -> int:
    """Have the client leave one seq_id out, which is answered: what it submits next waits for that one."""
    state = vars(trainer)
    state["_request_id_counter"] += 1
    state["_turn_counter"] += 1
    return state["_request_id_counter"]
