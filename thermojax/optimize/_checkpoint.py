"""Checkpoints of a descent: one file, a line of JSON that says what it is of and then the arrays, written all of it or nothing."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray as Key, PyTree

from thermojax._check import require

State = TypeVar("State")


def identity(descent: PyTree, owners: PyTree, key: Key) -> dict[str, Any]:
    """What tells one problem from another: names, shapes and types of what is optimised, and a hash of all numbers that are known."""
    described = jax.tree_util.tree_leaves_with_path(descent)
    leaves = [[jax.tree_util.keystr(path), list(jnp.shape(leaf)), str(jnp.result_type(leaf))] for path, leaf in described]
    return {"leaves": leaves, "numbers": _hash(owners), "key": f"{jr.key_impl(key)} {_hash(key)}"}


def save(path: str | os.PathLike, state: PyTree, problem: dict[str, Any], made: int, **told: Any) -> None:
    """Write the state of a descent, the number of steps made and what else is told, in place of what is there."""
    path = Path(path)
    arrays = io.BytesIO()
    eqx.tree_serialise_leaves(arrays, jax.tree.map(_as_numbers, state))
    digest = hashlib.sha256(arrays.getbuffer()).hexdigest()
    header = {"thermojax": "descent", "problem": problem, "made": made, "told": told, "sha256": digest}
    draft = path.with_name(f".{path.name}.draft")
    try:
        with open(draft, "wb") as file:
            file.write((json.dumps(header) + "\n").encode())
            file.write(arrays.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def restore(
    path: str | os.PathLike, problem: dict[str, Any], like: Callable[[int, dict[str, Any]], State]
) -> tuple[State, int, dict] | None:
    """The state that was saved, the number of steps made and what else was told; None if there is no file.

    Args:
        path: The file.
        problem: What it must be of.
        like: Returns a state with the shapes and types of the one that was saved, of the steps made and what was told.

    Raises:
        ValueError: if the file is no checkpoint of a descent, or of another problem.
    """
    path = Path(path)
    require(path.parent.is_dir(), "checkpoint", "be in a folder that exists", path)
    if not path.exists():
        return None
    header, content = _read(path)
    _compare(header["problem"], json.loads(json.dumps(problem)), path)
    _check_whole(header, content, path)
    made, told = header["made"], header["told"]
    state = like(made, told)
    numbers = eqx.tree_deserialise_leaves(io.BytesIO(content), jax.tree.map(_as_numbers, state))
    return jax.tree.map(_as_it_was, state, numbers), made, told


def checkpoint_steps(path: str | os.PathLike) -> tuple[int, int]:
    """Steps that the descent of a checkpoint has made, and how many it was asked to make.

    Raises:
        ValueError: if the file is no checkpoint of a descent, or damaged.
    """
    header, content = _read(Path(path))
    _check_whole(header, content, path)
    return header["made"], header["problem"]["steps"]


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and what follows it."""
    line, _, content = path.read_bytes().partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("thermojax") != "descent":
        raise ValueError(f"`checkpoint` must be a file that `fit` or `pareto` wrote, got {path}.")
    return header, content


def _check_whole(header, content, path):
    require(hashlib.sha256(content).hexdigest() == header.get("sha256"), "checkpoint", "be a whole file", path)


def _compare(found, problem, path):
    words = {
        "leaves": "other leaves to optimise, or another optimiser",
        "numbers": "other numbers in the loss or in the model",
        "key": "another `key`",
    }
    for name, value in problem.items():
        other = words.get(name, f"`{name}` = {found.get(name)!r} instead of {value!r}")
        require(found.get(name) == value, "checkpoint", "be that of the same problem", f"{path} with {other}")


def _as_numbers(leaf):
    return jr.key_data(leaf) if _is_key(leaf) else leaf


def _as_it_was(like, numbers):
    return jr.wrap_key_data(numbers, impl=jr.key_impl(like)) if _is_key(like) else numbers


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _hash(tree):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if eqx.is_array(leaf) or isinstance(leaf, np.ndarray | float | int):
            array = np.asarray(_as_numbers(leaf))
            digest.update(f"{array.shape} {array.dtype} ".encode() + array.tobytes())
    return digest.hexdigest()
