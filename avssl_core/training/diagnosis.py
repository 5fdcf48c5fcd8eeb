"""What to say when the loss or a gradient stops being a number.

The run stops before the optimiser would spread it; the last checkpoint is clean. The message says where the first
non-finite number stood, because "loss is nan" starts a day of guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

Row = dict[str, float]


class NonFiniteError(RuntimeError):
    """Loss or gradient became NaN or infinite.

    Attributes:
        step: 0-based optimiser step at which it happened; the weights are those before it.
        findings: what was found, by name (``loss``, ``input``, ``metric``, ``parameter``, ``gradient``, ``module``,
            ``lr``).
    """

    def __init__(self, step: int, findings: Mapping[str, str], history: Sequence[Row]) -> None:
        self.step = step
        self.findings = dict(findings)
        lines = [f"training stopped at step {step}: the loss or its gradient is not finite"]
        lines += [f"  {name}: {text}" for name, text in findings.items()]
        lines += ["  last log lines:", *(f"    {_format_row(row)}" for row in history[-3:])] if history else []
        lines += [f"  remedy: {_remedy(self.findings)}"]
        super().__init__("\n".join(lines))


def tensors_in(batch: Any, prefix: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch (mappings, sequences, dataclasses, nested) with its name."""
    if isinstance(batch, Tensor):
        yield prefix, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors_in(value, f"{prefix}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for index, value in enumerate(batch):
            yield from tensors_in(value, f"{prefix}[{index}]")
    elif is_dataclass(batch) and not isinstance(batch, type):
        for item in fields(batch):
            yield from tensors_in(getattr(batch, item.name), f"{prefix}.{item.name}")


def diagnose(
    model: nn.Module,
    batches: Sequence[Any],
    metrics: Mapping[str, Tensor],
    *,
    lr: float,
    rerun: Callable[[], object] | None = None,
) -> dict[str, str]:
    """Find the first non-finite number on the way from the input to the gradient.

    Args:
        model: unwrapped, with the gradients of the failed step.
        batches: the inputs of that step.
        metrics: scalars of that step, ``loss`` among them.
        lr: learning rate of the step.
        rerun: repeats the forward pass with the same random numbers, so that the first module can be named; None skips
            that.
    """
    findings = {"loss": f"{float(metrics['loss']):.6g}", "lr": f"{lr:.6g}"}
    gradients = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    for key, named in (
        ("input", (pair for batch in batches for pair in tensors_in(batch))),
        ("metric", metrics.items()),
        ("parameter", model.named_parameters()),
        ("gradient", gradients),
    ):
        found = _first_non_finite(named)
        if found is not None:
            findings[key] = found
    module = _first_module(model, rerun) if rerun is not None else None
    if module is not None:
        findings["module"] = module
    return findings


def _first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    for name, tensor in named:
        if tensor.is_floating_point():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                return f"{name} {tuple(tensor.shape)} holds {bad} non-finite of {tensor.numel()} values"
    return None


def _first_module(model: nn.Module, rerun: Callable[[], object]) -> str | None:
    """Name of the first module to finish with an output that is not finite (inner modules finish before outer ones)."""
    found: list[str] = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            text = None if found else _first_non_finite(tensors_in(output, "output"))
            if text:
                found.append(f"{name or '(model)'} ({type(module).__name__}): {text}")

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules()]
    try:
        rerun()
    except Exception as error:  # the failure is being reported already; a second one must not hide it
        return found[0] if found else f"the repeated forward pass failed: {type(error).__name__}: {error}"
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _remedy(findings: Mapping[str, str]) -> str:
    if "input" in findings:
        return "the data are bad: check the reader and the transforms for this batch (a silent clip through a log?)"
    if "parameter" in findings:
        return "the weights were bad before this step: check how they were initialised or loaded"
    return "lower lr, lengthen warmup_steps, set grad_clip (1.0 is usual) or precision='float32', in a new run_dir"


def _format_row(row: Row) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in row.items())
