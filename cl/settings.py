"""Settings of any run: `train.* eval.* checkpoint.*`, a scenario's `stream.*`, keys of no prefix.

Every field is a key of the command line; the docstrings are what `cl describe` shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types

from cl.config import Range


def _is_past_mode(text: str) -> bool:
    return re.fullmatch(r"all|own|sample:[1-9][0-9]*", text) is not None


def _is_until(text: str) -> bool:
    return re.fullmatch(r"val>=(0?\.[0-9]+|0|1|1\.0*)", text) is not None


@dataclass(frozen=True)
class Train:
    """How experiences are learned. Streams set defaults; every key can be given.

    Parameters
        epochs           passes over each experience's training data [epochs]
        updates          cap on optimizer steps per experience [updates]
        batch_size       rows per update, before a strategy adds any [rows]
        accumulate       micro-batches that one batch is split into [1]
        optimizer        sgd, adam or adamw
        lr               learning rate at the start of each experience [1]
        momentum         momentum of sgd [1]
        eps              added to the denominator of adam and adamw [1]
        fused            adam and adamw as one kernel, faster for small models; last bits differ
        weight_decay     L2 penalty (sgd, adam) or decoupled decay (adamw) [1]
        schedule         learning rate over each experience: constant, linear or cosine to 0
        warmup           updates of linear warm-up at each experience's start [updates]
        clip             largest gradient norm, after strategies changed gradients [1]
        precision        float32, or bf16 autocast in the forward pass
        augment          random changes of training images: crop, flip
        reset_optimizer  forget momentum and moments at each experience's start
        until            val>=SCORE: an experience ends at the first evaluation (eval.every) at
                         which what it teaches has that score on its validation data
    """

    epochs: Annotated[int, Range(min=1)] = 10
    updates: Annotated[int, Range(min=1)] | None = None
    batch_size: Annotated[int, Range(min=1)] = 32
    accumulate: Annotated[int, Range(min=1)] = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Range(above=0)] = 0.05
    momentum: Annotated[float, Range(min=0, below=1)] = 0.9
    eps: Annotated[float, Range(above=0)] = 1e-8
    fused: bool = False
    weight_decay: Annotated[float, Range(min=0)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[int, Range(min=0)] = 0
    clip: Annotated[float, Range(above=0)] | None = None
    precision: Literal["float32", "bf16"] = "float32"
    augment: list[Literal["crop", "flip"]] = ()
    reset_optimizer: bool = False
    until: Annotated[str, annotated_types.Predicate(_is_until)] | None = None


@dataclass(frozen=True)
class Eval:
    """When and on what scores are taken, besides the end of every experience.

    Parameters
        every       evaluate after every so many updates too [updates]
        past        past evals that are scored: all, own (none), sample:K (K drawn each time)
        batch_size  rows per forward pass [rows]
        references  environments: before the run, train each task alone in the same way, once for
                    all runs in `out`; forward transfer is measured against it
    """

    every: Annotated[int, Range(min=1)] | None = None
    past: Annotated[str, annotated_types.Predicate(_is_past_mode)] = "all"
    batch_size: Annotated[int, Range(min=1)] = 256
    references: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """When checkpoints are made, besides the end of every experience.

    They change nothing in a run. Of the two, what comes first counts.

    Parameters
        every    updates between two; none: by time alone [updates]
        minutes  time between two, more where making one takes longer than 2 % of that; none: by
                 updates alone [minutes]
    """

    every: Annotated[int, Range(min=1)] | None = None
    minutes: Annotated[float, Range(above=0)] | None = 5.0


@dataclass(frozen=True)
class Top:
    """Keys without a prefix.

    Parameters
        seed     seed of everything random; stream.seed follows it unless given
        device   auto takes cuda, else mps, else cpu; also cuda:1 and the like
        threads  CPU threads of torch; results are repeatable at equal threads [threads]
        out      folder that runs are written into
        model    name of the model; its own keys are model.*
        objective  what is minimised, of environments: ppo, dqn or cloning, whose own keys are
                 objective.*; none is what the strategy or the stream says
        probes   measurements taken after every experience, by name
        best     start from the settings that were tuned for this stream, if there are
    """

    seed: Annotated[int, Range(min=0)] = 0
    device: str = "auto"
    threads: Annotated[int, Range(min=1, max=1024)] = 1
    out: str = "runs"
    model: str | None = None
    objective: str | None = None
    probes: list[str] = ()
    best: bool = False


@dataclass(frozen=True)
class Scenario:
    """What can be done to any stream, as stream.* keys beside its own; applied in this order.

    Parameters
        imbalance        training rows of the largest class over those of the smallest [1]
        imbalance_order  the first class to arrive is the largest (ordered), or drawn (shuffled)
        shift            all classes in every experience, its inputs transformed: permute pixels,
                         rotate, noise, brightness
        domains          experiences of a shift; the first is not transformed [experiences]
        shift_max        of the last one: degrees (none: 90), or share of the range (none: 0.5)
        blurry           share of the classes that come in every experience (i-Blurry) [1]
        blurry_level     share of their training rows that is dealt to the others [1]
        cycles           visits of every experience, in turns (recurring) [visits]
        cycle_data       each visit brings the same rows, or parts of its own
        task_labels      give task labels in training and at inference (task-incremental)
        task_free        pieces that the whole sequence is cut into, whatever the boundaries
        smooth           task-free: share of an experience that mixes with its neighbours [1]
        first            the beginning of the stream: so many experiences [experiences]
        online           one pass; every batch is answered before it is learned (prequential)
    """

    imbalance: Annotated[float, Range(min=1)] = 1.0
    imbalance_order: Literal["ordered", "shuffled"] = "ordered"
    shift: Literal["permute", "rotate", "noise", "brightness"] | None = None
    domains: Annotated[int, Range(min=1)] = 5
    shift_max: Annotated[float, Range(above=0)] | None = None
    blurry: Annotated[float, Range(min=0, max=1)] = 0.0
    blurry_level: Annotated[float, Range(above=0, below=1)] = 0.1
    cycles: Annotated[int, Range(min=1)] = 1
    cycle_data: Literal["same", "parts"] = "same"
    task_labels: bool = False
    task_free: Annotated[int, Range(min=1)] | None = None
    smooth: Annotated[float, Range(min=0, max=1)] = 0.0
    first: Annotated[int, Range(min=1)] | None = None
    online: bool = False


SCHEMAS = {
    "run": Top,
    "train": Train,
    "eval": Eval,
    "checkpoint": Checkpoint,
    "scenario": Scenario,
}
