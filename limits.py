"""What a model knows of rain, its accumulation period and its amounts, compared with what it is given.

Rain of 24 hours and of 24 minutes differs in texture and extremes, and a network that never saw more than 100 mm in an
LR cell can only guess below wetter ones. So a checkpoint keeps `knows`: the period of its training rain and quantiles
of its LR cells. Stages 3 and 4 refuse another period and count wetter cells; outputs, tables and pictures say both.

Reads    the attributes of NN_pre_sr.nc.

    from limits import Knowledge, said_of
    Knowledge.of(path, state).period, said_of(paths)
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metadata import Period, in_words
from utils import DataError, shown

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1)  # of the wet LR cells of a training
WET = 0.1  # mm, from which on an LR cell is wet
HEAVY, FEW = 0.99, 10  # a list is said where FEW cells or more are above this quantile,
MUCH = 3  # and over so many times as many as in training
ANY = "used with --any-period"
COUNTS = ("lr_cells", "lr_cells_wet", "lr_cells_above_99", "lr_cells_beyond_training")  # attributes that are summed

__all__ = ["Knowledge", "count_beyond", "learn", "noted", "period_words", "refuse_other", "resumed", "said", "said_of"]


@dataclass(frozen=True)
class Knowledge:
    """What a checkpoint knows: the Period of its training rain, and quantiles {level: mm} of its wet LR cells."""

    period: Period = Period()
    quantiles: dict = field(default_factory=dict)

    @classmethod
    def of(cls, path, state):
        """The Knowledge in the state of a checkpoint; unknown period and amounts in one of an earlier version.

        Raises: DataError: `knows` is not what a training writes.
        """
        knows, found = state.get("knows", {}), None
        try:
            quantiles = {float(level): float(amount) for level, amount in knows.get("lr_quantiles", {}).items()}
            amounts, hours = [quantiles[level] for level in sorted(quantiles)], knows.get("period_hours")
            period = Period(hours if hours is None else float(hours), str(knows.get("period_from", "")))
            sound = period.hours is None or 0 < period.hours < 25.5
            if sound and amounts == sorted(amounts) and all(0 <= n < math.inf for n in [*quantiles, *amounts]):
                found = cls(period, quantiles)
        except (AttributeError, TypeError, ValueError):
            pass
        if found is None:
            raise DataError(
                f"{path}: damaged: it says to know {shown(str(knows))}; expected a period of up to a day in hours and "
                "rising amounts in mm; take another checkpoint, or train again"
            )
        return found


def learn(fields, period):
    """What a training on LR fields (h, w), mm, of this Period knows, as its checkpoint keeps it.

    Returns: {"period_hours": number or None, "period_from": what says so, "lr_quantiles": {"0.5": mm, ...} of the wet
        cells, {} where all are dry}; the last is the largest amount to the last bit.
    """
    wet = np.concatenate([np.zeros(0, np.float32), *(cells[cells >= WET] for cells in fields)])  # false where missing
    quantiles = {f"{q:g}": float(np.quantile(wet, q)) for q in QUANTILES} if wet.size else {}
    return {"period_hours": period.hours, "period_from": period.source, "lr_quantiles": quantiles}


def resumed(path, state, period):
    """What the checkpoint at `path` knows, for a training that goes on with it on a list of this Period.

    Args: state: its content, or None or {} for a new training. Returns: its `knows`; {} where it has none.
    Raises: DataError: damaged, or the list has another period.
    """
    own = Knowledge.of(path, state or {}).period
    if own.differs(period):
        raise DataError(
            f"{path} learned rain of {own.words}, and the train list holds rain of {period.words}: go on with the list "
            "of its first run, or train anew without --resume"
        )
    return (state or {}).get("knows", {})


# ---------------------------------------------------------------- period


def refuse_other(name, own, given, split):
    """Raise DataError where a model of one Period is asked for rain of another; `name` stands for the model."""
    if own.differs(given):
        raise DataError(
            f"{name} learned rain of {in_words(own.hours)}, and the {split} list holds rain of {given.words}, which "
            "has other texture and extremes: take a model of this period, or use this one with --any-period"
        )


def period_words(own, given):
    """What an output says of its Period and of the model's, where they differ with ANY."""
    if own.hours and given.hours and not own.differs(given):
        return f"{in_words(given.hours)}, as in training"
    return f"{given.words}; of the model {own.words}" + f"; {ANY}" * own.differs(given)


# ---------------------------------------------------------------- amounts


def count_beyond(lr, knowledge):
    """Count the LR cells (h, w), mm, with more rain than any or than most of the training: attributes of an output.

    Returns: {} where the model's amounts are unknown.
    """
    most, heavy, cells = *map(knowledge.quantiles.get, (1.0, HEAVY)), lr[np.isfinite(lr)]
    if most is None or not cells.size:
        return {}
    often = {"training_lr_99": heavy, "lr_cells_above_99": int((cells > heavy).sum())} if heavy else {}
    return often | {
        "lr_cells": cells.size,
        "lr_cells_wet": int((cells >= WET).sum()),
        "lr_cells_beyond_training": int((cells > most).sum()),
        "lr_maximum": float(cells.max()),
        "training_lr_maximum": most,
    }


# ---------------------------------------------------------------- what outputs say


def said(attributes):
    """What tables and pictures must say of outputs, a list of sentences; [] where nothing is beyond the model.

    Args: attributes: dicts, the attributes of each output.
    """
    odd = [words for words in (attrs.get("accumulation_period", "") for attrs in attributes) if ANY in words]
    found = [f"period {words.replace(';', ',')}" for words in dict.fromkeys(odd)]
    counted = [attrs for attrs in attributes if "lr_cells_beyond_training" in attrs]
    total = {name: sum(int(attrs.get(name, 0)) for attrs in counted) for name in COUNTS}
    number = total["lr_cells_beyond_training"]
    if number:
        fields = sum(attrs["lr_cells_beyond_training"] > 0 for attrs in counted)
        where = f" in {fields} of {len(attributes)} fields" if len(attributes) > 1 else ""
        most, largest = (max(attrs[name] for attrs in counted) for name in ("training_lr_maximum", "lr_maximum"))
        found.append(
            f"{number} of {total['lr_cells']} LR cells{where} above {most:.5g} mm, the most that training had, up to "
            f"{largest:.5g}"
        )
    heavy, wet = total["lr_cells_above_99"], total["lr_cells_wet"]
    if len(attributes) > 1 and heavy >= FEW and heavy > MUCH * (1 - HEAVY) * wet:  # of one field it is its weather
        level = next(attrs["training_lr_99"] for attrs in counted if "training_lr_99" in attrs)
        found.append(
            f"{heavy} of {wet} wet LR cells ({100 * heavy / wet:.2g} %) above {level:.5g} mm, where training had 1 %"
        )
    return found


def said_of(paths):
    """What `said` makes of NN_pre_sr.nc, without reading their values."""
    import netCDF4

    attributes = []
    for path in paths:
        if Path(path).is_file():
            with netCDF4.Dataset(path) as file:
                attributes.append({name: file.getncattr(name) for name in file.ncattrs()})
    return said(attributes)


def noted(rows, paths):
    """Rows of a score table with what `said_of` outputs in the note of those that a model made.

    Args: rows: dicts of ScoreTable.rows or compare_forecasts. paths: NN_pre_sr.nc. Returns: the rows, new.
    """
    words = said_of(paths)
    if not words:
        return rows
    own = [row for row in rows if "cells" in row or any(word in row["name"] for word in ("member", "ensemble"))]
    return [
        row | {"note": "; ".join([*filter(None, [row.get("note")]), *words])} if row in own else row for row in rows
    ]
