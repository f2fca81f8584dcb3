"""TensorBoard's view of a comparison: every arm a run, its curves with bands, one layout over all.

In `<out>/tensorboard/`, `comparison` holds the pictures and the layout (tab Custom Scalars),
`<stream>/<arm>` the curves of an arm: mean, low and high, the x-axis experiences. Written by
TensorBoard's own event writer, without torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from cl.comparison.curves import over_experiences
from cl.comparison.measured import Table
from cl.folder import slug

CURVES = ("plasticity", "stability", "seen_accuracy", "past_accuracy")
ALL = "comparison"  # the run that holds pictures and layout
BOUNDS = {"mean": "", "low": "_low", "high": "_high"}


def write_events(
    folder: Path, tables: Sequence[Table], images: dict[str, tuple[bytes, int, int]]
) -> None:
    """images: {tag: (PNG, width, height)}."""
    for table in tables:
        for arm in table.arms:
            place = folder / slug(table.section.title) / slug(arm.label)
            _write(place, [v for name in CURVES for v in _curve(table, arm, name)])
    values = [_layout(tables), *(_image(tag, *image) for tag, image in images.items())]
    _write(folder / ALL, [(Summary(value=[value]), 0) for value in values])


def tag_of(table: Table, name: str) -> str:
    """Of a curve; streams have tags of their own, so that none is drawn over another's."""
    return f"{table.section.title}/{name}"


def _curve(table: Table, arm, name: str) -> list[tuple[Summary, int]]:
    """Its points and those of its band, by experience; undefined ones are left out."""
    curve = over_experiences(arm, name)
    found = []
    for part, suffix in BOUNDS.items():
        values = getattr(curve, part)
        for i in np.flatnonzero(np.isfinite(values)).tolist():
            value = Summary.Value(tag=tag_of(table, name) + suffix, simple_value=float(values[i]))
            found.append((Summary(value=[value]), i))
    return found


def _layout(tables: Sequence[Table]) -> Summary.Value:
    """As the plug-in's own `summary.pb`, which needs TensorFlow, would make it."""
    layout = layout_pb2.Layout(category=[_category(table) for table in tables])
    data = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[layout.SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    about = SummaryMetadata(plugin_data=data)
    return Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=about)


def _category(table: Table) -> layout_pb2.Category:
    """A chart for each curve that overlays all arms with their bands."""
    charts = []
    for name in reversed(CURVES):  # TensorBoard shows the last one first
        tag = tag_of(table, name)
        series = layout_pb2.MarginChartContent.Series(
            value=tag, lower=tag + BOUNDS["low"], upper=tag + BOUNDS["high"]
        )
        margin = layout_pb2.MarginChartContent(series=[series])
        charts.append(layout_pb2.Chart(title=f"{name} over experiences", margin=margin))
    return layout_pb2.Category(title=table.section.title, chart=charts)


def _image(tag: str, png: bytes, width: int, height: int) -> Summary.Value:
    image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=4)
    return Summary.Value(tag=tag, image=image)


def _write(folder: Path, summaries: Iterable[tuple[Summary, int]]) -> None:
    writer = EventFileWriter(str(folder))
    for summary, step in summaries:
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()
