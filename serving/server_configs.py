"""The configuration files of TensorFlow Serving, written: which models, how calls are merged, where the metrics are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MODELS, BATCHING, MONITORING = "models.config", "batching.config", "monitoring.config"
METRICS_PATH = "/monitoring/prometheus/metrics"
# The real server's default is 4 threads a core, and the call beyond the last is refused with RESOURCE_EXHAUSTED.
GRPC_MAX_THREADS = 128
_WAIT_MICROS = 1000
_WAITING_BATCHES = 100
_MOST_ROWS = 1024


def write_configs(
    folder: Path,
    models: list[str],
    base: str,
    enable_batching: bool = False,
    batching_parameters_file: str | Path | None = None,
) -> None:
    """Writes what `flags` names.

    Args:
        folder: where to.
        models: names, each with its version folders below base/NAME.
        base: the models' folder as the server sees it.
        enable_batching: calls of several callers are merged.
        batching_parameters_file: used instead of `batching_config`.

    Raises:
        FileNotFoundError: there is no batching_parameters_file.
        ValueError: it is given without enable_batching.
    """
    if batching_parameters_file and not enable_batching:
        raise ValueError("batching_parameters_file is used with enable_batching only.")
    (folder / MODELS).write_text(model_config(models, base), encoding="utf-8")
    (folder / MONITORING).write_text(monitoring_config(), encoding="utf-8")
    if batching_parameters_file:
        if not Path(batching_parameters_file).is_file():
            raise FileNotFoundError(f"there is no batching_parameters_file at {batching_parameters_file}.")
        # Beside the others, where a container sees it too.
        shutil.copyfile(batching_parameters_file, folder / BATCHING)
    elif enable_batching:
        (folder / BATCHING).write_text(batching_config(os.cpu_count() or 1), encoding="utf-8")


def flags(folder: str | Path, enable_batching: bool = False) -> list[str]:
    """The server's flags for the files in a folder, as the server sees it."""
    batching = ["--enable_batching=true", f"--batching_parameters_file={folder}/{BATCHING}"]
    return [
        f"--model_config_file={folder}/{MODELS}",
        f"--monitoring_config_file={folder}/{MONITORING}",
        f"--grpc_max_threads={GRPC_MAX_THREADS}",
        *(batching if enable_batching else []),
    ]


def model_config(models: list[str], base: str) -> str:
    """A ModelServerConfig in text form, for the models below the folder `base`."""
    entries = [
        f'  config {{ name: {_quoted(name)} base_path: {_quoted(f"{base}/{name}")} model_platform: "tensorflow" }}'
        for name in models
    ]
    return "\n".join(["model_config_list {", *entries, "}", ""])


def batching_config(num_batch_threads: int) -> str:
    """BatchingParameters in text form.

    Large calls are not divided (enable_large_batch_splitting): TensorFlow Serving could not put together answers that
    are as wide as the longest row of their batch.
    """
    numbers = {
        "max_batch_size": _MOST_ROWS,
        "batch_timeout_micros": _WAIT_MICROS,
        "max_enqueued_batches": _WAITING_BATCHES,
        "num_batch_threads": num_batch_threads,
    }
    return "".join(f"{name} {{ value: {value} }}\n" for name, value in numbers.items())


def monitoring_config() -> str:
    """A MonitoringConfig in text form: metrics for Prometheus on the REST port."""
    return f'prometheus_config {{ enable: true path: "{METRICS_PATH}" }}\n'


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
