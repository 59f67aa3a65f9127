"""What a picture cost: seconds, denoiser calls, denoiser evaluations, and floating-point operations."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


@dataclass
class Cost:
    """The cost of a batch of pictures; divide by their number.

    Attributes:
        seconds: Wall time, the device's work included.
        calls: Forward passes of the denoiser.
        evaluations: Rows that the denoiser evaluated. A pass under autograd counts twice, for its backward pass, and a
            pass that ends early counts as a whole one; so steering's figure is an upper bound.
    """

    seconds: float = 0.0
    calls: int = 0
    evaluations: int = 0


@contextmanager
def measured(denoiser: nn.Module) -> Iterator[Cost]:
    """Measure what happens within the block; calls that are cut off before they begin do not count."""
    cost = Cost()

    def begun(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            cost.calls += 1
            cost.evaluations += 2 * _rows(args, kwargs)

    def ended(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            cost.calls += 1
            cost.evaluations += _rows(args, kwargs)

    handles = [
        denoiser.register_forward_pre_hook(begun, with_kwargs=True),
        denoiser.register_forward_hook(ended, with_kwargs=True),
    ]
    start = time.perf_counter()
    try:
        yield cost
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        cost.seconds = time.perf_counter() - start
        for handle in handles:
            handle.remove()


class _Operations(TorchDispatchMode):  # type: ignore[misc]
    """Counts by PyTorch's formulas. Unlike its FlopCounterMode it allows `autograd.grad`, which steering uses."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **(kwargs or {}), out_val=output))
        elif packet == torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.total += int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
        elif packet == torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.total += int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
        return output


def operations(run: Callable[[], object]) -> int:
    """Floating-point operations of `run()`: matrix products, convolutions and attention, forward and backward.

    A multiply-add counts as two; elementwise work does not count.
    """
    with _Operations() as counter:
        run()
    return int(counter.total)


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            return len(value)
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return len(value)
    return 1
