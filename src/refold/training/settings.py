"""How a run behaves, whatever it trains: none of it changes the result, roundings apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    """How a run behaves, whatever it trains.

    Args:
        save_minutes: the longest time without a checkpoint; there is one after each epoch.
        save_steps: also write one every so many steps; 0 for none.
        log_steps: measure one step of so many.
        workers: processes that read images.
        fsdp: whether processes shard the weights as well as each batch.
        recompute: whether blocks compute their branches again in the backward pass, which takes
            less memory and more time.
        compile: whether torch.compile compiles the network, which rounds in other places.
        cuda_graph: whether each step is launched as one CUDA graph.
    """

    save_minutes: float = 10.0
    save_steps: int = 0
    log_steps: int = 50
    workers: int = 2
    fsdp: bool = False
    recompute: bool = False
    compile: bool = False
    cuda_graph: bool = False
