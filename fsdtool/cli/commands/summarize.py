"""`fsdtool summarize`: the model, checkpoint and data that the options name, to one summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsdtool.cli.answers import TalkOptions
from fsdtool.cli.arguments import check_output, numbers, read_ids
from fsdtool.cli.command import Command
from fsdtool.cli.groups import WeightOptions
from fsdtool.cli.networks import build_model, key_values, read_checkpoint
from fsdtool.cli.options import (
    DATA_HELP,
    MODEL_HELP,
    Curvature,
    Device,
    DeviceChoice,
    IdKey,
    Labels,
    Layout,
    Missing,
    ModelArguments,
    Seed,
    SkipBad,
    Split,
    Task,
    Transform,
    Workers,
    XKey,
    YKey,
)

if TYPE_CHECKING:
    from fsdtool.data.source import DataSource

MEGABYTE = 10**6


@dataclass(frozen=True)
class KeptOptions:
    """What the summary keeps, and of which of the network's outputs and parameters."""

    components: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Groups of examples with statistics of their own. "
            "[default: one per class for classification, one for regression]",
        ),
    ] = None
    records: Annotated[
        bool, typer.Option("--records/--no-records", help="Keep a record of every training example.")
    ] = True
    record_bytes: Annotated[int, typer.Option(min=1, metavar="N", help="Bytes of gradient factors per record.")] = 1024
    statistics_budget: Annotated[
        float, typer.Option(metavar="MB", min=0, help="Largest size of the statistics, in megabytes.")
    ] = 32
    curvature: Annotated[
        Curvature | None,
        typer.Option(
            help="For influence: simulated from the statistics, or measured on the data in the pass (slower). "
            "[default: simulated, measured for token ids and the like]"
        ),
    ] = None
    input_rank: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rank kept of the covariance of large inputs.")
    ] = None
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Keep the weights in the summary; fsd needs them.")
    ] = True
    frozen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Parameters that training left alone, as 'backbone.*', beside those without requires_grad: influence "
            "leaves them out. May be repeated.",
        ),
    ] = None
    output_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which of the model's outputs: a key, a field or a number. [default: logits, or the first]",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of `fsdtool.fitting.run.summarize` of these names, in its units."""
        return {
            "components": self.components,
            "records": self.records,
            "record_bytes": self.record_bytes,
            "statistics_budget": int(self.statistics_budget * MEGABYTE),
            "curvature": self.curvature and self.curvature.value,
            "input_rank": self.input_rank,
            "keep_weights": self.weights,
            "frozen": self.frozen or (),
            "output_name": self.output_name or "",
        }


@dataclass(frozen=True)
class InputOptions:
    """How the training data are read and prepared."""

    mean: Annotated[
        str | None,
        typer.Option(metavar="M,...", help="Subtracted from the inputs: one number, or one per channel."),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(metavar="S,...", help="The inputs are divided by it: one number, or one per channel."),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Resize the shorter side of images to this and crop the centre."),
    ] = None
    channels: Annotated[
        int | None,
        typer.Option(min=1, max=4, metavar="N", help="What image files become: 1 grey, 3 RGB, 4 RGBA. [default: 3]"),
    ] = None
    transform: Transform = None
    layout: Annotated[
        Layout | None,
        typer.Option(help="Order of the input's dimensions. [default: the first that the model takes]"),
    ] = None
    x_key: XKey = None
    y_key: YKey = None
    id_key: IdKey = None
    split: Split = None
    labels: Labels = None
    ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Only the examples whose ids this file lists, one a line or a csv column id."
        ),
    ] = None
    skip_bad: SkipBad = False
    missing: Missing = None

    def scaling(self) -> dict[str, Any]:
        """The numbers of --mean and --std.  Raises FsdtoolError where they are none."""
        return {"mean": numbers(self.mean, "--mean"), "std": numbers(self.std, "--std")}

    def load(self, spec: str, task: Task | None, workers: int) -> DataSource:
        """The data that `spec` names.  Raises FsdtoolError where they cannot be read."""
        from fsdtool.data.formats.load import load_dataset
        from fsdtool.data.preprocessing import Preprocessing

        preprocessing = Preprocessing(
            **self.scaling(),
            image_size=self.image_size,
            layout=self.layout and self.layout.value.replace("-", " "),
            channels=self.channels,
            transform=self.transform,
        )
        return load_dataset(
            spec,
            task=None if task is None else task.value,
            preprocessing=preprocessing,
            x_key=self.x_key,
            y_key=self.y_key,
            id_key=self.id_key,
            split=self.split,
            labels=self.labels,
            ids=None if self.ids is None else read_ids(self.ids),
            skip_bad=self.skip_bad,
            missing=None if self.missing is None else self.missing.split(","),
            workers=workers,
        )


def summarize_command(
    context: typer.Context,
    *,
    model: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help=f"{MODEL_HELP} May be left out where the checkpoint tells it."),
    ] = None,
    checkpoint: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="The trained weights. Repeated: earlier checkpoints of the training first; the last is summarized, "
            "the others add evidence on labels.",
        ),
    ],
    data: Annotated[str, typer.Option(metavar="SPEC", help=f"The training data: {DATA_HELP}")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The summary to write.")],
    model_arg: ModelArguments = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="What the network was trained for. [default: classes or labels, as the targets and outputs are]"
        ),
    ] = None,
    kept: KeptOptions,
    inputs: InputOptions,
    device: DeviceChoice = Device.auto,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Examples computed at once. [default: what half a gigabyte holds]"),
    ] = None,
    workers: Workers = 0,
    seed: Seed = 0,
    reading: WeightOptions,
    talking: TalkOptions,
) -> None:
    """Go over the training data once and write the summary file that every other command reads.

    \b
    Example:
      fsdtool summarize --model sample_data/model.py:mlp --checkpoint sample_data/mlp.pt \\
          --data sample_data/train.npz -o summary.h5
      fsdtool summarize --model net.py:net --checkpoint epoch5.pt --checkpoint epoch15.pt \\
          --checkpoint final.pt --data train.npz -o summary.h5
    """
    talk = talking.talk(context)
    check_output(output, "--output", inputs=(*checkpoint, data))
    model_arguments = key_values(model_arg)
    inputs.scaling()

    from fsdtool.fitting.run import summarize
    from fsdtool.util.device import choose_device

    chosen = choose_device(device.value)
    *earlier, last = [read_checkpoint(path, reading, model) for path in checkpoint]
    result = summarize(
        model=build_model(model, model_arguments, last),
        checkpoint=last,
        earlier=earlier,
        data=inputs.load(data, task, workers),
        output=output,
        model_spec=model or "",
        model_arguments=model_arguments,
        device=chosen,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        command_line=context.obj.text,
        track=talk.track,
        **kept.arguments(),
    )
    talk.print_summary(f"wrote {output}", result.rows())


COMMAND = Command("summarize", summarize_command, "Go over the training data and write the summary.", place=10)
