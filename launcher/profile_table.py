"""The report of the profile command as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launcher.columns import columns

_COLUMNS = {"halo": "halos", "gather": "keys/values", "stats": "moments", "reduce": "all-reduces", "output": "output"}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    rows, guided = report["rows"], report["guidance_scale"] > 1
    guidance = f"guidance {'split where ranks are even' if report['split_batch'] else 'in one batch'}"
    weights = rows[0]["weight_bytes"] / 1e6
    lines = [
        f"{report['model']}: UNet of {report['parameters'] / 1e6:,.0f} M parameters, {weights:,.0f} MB a device in "
        f"{report['dtype']}",
        f"{report['width']} x {report['height']}, {report['steps']} steps, {guidance if guided else 'no guidance'}; "
        f"patch: {report['mode']}, warm-up {report['warmup_steps']}",
        "T: 10^12 MACs of the busiest device; M: 10^6 elements that a device receives in the last step; MB: 10^6 bytes",
        "Comm.: as the paper counts, without the output; as original: with halos for everybody, as the original has it",
    ]
    if report["machine"] is not None:
        lines.append(
            "seconds: at least, on devices of {tflops:g} TFLOP/s with links of {gbps:g} Gbit/s".format(
                **report["machine"]
            )
        )
    kinds = [kind for kind in _COLUMNS if any(kind in row["received_per_step"] for row in rows)]
    header = ["method", "ranks", "T/picture", "least", "T/step", *(f"M {_COLUMNS[kind]}" for kind in kinds)]
    held = [kind for kind in _COLUMNS if any(row["buffer_bytes"].get(kind) for row in rows)]
    header += ["M Comm.", "as original", "MB total", "MB buffers", *(f"of {_COLUMNS[kind]}" for kind in held)]
    header += ["seconds"] if report["machine"] is not None else []
    cells = [header, *(_cells(row, kinds, held) for row in rows)]
    return "\n".join([*lines, "", *columns(cells)])


def _cells(row: dict[str, Any], kinds: Iterable[str], held: Iterable[str]) -> list[str]:
    received = row["received_per_step"]
    cells = [row["parallelism"], str(row["ranks"])]
    cells += [f"{row[name] / 1e12:,.2f}" for name in ("macs_per_picture", "macs_per_picture_least")]
    cells.append(f"{row['macs_per_step'] / 1e12:,.3f}")
    cells += [f"{received[kind]['elements'] / 1e6:,.2f}" if kind in received else "-" for kind in kinds]
    cells += [f"{row[name] / 1e6:,.1f}" for name in ("comm_elements", "comm_elements_of_the_original")]
    cells += [f"{row['received_per_step_bytes'] / 1e6:,.1f}", f"{sum(row['buffer_bytes'].values()) / 1e6:,.1f}"]
    cells += [f"{row['buffer_bytes'].get(kind, 0) / 1e6:,.1f}" for kind in held]
    return cells + ([] if row["seconds"] is None else [f"{row['seconds']:,.2f}"])
