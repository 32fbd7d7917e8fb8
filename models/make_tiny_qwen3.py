"""Makes `tinsmith/tiny-qwen3`: its tokenizer, its pretraining text and its weights.

    python -m models.make_tiny_qwen3 tokenizer --out models/tiny-qwen3
    python -m models.make_tiny_qwen3 pretrain  --out models/tiny-qwen3
    python -m models.make_tiny_qwen3 evaluate  --model models/tiny-qwen3

`pretrain` reads the tokenizer from `--tokenizer` (default: models/tiny-qwen3) and writes config.json,
generation_config.json, model.safetensors and pretraining.json: minutes on a GPU, many hours on a CPU.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from models.recipe.data import TokenStream, build_stream
from models.recipe.evaluate import complete, evaluate
from models.recipe.tokenizer import END_OF_TEXT, TURN_END, TURN_START, write_tokenizer
from models.recipe.train import Schedule, new_model, pretrain, write_log, write_model

HERE = Path(__file__).parent / "tiny-qwen3"
# Each seed names a corpus of its own; pretraining takes one seed for each process, upwards.
TOKENIZER_SEED, HELD_OUT_SEED, PRETRAINING_SEED = 1, 2, 1000
SAMPLE_PROMPTS = (
    "Hello!",
    "What is the capital of Norway?",
    "Tell me a story about a whale.",
    "What is 7 + 6?",
)


def main() -> None:
    """Run the named step."""
    arguments = _parser().parse_args()
    arguments.run(arguments)


def make_tokenizer(arguments: argparse.Namespace) -> None:
    """Train and write the tokenizer."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(arguments.out, seed=TOKENIZER_SEED, training_documents=arguments.documents)
    print(f"tokenizer with {tokenizer.get_vocab_size()} entries in {arguments.out}")


def make_model(arguments: argparse.Namespace) -> None:
    """Write the text, pretrain, evaluate and save."""
    device, path = _device(arguments), arguments.tokenizer / "tokenizer.json"
    started = time.perf_counter()
    stream = build_stream(path, arguments.text_tokens, PRETRAINING_SEED, arguments.workers, device)
    documents, tokens = stream.starts.numel(), stream.tokens.numel()
    print(
        f"text: {tokens:,} tokens, {documents:,} documents, {time.perf_counter() - started:.0f} s", flush=True
    )

    tokenizer = Tokenizer.from_file(str(path))
    torch.manual_seed(0)
    model = new_model(tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT))
    torch.nn.Module.to(model, device)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    schedule = Schedule(arguments.tokens, arguments.tokens_per_step, arguments.max_minutes, arguments.lr)
    progress = pretrain(model, stream, schedule, seed=0, log_every=arguments.log_every)
    write_model(model, arguments.out)

    scores = evaluate(model, tokenizer, _held_out(path, device))
    _show(model, tokenizer, scores)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    write_log(
        arguments.out, schedule, progress, scores, text_tokens=tokens, device=machine, versions=versions
    )
    print(f"written to {arguments.out} after {time.perf_counter() - started:.0f} s")


def score_model(arguments: argparse.Namespace) -> None:
    """Evaluate a saved model and print samples."""
    device = _device(arguments)
    model = Qwen3ForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    torch.nn.Module.to(model, device)
    path = arguments.tokenizer / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    _show(model, tokenizer, evaluate(model, tokenizer, _held_out(path, device)))


def _held_out(tokenizer: Path, device: torch.device) -> TokenStream:
    return build_stream(tokenizer, 200_000, HELD_OUT_SEED, 1, device)


def _show(model: Qwen3ForCausalLM, tokenizer: Tokenizer, scores: dict[str, float]) -> None:
    for name, score in scores.items():
        print(f"{name:<32} {score:.4f}")
    prompts = [f"{TURN_START}user\n{text}{TURN_END}\n{TURN_START}assistant\n" for text in SAMPLE_PROMPTS]
    for question, reply in zip(
        SAMPLE_PROMPTS, complete(model, tokenizer, prompts, 1.0, max_tokens=48), strict=True
    ):
        print(f"{question!r} -> {reply!r}")


def _device(arguments: argparse.Namespace) -> torch.device:
    return torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(required=True, metavar="STEP")

    tokenizer = steps.add_parser("tokenizer", help="train the tokenizer (seconds)")
    tokenizer.set_defaults(run=make_tokenizer)
    tokenizer.add_argument("--out", type=Path, default=HERE)
    tokenizer.add_argument("--documents", type=int, default=60_000, help="documents to train on")

    training = steps.add_parser("pretrain", help="write the text and train the weights")
    training.set_defaults(run=make_model)
    training.add_argument("--out", type=Path, default=HERE)
    training.add_argument(
        "--text-tokens", type=int, default=100_000_000, help="different tokens of text to write"
    )
    training.add_argument("--tokens", type=int, default=400_000_000, help="tokens to train on")
    training.add_argument("--tokens-per-step", type=int, default=65_536)
    training.add_argument(
        "--max-minutes", type=float, default=4.0, help="training ends by then, fully annealed"
    )
    training.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    training.add_argument("--log-every", type=int, default=100, help="steps between two lines")
    training.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that write text"
    )

    scoring = steps.add_parser("evaluate", help="score a saved model")
    scoring.set_defaults(run=score_model)
    scoring.add_argument("--model", type=Path, default=HERE)
    for step in (training, scoring):
        step.add_argument("--tokenizer", type=Path, default=HERE, help="folder with tokenizer.json")
        step.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser


if __name__ == "__main__":
    main()
