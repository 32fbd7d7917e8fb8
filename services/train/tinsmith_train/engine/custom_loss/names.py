"""The names a graph may use. A name that is not here does not exist; nothing on the wire is looked up in a module.

Left out on purpose: what draws random numbers, writes in place, leaves torch (`item`), answers a shape that depends on
values, reinterprets memory (`as_strided`), answers many tensors (`split`), or takes superlinear time or memory that its
operands do not show (`einsum`, batched matrix products, `diff` with a count).
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SHARED = _words(
    """
    abs ceil cos cosh erf erfc exp exp2 expm1 floor isfinite isinf isnan log log10 log1p log2 logical_not neg reciprocal
    relu round rsqrt sigmoid sign sin sinh sqrt square tan tanh trunc

    add atan2 div eq floor_divide fmod ge gt hypot le logaddexp logical_and logical_or logical_xor lt maximum minimum
    mul ne pow remainder sub

    all amax amin any argmax argmin logsumexp max mean min norm prod std sum var

    broadcast_to flatten flip gather index_select narrow permute reshape roll squeeze tile transpose unsqueeze

    clamp cummax cumprod cumsum dot lerp log_softmax masked_fill matmul mm mv nan_to_num outer softmax sort topk tril
    triu
    """
)

TORCH = _SHARED | _words("arange cat full full_like linspace ones ones_like stack where zeros zeros_like")
METHODS = _SHARED | _words("clamp_max clamp_min detach expand expand_as repeat view")
"""Methods of torch's own; those of `EXTRA_METHODS` are written out in `operations`."""
EXTRA_METHODS = _words("bool contiguous dim double float int long ndimension numel size to type_as where")
FUNCTIONAL = _words(
    """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_similarity gelu huber_loss kl_div l1_loss log_softmax
    logsigmoid mse_loss normalize pad silu smooth_l1_loss softmax softplus
    """
)
OPERATOR = _words(
    "abs add and_ eq floordiv ge gt inv invert le lt matmul mod mul ne neg or_ pos pow sub truediv"
)
MATH = _words("ceil exp expm1 fabs floor log log10 log1p log2 sqrt tanh")
ATTRIBUTES = _words("T device dtype indices mT ndim shape values")
DTYPES = _words("bfloat16 bool float float16 float32 float64 int32 int64 long")

FUNCTIONS = (
    frozenset({"getattr", "operator.getitem", "torch.nn.functional.relu"})
    | {f"torch.{name}" for name in TORCH}
    | {f"torch.nn.functional.{name}" for name in FUNCTIONAL}
    | {f"operator.{name}" for name in OPERATOR}
    | {f"math.{name}" for name in MATH}
)
"""Every target of a `call_function` node."""

CALLABLE_METHODS = METHODS | EXTRA_METHODS
"""Every target of a `call_method` node."""
