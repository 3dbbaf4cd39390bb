"""The report of the benchmark command as a table for people."""

from __future__ import annotations

from typing import Any

from distri_engine.evaluation.timing import STAGES, dropped
from launcher.benchmark_rows import STOCK
from launcher.columns import columns

BUSY = 0.5  # load average of a machine that does something else besides


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    settings, machine, rows = report["settings"], report["machine"], report["rows"]
    baselines = len([row for row in rows if row["parallelism"] == STOCK])
    devices, threads = ", ".join(dict.fromkeys(machine["devices"])), machine["threads_per_rank"]
    asked = f" of {settings['test_times']}" if report["rounds"] < settings["test_times"] else ""
    rounds = f"{report['rounds']}{asked} rounds after {settings['warmup_times']} of warm-up"
    if ignored := dropped(report["rounds"], settings["ignore_ratio"]):
        rounds += f", of each row without the {ignored} fastest and the {ignored} slowest"
    lines = [
        f"{settings['model']}, {settings['width']} x {settings['height']}, {settings['steps']} steps, "
        f"{settings['scheduler']}, guidance {settings['guidance_scale']:g}, warm-up {settings['warmup_steps']}; "
        f"text to {'latents' if settings['output_type'] == 'latent' else 'PNG'}",
        f"{machine['cpu']}, {machine['cores']} cores; ranks on {devices}; "
        f"torch {machine['torch']}, diffusers {machine['diffusers']}",
        f"{rounds}; {report['took_s']:.0f} s in all",
        "seconds: medians; step, wait: ms of a steady step, and of it what the rank that waits most waits for others",
    ]
    if machine["load_average"] > BUSY:
        lines.insert(2, f"the machine was busy (load {machine['load_average']:g} before): no figures to rely on")
    if baselines:
        lines.append(
            f"x: times as fast as one rank, as {STOCK} with {threads} thread{'s' if threads > 1 else ''}"
            + (f", and as {STOCK} with {rows[1]['threads_per_rank']}" if baselines > 1 else "")
        )
    header = ["method", "mode", "guidance", "ranks", "threads", "median", "min", "max", *STAGES]
    header += ["step", "wait", "wait %", "x 1 rank", *(["x stock"] if baselines else [])]
    header += [*(["x all cores"] if baselines > 1 else []), "efficiency"]
    guided = settings["guidance_scale"] > 1
    cells = [header, *(_cells(row, baselines, guided=guided) for row in rows)]
    return "\n".join([*lines, "", *columns(cells, words=3)])


def _cells(row: dict[str, Any], baselines: int, *, guided: bool) -> list[str]:
    branches = ("split" if row["split_batch"] else "one batch") if guided else "-"
    cells = [row["parallelism"], row["mode"] or "-", branches, str(row["ranks"]), str(row["threads_per_rank"])]
    cells += [f"{row[name]:.2f}" for name in ("median_s", "min_s", "max_s")]
    cells += [f"{row['seconds'][stage]:.3f}" for stage in STAGES]
    cells += [f"{row['steady_step_ms']:.1f}", f"{row['exposed_wait_ms']:.2f}", f"{100 * row['exposed_wait_share']:.1f}"]
    cells.append(_times(row["speedup_vs_one_rank"]))
    cells += [_times(row["speedup_vs_baseline"])] if baselines else []
    cells += [_times(row["speedup_vs_baseline_all_cores"])] if baselines > 1 else []
    return [*cells, "-" if row["efficiency"] is None else f"{100 * row['efficiency']:.0f} %"]


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}"
