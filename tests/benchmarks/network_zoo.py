"""Which networks of public libraries are traced in full, and whether distance and influence hold on them.

    python tests/benchmarks/network_zoo.py [--only torchvision:vit_b_16,timm:...,transformers:bert] [--examples 96]

Networks of torchvision, timm and transformers (those that are installed), small ones of each family, random weights;
the data are ten blobs of colour, or texts of random words of ten topics, of which the last layer is trained to know the
class.  A row has how much is traced, the seconds of tracing and of `summarize` beside those of a forward pass over all
examples, the peak of memory, the distance of four changed checkpoints over the exact one (median, and what
`model_error` says), and the correlation of influence from records with exact gradients.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import State, noisy, print_table, pruned, quantized, state_of
from torch import Tensor, nn

from fsdtool.data.formats.load import load_dataset
from fsdtool.fitting.run import summarize
from fsdtool.fsd.drift import distances
from fsdtool.laftr.metrics import measure
from fsdtool.model.checkpoint import Checkpoint
from fsdtool.model.factory import import_torchvision
from fsdtool.network.tracing.trace import trace
from fsdtool.summary.catalogue import open_catalogue
from fsdtool.summary.reader import load

CLASSES, WORDS, LENGTH = 10, 200, 12
SIZES = {
    "inception_v3": 96,
    **dict.fromkeys(("vit_b_16", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"), 224),
    **dict.fromkeys(("mixer_s16_224", "levit_128s"), 224),
}
TORCHVISION = (
    "resnet18", "vgg11_bn", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0",
    "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "convnext_tiny", "swin_t",
    "vit_b_16",
)  # fmt: skip
TIMM = (
    "vit_tiny_patch16_224", "mixer_s16_224", "convnext_atto", "convnextv2_atto", "efficientnet_b0",
    "regnety_002", "mobilenetv3_small_100", "resnetv2_50", "resnest14d", "levit_128s", "poolformer_s12",
    "eca_resnet33ts", "ghostnet_050", "edgenext_xx_small", "fastvit_t8",
)  # fmt: skip
TRANSFORMERS = ("Bert", "Roberta", "DistilBert", "Albert", "Electra", "GPT2", "Llama")


def of_torchvision(name: str) -> nn.Module:
    """A network of torchvision."""
    return getattr(import_torchvision().models, name)(num_classes=CLASSES)


def of_timm(name: str) -> nn.Module:
    """A network of timm."""
    import_torchvision()
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES)


def of_transformers(name: str) -> nn.Module:
    """A small classifier of texts."""
    import_torchvision()
    import transformers

    sizes: dict[str, dict[str, int]] = {
        "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1},
    }
    usual = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=WORDS, num_labels=CLASSES, pad_token_id=0, **sizes.get(name, usual)
    )
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


LIBRARIES: dict[str, tuple[Callable[[str], nn.Module], tuple[str, ...]]] = {
    "torchvision": (of_torchvision, tuple(TORCHVISION)),
    "timm": (of_timm, tuple(TIMM)),
    "transformers": (of_transformers, TRANSFORMERS),
}


def data_of(library: str, name: str, examples: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels (n,) of ten classes: coloured blobs (n, 3, size, size), or word numbers (n, LENGTH)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(examples) % CLASSES
    if library == "transformers":
        topics = torch.randint(2, WORDS, (CLASSES, 20), generator=generator)
        return topics[y].gather(1, torch.randint(0, 20, (examples, LENGTH), generator=generator)), y
    size = SIZES.get(name, 64 if library == "torchvision" else 96)
    colour, place = torch.randn(CLASSES, 3, generator=generator), torch.rand(CLASSES, 2, generator=generator)
    grid = torch.linspace(0, 1, size)
    near = torch.exp(-20 * ((grid[:, None] - place[y, 0, None, None]) ** 2 + (grid - place[y, 1, None, None]) ** 2))
    x = near[:, None] * colour[y][:, :, None, None] + 0.3 * torch.randn(examples, 3, size, size, generator=generator)
    return x, y


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (n, CLASSES)."""
    with torch.no_grad():
        found = [model(part) for part in x.split(16)]
    return torch.cat([part if isinstance(part, Tensor) else part.logits for part in found])


def learned(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Scales and shifts away from 1 and 0, statistics of batch norm from x, outputs with the spread of a classifier's.

    Random networks answer alike to all; their last layer is set to the least squares fit of the classes.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum, _ = None, module.train()
        outputs(model, x)
        model.eval()
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
        if not head:
            return
        seen: list[Tensor] = []
        handle = head[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(1)))
        outputs(model, x)
        handle.remove()
        features = torch.cat(seen)
        if features.shape == (len(x), head[0].in_features):
            centred = features - features.mean(0)
            target = 4 * (nn.functional.one_hot(y, CLASSES) - 1 / CLASSES)
            gram = centred.T @ centred
            weight = torch.linalg.solve(gram + gram.diagonal().mean() * torch.eye(len(gram)), centred.T @ target).T
            head[0].weight.copy_(weight)
            if head[0].bias is not None:
                head[0].bias.copy_(-weight @ features.mean(0))


def row(library: str, name: str, examples: int) -> dict[str, object]:
    """What is found on one network."""
    torch.manual_seed(0)
    model = LIBRARIES[library][0](name).eval()
    x, y = data_of(library, name, examples)
    learned(model, x, y)
    reference = state_of(model)
    started = time.perf_counter()
    exact_outputs = outputs(model, x)
    forward = time.perf_counter() - started
    started = time.perf_counter()
    network = trace(model, x[:4])
    traced = time.perf_counter() - started
    found: dict[str, object] = {"network": f"{library}:{name}", "mode": network.mode, "steps": len(network.graph.steps)}
    found |= {"forward": forward, "trace": traced}
    if network.mode != "full":
        return {**found, "summarize": 0.0, "memory": 0.0, "ratio": 0.0, "model error": 0.0, "influence": 0.0}
    others = {
        "noise": noisy(reference, 0.02, seed=0),
        "more noise": noisy(reference, 0.1, seed=1),
        "8 bits": quantized(reference, 8),
    }
    others["pruned"] = pruned(reference, 0.2)
    exact = {other: _exact(model, state, x, exact_outputs) for other, state in others.items()}
    model.load_state_dict(reference)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, x=x.numpy(), y=y.numpy())
        started = time.perf_counter()
        output = Path(folder) / "summary.h5"
        summarize(
            model=model,
            checkpoint=Checkpoint("reference", "", reference, ()),
            data=load_dataset(str(path)),
            output=output,
        )
        seconds = time.perf_counter() - started
        with load(output) as summary:
            states = [Checkpoint(other, "", state, ()) for other, state in others.items()]
            distance = distances(summary, states, metric="squared_error").found
        with open_catalogue(output) as catalogue:
            calibrated = catalogue.influence
    ratios = [d.distance / exact[other] for d, other in zip(distance, others, strict=True)]
    return {
        **found,
        "summarize": seconds,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "ratio": float(np.median(ratios)),
        "model error": distance[0].model_error or 0.0,
        "influence": 0.0 if calibrated is None else calibrated.correlation,
    }


def _exact(model: nn.Module, state: State, x: Tensor, before: Tensor) -> float:
    model.load_state_dict(state)
    return float(measure("squared_error", before, outputs(model, x)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [f"{library}:{name}" for library, (_, names) in LIBRARIES.items() for name in names]
    parser.add_argument("--only", default=",".join(everything), help="networks, separated by commas")
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--csv", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("fsdtool").setLevel(logging.ERROR)
    rows = []
    for spec in options.only.split(","):
        library, _, name = spec.partition(":")
        try:
            rows.append(row(library, name, options.examples))
        except ImportError as error:
            print(f"{spec} is left out: {error}")
        else:
            print(rows[-1], flush=True)
    print_table(rows, options.csv)


if __name__ == "__main__":
    main()
