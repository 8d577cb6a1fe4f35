"""Starts or joins Ray for a script, and records every start of a run in its folder."""

import json
import os
from pathlib import Path
from typing import Any

import ray

from rayssl.rllib.resources import check_cluster, ensure_auth_token


def ray_address(address: str | None) -> str:
    """Returns the cluster's address: the one given, else RAY_ADDRESS, else `local`."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def start_ray(address: str) -> None:
    """Joins the cluster at this address, or starts a Ray of this machine's own for `local`.

    Raises:
      ConnectionError: with what to do, if it does not come up or does not answer.
    """
    if address not in ("local", "auto"):
        check_cluster(address)
    ensure_auth_token()
    local = {"include_dashboard": False} if address == "local" else {}
    for attempt in (1, 2):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
            return
        # Ray raises bare Exception where a busy machine starts it slowly.
        except Exception as error:
            ray.shutdown()
            if attempt == 2 or address != "local":
                raise ConnectionError(
                    f"Ray did not start at '{address}': {str(error).splitlines()[0]} Check the "
                    "address, that the cluster is up, and its token (RAY_AUTH_TOKEN_PATH)."
                ) from error


def record_start(folder: Path, new: dict[str, Any]) -> None:
    """Writes settings, command, commit and versions to settings.json; keeps every earlier start.

    Args:
      folder: of the run.
      new: `rayssl.cli.provenance` of its settings.
    """
    path = folder / "settings.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(with_starts(path, new), indent=1))
    part.rename(path)


def with_starts(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Returns `rayssl.cli.provenance` with the starts that the file at `path` has, and this one."""
    starts = json.loads(path.read_text()).get("starts", []) if path.exists() else []
    return new | {"starts": [*starts, {k: new[k] for k in ("command", "commit", "started")}]}
