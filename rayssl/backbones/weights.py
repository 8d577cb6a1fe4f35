"""Weight files: found, downloaded, checked by hash, and read without running code in them.

Places, in this order: the path that is given; the folder RAYSSL_WEIGHTS; torch's own
`$TORCH_HOME/hub/checkpoints`; then, where the file has a published address, the network.
"""

import hashlib
import json
import os
import pickle
import re
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[\w.]+$")  # as in resnet50-0676ba61.pth
# 20240115, also with a time behind it; of 58,000 hashes of eight digits one reads so by chance.
DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d{4}|\d{6})?")
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)
CHUNK = 1 << 20  # bytes
TIMEOUT_S = 20.0  # without an answer of the server
WRAPPERS = ("network", "state_dict", "model", "state")  # {'network': {...}} and the like
NOT_PYTORCH = "it is no file that torch.save wrote"
PREFIXES = ("module.", "network.", "backbone.", "model.", "encoder.")


class MissingWeights(FileNotFoundError):  # noqa: N818 (it names what is missing)
    """A weight file is in none of the places; the text is one line that says where to get it."""


@dataclass(frozen=True)
class WeightsFile:
    """A file that a backbone needs.

    Attributes:
      name: the file's name in RAYSSL_WEIGHTS and TORCH_HOME; a hash in it is checked.
      url: published address, or None.
      where: how a person gets the file; ends the text of MissingWeights.
    """

    name: str
    url: str | None
    where: str


def find_weights(file: WeightsFile, path: Path | None = None) -> Path:
    """Returns the path of a weight file that is there; downloads it if need be.

    Args:
      file: what is looked for.
      path: the file itself, looked for nowhere else; None: the places above.
    Raises:
      MissingWeights: if it is in none of the places and cannot be downloaded.
    """
    if path is not None:
        if path.is_file():
            return path
        raise MissingWeights(f"Weight file missing: {path}. {file.where}")
    folders = weight_folders()
    for folder in folders:
        if (folder / file.name).is_file():
            return folder / file.name
    reason = ""
    if file.url is not None:
        try:
            return download(file.url, folders[-1] / file.name)
        except OSError as error:  # URLError is one
            reason = f" Downloading {file.url} failed ({getattr(error, 'reason', error)})."
    looked = " or ".join(_short(folder) for folder in folders)
    raise MissingWeights(f"Weight file missing: {file.name} in {looked}.{reason} {file.where}")


def _short(folder: Path) -> str:
    """The folder as people write it, with ~ for their home: reports that name it travel."""
    if folder.is_relative_to(Path.home()):
        return f"~/{folder.relative_to(Path.home())}"
    return str(folder)


def weight_folders() -> list[Path]:
    """Returns the folders that are searched; the last one is torch's own."""
    own = os.environ.get("RAYSSL_WEIGHTS")
    return [*([Path(own)] if own else []), Path(torch.hub.get_dir()) / "checkpoints"]


def download(url: str, target: Path) -> Path:
    """Downloads a file beside its target, checks the hash in its name, and puts it in place.

    Raises:
      OSError: without a network, or if the target cannot be written.
      ValueError: if the hash is another one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, delete=False) as part:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                while chunk := answer.read(CHUNK):
                    part.write(chunk)
            part.flush()
            _check_hash(target, file_sha256(Path(part.name)), None)
            os.chmod(part.name, 0o644)
            os.replace(part.name, target)
        except BaseException:
            os.unlink(part.name)
            raise
    return target


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def load_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Returns the tensors of a weight file by name, on the CPU, without running code in it.

    Reads PyTorch's files (both formats, `weights_only`), `.npz` (`allow_pickle=False`) and
    `.safetensors`. A state dict inside `{'network': ...}` and the like is taken out, and a prefix
    that all names share (`module.`) is taken off.

    Args:
      path: the file.
      sha256: the file's hash or the beginning of it. A hash in the file's name is checked anyway.
    Raises:
      MissingWeights: if there is no such file.
      ValueError: for another hash, a damaged file, a file that asks to run code, or one that does
        not hold tensors.
    """
    if not path.is_file():
        raise MissingWeights(f"Weight file missing: {path}. Give the path of a file that exists.")
    with path.open("rb") as handle:
        if WEB_PAGE.match(handle.read(512)):
            raise ValueError(
                f"{path} cannot be read as weights (it is a web page). Get the file itself: open "
                "the address in a browser and follow the link."
            )
    _check_hash(path, file_sha256(path), sha256)
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    found = readers.get(path.suffix, _read_torch)(path)
    return _without_prefix(_unwrapped(found, path))


def load_strictly(
    module: nn.Module, state: dict[str, Tensor], *, source: str, head: Sequence[str] = ()
) -> None:
    """Copies tensors into a module; what is missing, unexpected or of another shape is an error.

    Args:
      module: takes the values.
      state: name -> tensor, as `load_weights` returns them.
      source: the file, for the text of errors.
      head: beginnings of names of the classification layer, which the module does not have and
        which may be there or not.
    Raises:
      ValueError: with the names. Nothing is changed then.
    """
    own = module.state_dict()
    given = {k: v for k, v in state.items() if k in own or not k.startswith(tuple(head))}
    # A buffer that only counts batches: files from before PyTorch 0.4.1 lack it, nothing reads it.
    for name in [n for n in own if n.endswith("num_batches_tracked") and n not in given]:
        given[name] = own[name]
    problems = []
    for title, names in (
        ("missing", sorted(own.keys() - given.keys())),
        ("unexpected", sorted(given.keys() - own.keys())),
        (
            "of another shape",
            [
                f"{n} {tuple(given[n].shape)} instead of {tuple(own[n].shape)}"
                for n in own
                if n in given and given[n].shape != own[n].shape
            ],
        ),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"{title}: {', '.join(names[:5])}{more}")
    if problems:
        raise ValueError(
            f"{source} does not fit this network ({'; '.join(problems)}). Give the weights of "
            "this very architecture."
        )
    module.load_state_dict(given)


def hash_in_name(name: str) -> str | None:
    """Returns the beginning of a SHA-256 that a file's name holds, as in resnet50-0676ba61.pth.

    None where it holds none, or a date.
    """
    found = HASH_IN_NAME.search(name)
    return found[1] if found and not DATE.fullmatch(found[1]) else None


def _check_hash(path: Path, found: str, expected: str | None) -> None:
    in_name = hash_in_name(path.name)
    for prefix in (expected, in_name):
        if prefix and not found.startswith(prefix.lower()):
            is_named = prefix == in_name
            rename = ", or rename it if that part of its name is no hash" if is_named else ""
            raise ValueError(
                f"{path} is damaged or another file: expected a SHA-256 that starts with "
                f"{prefix[:16]}, got {found[:16]}. Delete it and get it again"
                f"{rename}."
            )


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # of other pickle protocols, before the error of our own
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|global:?|class)\s+([\w.]+)", str(error))
        if asked:
            raise ValueError(
                f"{path} is refused: it asks to run code ({asked[1]}) while it is read. Weight "
                "files hold tensors only; get this one from its publisher."
            ) from error
        # PyTorch's own text is about an argument of torch.load.
        raise _damaged(path, ValueError(NOT_PYTORCH)) from error
    except (KeyError, IndexError) as error:
        raise _damaged(path, ValueError(NOT_PYTORCH)) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        # Opened here: np.load leaves a file open that it cannot read.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            with path.open("rb") as handle:
                is_pickle = handle.read(1) == b"\x80"
            if not zipfile.is_zipfile(path) and not is_pickle:
                # NumPy takes whatever it does not know for a pickle.
                raise _damaged(path, ValueError("it is no archive of arrays")) from error
            raise ValueError(
                f"{path} is refused: it holds pickled objects, which may run code. Weight files "
                "hold numbers only."
            ) from error
        raise _damaged(path, error) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return ValueError(f"{path} cannot be read as weights ({text}). Get the file again.")


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    if not isinstance(found, dict) or not found or not all(map(torch.is_tensor, found.values())):
        raise ValueError(
            f"{path} holds no state dict: expected name -> tensor, got {type(found).__name__}."
        )
    return dict(found)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:  # twice: `module.backbone.`
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state
