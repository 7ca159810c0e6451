"""Commands that work on a model: tune, generate, report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from attlas._common.errors import UsageError
from attlas._common.files import check_folder
from attlas.cli.app import MODELS, command
from attlas.cli.bars import Bars

__all__ = ["generate", "report", "tune"]

Number = TypeVar("Number", int, float)
Model = Annotated[str, typer.Argument(help="Folder, file.gguf, hub name, or 'demo'.", show_default=False)]


@command(MODELS)
def tune(
    model: Model,
    budget: Annotated[
        float, typer.Option(help="Share of the key-value cache that the plan may keep, in (0, 1].")
    ] = 0.5,
    lengths: Annotated[
        str, typer.Option(help="Input lengths to profile, in tokens, increasing multiples of 64.")
    ] = "1024,2048",
    extend: Annotated[
        int | None,
        typer.Option(
            help="Longest length that the plan is made for; 4096 by default, or what MODEL's context allows."
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Text to measure on: a UTF-8 file, python-docs, or python-docstrings.")
    ] = "python-docs",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/MODEL by default.")] = None,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    needles: Annotated[
        int, typer.Option(min=1, help="Hidden facts that the methods must find, at each length.")
    ] = 40,
    also: Annotated[str, typer.Option(help="Smaller budgets to try as well; '' for none.")] = "0.35,0.25",
    timing: Annotated[bool, typer.Option(help="Measure the time of prefill and of decoding.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the run that is in the folder.")] = False,
) -> None:
    """Find a plan for MODEL, compare it with the baselines, and write plan.json and report.html.

    The baselines are simpler ways to keep as much, first of all one window for every head.

    An interrupted run continues when the same command is given again.
    """
    from attlas.bridges import load_model
    from attlas.report import load_run, print_results, write_report
    from attlas.tasks import load_source
    from attlas.tune import Settings
    from attlas.tune import tune as tune_model

    options: dict[str, Any] = {
        "budget": budget,
        "lengths": _numbers(lengths, int, "lengths are whole numbers joined by commas, as in 1024,2048"),
        "extend": extend,
        "seed": seed,
        "needles": needles,
        "extra_budgets": _numbers(also, float, "also takes numbers joined by commas, as in 0.35,0.25"),
        "timing": timing,
    }
    # What can be refused without the model is refused before it is loaded.
    Settings(**options)
    source = load_source(data)
    folder = check_folder(out or Path("runs") / _folder_name(model))
    network, tokenizer = load_model(model)
    with Bars() as progress:
        tune_model(network, tokenizer, source, out=folder, fresh=fresh, progress=progress, **options)
    page = write_report(folder).page
    print_results(load_run(folder))
    print(f"plan    {folder / 'plan.json'}\nreport  {page}")


@command(MODELS)
def generate(
    model: Model,
    plan: Annotated[Path, typer.Option(help="The plan.json of a run.", show_default=False)],
    prompt: Annotated[str | None, typer.Option(help="The question or text.", show_default=False)] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt from a file, - for stdin.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 128,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Below 1 draws likely tokens more often, above 1 less; means --sample."),
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beam search with that many beams.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Decides the draw of --sample.")] = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the chat format.")
    ] = False,
) -> None:
    """Let MODEL answer with a plan applied: each head keeps only what its rule says.

    The text goes to standard output, what the cache held to standard error.
    """
    import torch
    from rich.console import Console

    from attlas.attend.decode_kernel import prepare
    from attlas.bridges import applied, describe, load_model
    from attlas.pattern import Plan
    from attlas.tune.limits import check_answer

    text = _prompt(prompt, prompt_file)
    rules = Plan.load(plan)
    network, tokenizer = load_model(model)
    _check_generates(network)
    shape = describe(network)
    rules = rules.on(shape)
    inputs = _encode(tokenizer, text, raw)
    length = inputs["input_ids"].shape[1]
    total = length + max_new_tokens
    check_answer(network, shape.name, length, max_new_tokens, kept=rules.density(total), rows=beams)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": beams}
    options["do_sample"] = sample or temperature is not None
    if temperature is not None:
        options["temperature"] = temperature
    with Console(stderr=True).status("preparing the kernel of decoded tokens (compiled once per machine)"):
        prepare(network.dtype, network.device)
    with applied(network, rules), torch.no_grad():
        written = network.generate(**inputs, **options)
    print(tokenizer.decode(written[0, length:], skip_special_tokens=True))
    print(
        f"attlas: {length} tokens read, {written.shape[1] - length} written, "
        f"{rules.density(total):.0%} of the key-value cache kept for {total} tokens",
        file=sys.stderr,
    )


@command(MODELS)
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
) -> None:
    """Write the report.html of a finished run anew and show its table."""
    from attlas.report import load_run, print_results, write_report

    run = load_run(folder)
    page = write_report(folder).page
    print_results(run)
    print(f"report  {page}")


def _folder_name(model: str) -> str:
    """The last part of a path or hub name; only .gguf is an ending, the dot of "3.1-8B" is not."""
    return Path(model).resolve().name.removesuffix(".gguf")


def _numbers(text: str, kind: Callable[[str], Number], rule: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if text.strip())
    except ValueError:
        raise UsageError(f"{rule}; got {text!r}") from None


def _prompt(text: str | None, path: Path | None) -> str:
    if (text is None) == (path is None):
        raise UsageError("give the prompt with --prompt TEXT or with --prompt-file FILE, one of the two")
    if text is None and path is not None:
        try:
            text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"prompt file {path} cannot be read: {error}") from None
    if not text or not text.strip():
        raise UsageError("the prompt is empty; give some text")
    return text


def _check_generates(network: Any) -> None:
    from attlas.bridges.models import wiring

    if not wiring(network).causal or not network.can_generate():
        raise UsageError(
            f"{type(network).__name__} does not generate text: it is an encoder, or has no language-model "
            "head; give a decoder, such as a model whose class ends in ForCausalLM"
        )


def _encode(tokenizer: Any, text: str, raw: bool) -> Any:
    if raw or not getattr(tokenizer, "chat_template", None):
        return tokenizer(text, return_tensors="pt")
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
