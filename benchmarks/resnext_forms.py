"""ResNeXt-50 32x4d in its three equivalent forms, as they train and as they fold, in one run.

    python benchmarks/resnext_forms.py [--rounds 20] [--size 224] [--runtime eager ...]

The three networks hold the same numbers: form (c)'s tensors, cut into 32 paths for (a) and (b).
All that is timed is equal to form (c) (the error is printed), and the models take turns, so that
what slows the machine for a moment slows all of them alike.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import refold
from refold.bench import benchmark
from zoo.live import enliven

FORMS = {"a": "_paths", "b": "_concat", "c": ""}
PATHS = 32


def main() -> None:
    """Print layers, parameters, the error against form (c), and the table of times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runtime", nargs="+", default=["eager", "onnxruntime"])
    options = parser.parse_args()
    x = torch.randn(1, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    models = forms(x)
    with torch.no_grad():
        wanted = models["c"](x)
        for name, model in models.items():
            error = ((model(x) - wanted).abs().max() / wanted.abs().max()).item()
            layers = sum(isinstance(part, nn.Conv2d) for part in model.modules())
            size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            print(f"{name:9} {layers:5} convolutions  {size:.2f} M parameters  error {error:.1e}")
    print(benchmark(models, x, options.runtime, rounds=options.rounds))


def forms(x: Tensor) -> dict[str, nn.Module]:
    """Return the forms as they train (in eval mode) and folded, all of one function."""
    torch.manual_seed(0)
    grouped = enliven(refold.create_model("resnext50_32x4d").eval(), (x,))
    found: dict[str, nn.Module] = {}
    for form, suffix in FORMS.items():
        model = refold.create_model(f"resnext50_32x4d{suffix}").eval()
        model.load_state_dict(cut(grouped.state_dict(), form))
        found[form] = model
    return found | {f"{form} folded": refold.reparameterize(m, x) for form, m in found.items()}


def cut(state: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """Return form (c)'s tensors as another form names them: the article's equivalence."""
    if form == "c":
        return state
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        block, _, layer = key.rpartition(".")[0].rpartition(".")
        role = key.rpartition(".")[2]
        columns = layer == "conv3" and form == "a"
        if block.startswith("layer") and (columns or layer in ("conv1", "conv2", "bn1", "bn2")):
            whole = [tensor] * PATHS  # the counter of batches belongs to every path
            parts = tensor.chunk(PATHS, int(columns)) if tensor.ndim else whole
            for place, part in enumerate(parts):
                found[f"{block}.paths.{place}.{layer}.{role}"] = part.clone()
        else:
            found[key] = tensor
    return found


if __name__ == "__main__":
    main()
