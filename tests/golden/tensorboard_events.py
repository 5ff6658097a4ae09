"""Writes tensorboard/events.tfevents with TensorBoard's own writer; with a path, prints what that event file holds.

    pip install tensorboard==2.21.0
    python tensorboard_events.py                       # makes the fixture
    python tensorboard_events.py RUN/tensorboard/*     # reads files of ours with TensorBoard's own reader
"""

import pathlib
import sys

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

WALL_TIME = 1700000000.25


def make(path):
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        values = [Summary.Value(tag="train/loss", simple_value=2.5), Summary.Value(tag="train/learning_rate", simple_value=1e-3)]
        for event in [
            Event(wall_time=WALL_TIME, file_version="brain.Event:2"),
            Event(wall_time=WALL_TIME, step=301, session_log=SessionLog(status=SessionLog.START)),
            Event(wall_time=WALL_TIME, step=301, summary=Summary(value=values)),
        ]:
            writer.write(event.SerializeToString(deterministic=True))
        writer.flush()


def show(path):
    for event in EventFileLoader(str(path)).Load():
        kind = event.WhichOneof("what")
        values = {value.tag: value.tensor.float_val[0] for value in event.summary.value}
        print(event.step, kind, values or getattr(event, kind))


if len(sys.argv) > 1:
    for name in sys.argv[1:]:
        show(name)
else:
    make(pathlib.Path(__file__).parent / "tensorboard" / "events.tfevents")
