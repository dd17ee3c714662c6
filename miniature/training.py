"""Share what both trainings need: time limit, devices and ranks, CUDA graphs of steps, log, and files of weights."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniature.optimizer import FlatParameters, Optimizer

# Steps between two looks at the clock; each look waits for the cards.
LOOK = 20


class Session:
    """Hold device, ranks, deadline and log of one training run, which begins now and may take `minutes`.

    Started by torchrun it spans several cards, else one. out: folder of the log. device: "cpu", else a card where there is one.
    graphs: replay steps as CUDA graphs, on a card. progress: share of the time that is over, 0 to 1.
    """

    def __init__(self, minutes: float, out: Path, device: str = "auto", graphs: bool = True):
        self.began, self.seconds, self.out = time.time(), 60 * minutes, out
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        cuda = device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        self.dtype = torch.bfloat16 if cuda else torch.float32
        self.graphs = cuda and graphs
        if cuda:
            torch.cuda.set_device(self.device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        if self.world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        self.progress, self.steps = 0.0, 0
        out.mkdir(parents=True, exist_ok=True)

    def log(self, **values: Any) -> None:
        """Write values as one JSON line to the screen and to log.jsonl; only the first rank does."""
        if self.rank:
            return
        values = {key: round(v, 5) if isinstance(v, float) else v for key, v in values.items()}
        line = json.dumps({"at": round(time.time() - self.began, 1), "step": self.steps, **values})
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a") as stream:
            stream.write(line + "\n")

    def running(self) -> bool:
        """Count a step and return whether there is time for it. All ranks agree: the clock of the slowest one counts."""
        # On a CPU a look costs nothing, and twenty steps may take minutes.
        if self.steps % LOOK == 0 or self.device.type == "cpu":
            elapsed = torch.tensor([time.time() - self.began], device=self.device, dtype=torch.float64)
            if self.world > 1:
                dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
            elif self.device.type == "cuda":
                torch.cuda.synchronize()
            self.progress = elapsed.item() / self.seconds
        self.steps += 1
        return self.progress < 1.0

    def share(self, grad: Tensor) -> None:
        """Average gradients over the cards, in place."""
        if self.world > 1:
            dist.all_reduce(grad)
            grad.div_(self.world)

    def seeds(self, number: int, count: int, limit: int) -> Tensor:
        """Return the seeds of block `number`, (count,) int64.

        No other block and no other rank gets the same ones, as long as fewer than `limit` are drawn in all.
        """
        first = ((number * self.world + self.rank) * count) % limit
        return torch.arange(first, first + count, device=self.device)

    def close(self) -> None:
        """Wait for all ranks, then leave their process group."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


def cosine(progress: float, peak: float, last: float = 0.01, warm: float = 0.01) -> float:
    """Return the learning rate at a progress of 0 to 1.

    It grows linearly to `peak` over the first `warm` of the time, then falls as a half cosine to `last` times `peak`.
    """
    if progress < warm:
        return peak * (progress + 1e-4) / warm
    done = min((progress - warm) / (1 - warm), 1.0)
    return peak * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))


class Stepper:
    """Run forward and backward passes and the optimizer's step, each replayed as a CUDA graph where there is a card."""

    def __init__(self, session: Session, flat: FlatParameters, optimizer: Optimizer):
        self.session, self.flat, self.optimizer = session, flat, optimizer
        self._passes: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
        self._move: Callable[[], Any] | None = None
        # All graphs share one memory pool: they never run at the same time, and a result is read before the next pass runs.
        self._arena = torch.cuda.graph_pool_handle() if session.graphs else None

    def add(self, name: str, function: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Capture a forward and backward pass under a name.

        function: returns the loss and figures to log; it reads only tensors whose addresses stay the same.
        """

        def both() -> tuple[Tensor, Tensor]:
            self.flat.grad.zero_()
            loss, figures = function()
            loss.backward()
            return loss.detach(), figures

        self._passes[name] = self._graphed(both, self._arena)

    def has(self, name: str) -> bool:
        """Return whether a pass of this name was captured."""
        return name in self._passes

    def clear(self) -> None:
        """Forget all passes, because the tensors that they read are about to be freed."""
        self._passes.clear()

    def run(self, name: str) -> tuple[Tensor, Tensor]:
        """Run a pass and one step of the optimizer. Returns its loss and figures, which the next run overwrites."""
        result = self._passes[name]()
        self.session.share(self.flat.grad)
        if self._move is None:
            self._move = self._graphed(self.optimizer.step, None)
        self._move()
        return result

    def _graphed(self, function: Callable[[], Any], arena: tuple[int, int] | None) -> Callable[[], Any]:
        if not self.session.graphs:
            return function
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=arena, capture_error_mode="thread_local"):
            result = function()

        def replay() -> Any:
            graph.replay()
            return result

        return replay


def save_half(tensors: dict[str, Tensor], path: Path, dtype: torch.dtype, **metadata: str) -> None:
    """Write tensors in a 16-bit `dtype` to a file, as a whole or not at all. metadata: texts for the file's header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(
        {name: t.to("cpu", dtype).contiguous() for name, t in tensors.items()}, temporary, metadata={"format": "pt", **metadata}
    )
    temporary.replace(path)


def load_into(net: nn.Module, path: Path) -> None:
    """Load the weights of a file, of any precision, into a network that has exactly these names of parameters."""
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=True)


def metadata_of(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
