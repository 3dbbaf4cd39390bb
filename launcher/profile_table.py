"""The report of the profile command as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launcher.columns import columns

_COLUMNS = {"halo": "halos", "gather": "keys/values", "stats": "moments", "reduce": "all-reduces", "output": "output"}
_POWERS = {"T": 12, "G": 9, "M": 6, "k": 3}


def table(report: dict[str, Any]) -> str:
    """The report for people. Units suit the largest figure of their kind; what buffers hold by kind is in the JSON."""
    rows, guided = report["rows"], report["guidance_scale"] > 1
    guidance = f"guidance {'split where ranks are even' if report['split_batch'] else 'in one batch'}"
    weights = rows[0]["weight_bytes"] / 1e6
    macs = _unit("TGM", (row["macs_per_picture"] for row in rows))
    many = _unit("Mk", (row["received_per_step_elements"] for row in rows))
    size = _unit("Mk", (sum(row["buffer_bytes"].values()) for row in rows))
    lines = [
        f"{report['model']}: UNet of {report['parameters'] / 1e6:,.0f} M parameters, {weights:,.0f} MB a device in "
        f"{report['dtype']}",
        f"{report['width']} x {report['height']}, {report['steps']} steps, {guidance if guided else 'no guidance'}; "
        f"patch: {report['mode']}, warm-up {report['warmup_steps']}",
        f"{macs}: 10^{_POWERS[macs]} MACs of the busiest device; {many}: 10^{_POWERS[many]} elements that a device "
        f"receives in the last step; {size}B: 10^{_POWERS[size]} bytes",
        "Comm.: as the paper counts, without the output; as original: with halos for everybody, as the original has it",
    ]
    if report["machine"] is not None:
        lines.append(
            "seconds: at least, on devices of {tflops:g} TFLOP/s with links of {gbps:g} Gbit/s".format(
                **report["machine"]
            )
        )
    kinds = [kind for kind in _COLUMNS if any(kind in row["received_per_step"] for row in rows)]
    header = ["method", "ranks", f"{macs}/picture", "least", f"{macs}/step"]
    header += [*(f"{many} {_COLUMNS[kind]}" for kind in kinds), f"{many} Comm.", "as original"]
    header += [f"{size}B total", f"{size}B buffers", *(["seconds"] if report["machine"] is not None else [])]
    return "\n".join([*lines, "", *columns([header, *(_cells(row, kinds, macs, many, size) for row in rows)])])


def _unit(prefixes: str, values: Iterable[float]) -> str:
    """The first of `prefixes` that the largest value reaches, or the last one."""
    largest = max(values)
    return next((prefix for prefix in prefixes if largest >= 10 ** _POWERS[prefix]), prefixes[-1])


def _cells(row: dict[str, Any], kinds: Iterable[str], macs: str, many: str, size: str) -> list[str]:
    def figure(value: float, unit: str, decimals: int) -> str:
        return f"{value / 10 ** _POWERS[unit]:,.{decimals}f}" if value else "-"

    received = row["received_per_step"]
    comm, original = row["comm_elements"], row["comm_elements_of_the_original"]
    cells = [row["parallelism"], str(row["ranks"])]
    cells += [figure(row[name], macs, 2) for name in ("macs_per_picture", "macs_per_picture_least")]
    cells.append(figure(row["macs_per_step"], macs, 3))
    cells += [figure(received.get(kind, {}).get("elements", 0), many, 2) for kind in kinds]
    cells += [figure(comm, many, 1), figure(original if original != comm else 0, many, 1)]
    cells += [figure(row["received_per_step_bytes"], size, 1), figure(sum(row["buffer_bytes"].values()), size, 1)]
    return cells + ([] if row["seconds"] is None else [f"{row['seconds']:,.2f}"])
