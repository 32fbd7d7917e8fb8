"""Uploaded losses: what a good graph computes, and what a hostile one does not get."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss
from torch import Tensor

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.custom_loss import execution
from tinsmith_train.engine.custom_loss.execution import GraphRunner
from tinsmith_train.engine.custom_loss.graph import LossGraph, read_graph
from tinsmith_train.engine.custom_loss.operations import FUNCTIONS, METHODS
from tinsmith_train.engine.types import ForwardBackward, ForwardBackwardResult, LoraSpec, TrainerLimits

from .conftest import MakeDatum, MakeTrainer

Node = dict[str, Any]
REF = {"ref": "logprobs"}


def traced(fn: Callable[..., Any], **ranks: Any) -> LossGraph:
    """The graph of a function, by the SDK's own tracer and encoder."""
    handle = trace_loss(fn, ranks, "s")
    nodes = [node.model_dump() for node in encode_graph(handle).nodes]
    return read_graph([(x.name, x.rank) for x in handle.inputs], nodes)


def call(name: str, target: str, *args: Any, op: str = "call_function", **kwargs: Any) -> Node:
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


def nodes_of(*calls: Node, loss: str | None = None) -> list[Node]:
    last = loss or (calls[-1]["name"] if calls else "logprobs")
    start = call("logprobs", "logprobs", op="placeholder")
    return [start, *calls, call("output", "output", {"tuple": [{"ref": last}, {"dict": {}}]}, op="output")]


def run(nodes: Sequence[Mapping[str, Any]], size: int = 4) -> Tensor:
    return GraphRunner(read_graph([("logprobs", 1)], nodes))([torch.zeros(size)])[0]


def clipped_policy(logprobs: Any, sampled: Any, advantages: Any, beta: Any) -> Any:
    ratio = torch.exp(logprobs - sampled)
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    penalty = beta * ((logprobs - sampled) ** 2).mean()
    kept = torch.where(advantages > 0, gain, gain * 0.5)[1:]
    metrics = {"custom/ratio:mean": ratio.max(), "custom/penalty:sum": penalty}
    return -kept.sum() / logprobs.shape[0] + penalty, metrics


def soft_targets(logprobs: Any, teacher: Any) -> Any:
    weights = F.softmax(teacher, dim=-1)
    return F.kl_div(logprobs, weights, reduction="sum") + logprobs.logsumexp(-1).relu().sum(), {}


def odd_corners(logprobs: Any, target_tokens: Any) -> Any:
    order = torch.sort(logprobs, dim=0, descending=True)
    picked = logprobs[torch.arange(logprobs.size(0)) % 2]
    even = (target_tokens % 2 == 0).float()
    padded = F.pad(logprobs, (1, 0), value=0.0)
    loss = (order.values[:2] * 2).sum() + (picked * even).sum() + padded.cumsum(0)[..., -1]
    return loss + logprobs.masked_fill(even.bool(), 0.0).to(torch.float64).mean().float(), {}


CASES = [
    (clipped_policy, {"logprobs": 1, "sampled": 1, "advantages": 1, "beta": 0}),
    (soft_targets, {"logprobs": 2, "teacher": 2}),
    (odd_corners, {"logprobs": 1, "target_tokens": 1}),
]


@pytest.mark.parametrize(("fn", "ranks"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_graph_equals_its_function_and_gradient(fn: Callable[..., Any], ranks: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn((5, 3)[:rank], generator=generator) for rank in ranks.values()]
    if "target_tokens" in ranks:
        inputs[1] = torch.arange(5)
    expected_leaf, leaf = (inputs[0].clone().requires_grad_() for _ in range(2))
    expected, expected_metrics = fn(expected_leaf, *inputs[1:])

    loss, metrics = GraphRunner(traced(fn, **ranks))([leaf, *inputs[1:]])

    # The same operations of the same library in the same order.
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, leaf), torch.autograd.grad(expected, expected_leaf), rtol=0, atol=0
    )
    assert [float(x) for x in metrics] == [float(x) for x in expected_metrics.values()]


def test_every_allowed_name_is_an_operation() -> None:
    assert all(callable(operation) for operation in (*FUNCTIONS.values(), *METHODS.values()))


BIG = 10**9
HOSTILE: dict[str, tuple[list[Node], str]] = {
    "unknown function": (nodes_of(call("a", "os.system", "id")), "not allowed"),
    "eval": (nodes_of(call("a", "builtins.eval", "1")), "not allowed"),
    "load": (nodes_of(call("a", "torch.load", "/etc/passwd")), "not allowed"),
    "dotted path": (nodes_of(call("a", "torch.nn.functional.torch.load", "x")), "not allowed"),
    "unknown method": (nodes_of(call("a", "apply_", REF, op="call_method")), "not allowed"),
    "dunder method": (nodes_of(call("a", "__class__", REF, op="call_method")), "not allowed"),
    "stride": (nodes_of(call("a", "as_strided", REF, [9], [9], op="call_method")), "not allowed"),
    "module": (nodes_of(call("a", "layer", REF, op="call_module")), "not allowed"),
    "get_attr": (nodes_of(call("a", "weight", op="get_attr")), "not allowed"),
    "class": (nodes_of(call("a", "getattr", REF, "__class__")), "only the attributes"),
    "grad_fn": (nodes_of(call("a", "getattr", REF, "grad_fn")), "only the attributes"),
    "data": (nodes_of(call("a", "getattr", REF, "data")), "only the attributes"),
    "computed name": (nodes_of(call("a", "getattr", REF, REF)), "only the attributes"),
    "attribute default": (nodes_of(call("a", "getattr", REF, "T", "x")), "only the attributes"),
    "method of a text": (nodes_of(call("a", "repeat", "ab", 9, op="call_method")), "method of tensors"),
    "out": (nodes_of(call("a", "torch.exp", REF, out=REF)), "in place"),
    "in place": (nodes_of(call("a", "torch.nn.functional.silu", REF, inplace=True)), "in place"),
    "forward reference": (nodes_of(call("a", "torch.exp", {"ref": "b"})), "unknown or out of place"),
    "own result": (nodes_of(call("a", "torch.exp", {"ref": "a"})), "unknown or out of place"),
    "strange object": (nodes_of(call("a", "torch.exp", {"eval": "1"})), "unknown or out of place"),
    "strange dtype": (nodes_of(call("a", "torch.zeros", [2], dtype={"dtype": "__doc__"})), "unknown or"),
    "two keys": (nodes_of(call("a", "torch.exp", {"ref": "logprobs", "x": 1})), "one key"),
    "huge integer": (nodes_of(call("a", "torch.add", REF, 2**63)), "64 bits"),
    "long text": (nodes_of(call("a", "torch.sum", REF, "x" * 65)), "over 64 characters"),
    "many arguments": (nodes_of(call("a", "torch.stack", [REF] * 70)), "more than 64"),
    "deep argument": (nodes_of(call("a", "torch.sum", [[[[[[[[1]]]]]]]])), "nested"),
    "many nodes": (nodes_of(*(call(f"n{i}", "torch.exp", REF) for i in range(600))), "602 nodes"),
    "same name": (nodes_of(call("a", "torch.exp", REF), call("a", "torch.exp", REF)), "differ"),
    "missing loss": (nodes_of(loss="nowhere"), "unknown or out of place"),
    "no output": (nodes_of()[:1] * 2, "last node"),
    "wrong placeholder": ([call("x", "y", op="placeholder"), *nodes_of()[1:]], "placeholders come first"),
    "repeat": (nodes_of(call("a", "repeat", REF, BIG, op="call_method")), "over 4194304"),
    "expand": (nodes_of(call("a", "expand", REF, BIG, 4, op="call_method")), "over 4194304"),
    "tile": (nodes_of(call("a", "torch.tile", REF, [BIG])), "over 4194304"),
    "arange": (nodes_of(call("a", "torch.arange", 2**62)), "node 'a'"),
    "zeros": (nodes_of(call("a", "torch.zeros", BIG, BIG, BIG)), "node 'a'"),
    "other device": (nodes_of(call("a", "torch.zeros", BIG, device={"device": "cpu"})), "over 4194304"),
    "pad": (nodes_of(call("a", "torch.nn.functional.pad", REF, [BIG, 0])), "over 4194304"),
    "linspace": (nodes_of(call("a", "torch.linspace", 0, 1, BIG)), "over 4194304"),
    "tower of powers": (
        nodes_of(call("a", "operator.pow", 10, 10**15), call("b", "operator.mul", REF, {"ref": "a"})),
        "failed",
    ),
    "growing integer": (
        nodes_of(call("a", "operator.mul", 2**62, 2**62)),
        "cannot use",
    ),
    "list of many": (nodes_of(call("a", "operator.mul", [1], BIG)), "tensors and numbers"),
    "batched product": (
        nodes_of(
            call("a", "torch.reshape", REF, [4, 1, 1]), call("b", "torch.matmul", {"ref": "a"}, {"ref": "a"})
        ),
        "rank 1 or 2",
    ),
    "mask as index": (
        nodes_of(call("a", "operator.gt", REF, 0), call("b", "operator.getitem", REF, {"ref": "a"})),
        "node 'b'",
    ),
    "index out of range": (nodes_of(call("a", "operator.getitem", REF, 9)), "failed"),
    "shape mismatch": (nodes_of(call("a", "torch.ones", 3), call("b", "torch.add", REF, {"ref": "a"})), "failed"),
    "loss of rank 1": (nodes_of(call("a", "torch.exp", REF)), r"scalar tensor, and is a float32 tensor of shape \[4\]"),
    "loss of integers": (nodes_of(call("a", "torch.argmax", REF)), "scalar tensor, and is a int64"),
    "loss that is a number": (nodes_of(call("a", "operator.add", 1.0, 1.0)), "scalar tensor, and is of type float"),
    "complex": (nodes_of(call("a", "operator.pow", -1.0, 0.5)), "cannot use"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused(name: str) -> None:
    nodes, message = HOSTILE[name]
    with pytest.raises(InvalidInput, match=message):
        run(nodes)


def test_a_reduction_cannot_hide_a_large_broadcast() -> None:
    n = 3000
    column = call("a", "torch.reshape", REF, [n, 1])
    row = call("b", "torch.reshape", REF, [1, n])
    pair = call("c", "torch.nn.functional.l1_loss", {"ref": "a"}, {"ref": "b"}, reduction="sum")
    with pytest.raises(InvalidInput, match="broadcast to 9000000"):
        run(nodes_of(column, row, pair), n)


def test_many_tensors_of_allowed_size_are_refused_together() -> None:
    copies = [call(f"n{i}", "torch.zeros", 2**21) for i in range(40)]
    with pytest.raises(InvalidInput, match="for one datum"):
        run(nodes_of(*copies))


def test_the_values_of_a_refused_graph_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    measure = execution.measure

    def noting(node: str, result: Any) -> int:
        devices.append(result.device.type)
        return measure(node, result)

    monkeypatch.setattr(execution, "measure", noting)
    with pytest.raises(InvalidInput):
        run(nodes_of(call("a", "torch.exp", REF), call("b", "repeat", {"ref": "a"}, BIG, op="call_method")))
    assert devices == ["meta", "meta"]


def test_a_loss_over_its_time_is_stopped() -> None:
    graph = read_graph([("logprobs", 1)], nodes_of(call("a", "torch.sum", REF)))
    with pytest.raises(InvalidInput, match="took over"):
        GraphRunner(graph, execution.TimeBudget(left=0.0))([torch.zeros(4)])


def submission(graph: LossGraph, make_datum: MakeDatum, **changes: Any) -> ForwardBackward:
    datums = tuple(make_datum(seed, length) for seed, length in ((1, 5), (2, 9), (3, 7)))
    return ForwardBackward("a", datums, "custom", graph=graph, **changes)


def test_the_trainer_s_gradient_is_that_of_the_same_built_in_loss(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    def policy(logprobs: Any, advantages: Any, weights: Any) -> Any:
        return -(logprobs * weights).sum(), {"custom/a:mean": advantages.sum(), "custom/n:sum": weights.sum()}

    graph = traced(policy, logprobs=1, advantages=1, weights=1)
    item = submission(graph, make_datum)
    # Rows of 12 tokens: the submission is spread over two of them.
    custom, built_in = (
        make_trainer(a=LoraSpec(4), limits=TrainerLimits(tokens_per_pass=12, tokens_per_piece=12))
        for _ in range(2)
    )
    result = custom.forward_backward([item])[0]
    expected = built_in.forward_backward([ForwardBackward("a", item.datums, "cross_entropy")])[0]
    assert isinstance(result, ForwardBackwardResult)
    assert isinstance(expected, ForwardBackwardResult)
    assert result.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-6)
    torch.testing.assert_close(custom.adapter("a").grad, built_in.adapter("a").grad, rtol=1e-6, atol=1e-6)
    sums = [datum.inputs["advantages"].sum() for datum in item.datums]
    assert result.metrics["custom/a:mean"] == pytest.approx(np.mean(sums), rel=1e-5)


@pytest.mark.parametrize("target", ["torch.exp", "torch.log"])
def test_a_bad_custom_loss_fails_alone(make_trainer: MakeTrainer, make_datum: MakeDatum, target: str) -> None:
    # exp gives a loss of rank 1, which is refused; the log of a negative sum is NaN.
    calls = (call("s", "torch.sum", REF), call("b", "torch.log", {"ref": "s"}))
    nodes = nodes_of(call("b", target, REF)) if target == "torch.exp" else nodes_of(*calls)
    bad = submission(read_graph([("logprobs", 1)], nodes), make_datum)
    good = ForwardBackward("b", (make_datum(4, 6),), "cross_entropy")
    trainer, alone = (make_trainer(a=LoraSpec(4), b=LoraSpec(4)) for _ in range(2))
    first, second = trainer.forward_backward([bad, good])
    alone.forward_backward([good])
    assert isinstance(first, InvalidInput)
    assert isinstance(second, ForwardBackwardResult)
    assert not trainer.adapter("a").grad.any()
    torch.testing.assert_close(trainer.adapter("b").grad, alone.adapter("b").grad, rtol=1e-5, atol=1e-6)


def test_forward_only_gives_the_loss_and_no_gradient(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    graph = read_graph([("logprobs", 1)], nodes_of(call("s", "torch.sum", REF)))
    trainer = make_trainer(a=LoraSpec(4))
    result = trainer.forward_backward([submission(graph, make_datum, forward_only=True)])[0]
    assert isinstance(result, ForwardBackwardResult)
    assert result.metrics["loss:sum"] == pytest.approx(sum(x.sum() for x in result.logprobs), rel=1e-6)
    assert not trainer.adapter("a").grad.any()


@pytest.mark.parametrize(("name", "rank"), [("missing", 1), ("advantages", 2)])
def test_an_input_that_is_missing_or_of_another_rank_is_refused(
    make_trainer: MakeTrainer, make_datum: MakeDatum, name: str, rank: int
) -> None:
    nodes = nodes_of(call("s", "torch.sum", REF))
    nodes.insert(1, call(name, name, op="placeholder"))
    graph = read_graph([("logprobs", 1), (name, rank)], nodes)
    answer = make_trainer(a=LoraSpec(4)).forward_backward([submission(graph, make_datum)])[0]
    assert isinstance(answer, InvalidInput)
    assert name in answer.message
