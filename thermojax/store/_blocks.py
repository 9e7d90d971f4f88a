"""Blocks of arrays in Zarr, each complete once a record of its checksums is in place."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thermojax._check import require
from thermojax.store._disk import slug, write_file

Block = Mapping[str, np.ndarray]
# A block of zeros is written like any other, so that the files do not tell whether a run was interrupted.
_CONFIG: Any = {"write_empty_chunks": True}


class Stage:
    """The blocks of one stage of a run.

    What a power cut takes away, the checksums find: only whether a record agrees with the arrays counts, so neither is forced to the disk
    before the run is finished.
    """

    def __init__(self, folder: Path, title: str):
        """The stage called `title` of the run in `folder`; nothing is written yet."""
        self.title = title
        self.group = folder / "blocks.zarr" / slug(title)
        self.records = folder / "records" / slug(title)
        self._arrays = None

    @classmethod
    def of(cls, folder: Path) -> "list[Stage]":
        """All stages that a run has begun."""
        return [cls(folder, _read(path)["title"]) for path in sorted((folder / "records").glob("*/stage.json"))]

    @property
    def count(self) -> int:
        """How many blocks it has when it is complete; zero if it has not begun."""
        return _read(self.records / "stage.json").get("count", 0)

    def begin(self, count: int) -> None:
        """Note how many blocks there are to be; blocks kept for another number are forgotten."""
        if self.count != count:
            self.forget()
            self.records.mkdir(parents=True, exist_ok=True)
            write_file(self.records / "stage.json", json.dumps({"title": self.title, "count": count}) + "\n", durable=False)

    def forget(self) -> None:
        """Remove everything: records first, so that none ever speaks of arrays that are gone."""
        self._arrays = None
        for folder in (self.records, self.group):
            if folder.exists():
                shutil.rmtree(folder)

    def recorded(self) -> dict[int, dict]:
        """The records there are, by block; one that cannot be read is none."""
        found = {int(path.stem): _read(path) for path in self.records.glob("[0-9]*.json")}
        return {index: record for index, record in sorted(found.items()) if record}

    def read(self) -> tuple[dict[int, Block], list[int]]:
        """The blocks that are whole, and the numbers of those that have a record but are not."""
        whole, damaged = {}, []
        for index, record in self.recorded().items():
            block = self._block(index, record)
            if block is None:
                damaged.append(index)
            else:
                whole[index] = block
        return whole, damaged

    def write(self, index: int, block: Block) -> None:
        """Keep one block.

        Raises:
            ValueError: if its names, shapes or types are not those of the blocks before.
        """
        arrays = self._opened(block)
        record = self.records / f"{index}.json"
        # Of a damaged block: while it is written anew, nothing is said of it.
        record.unlink(missing_ok=True)
        for name, value in block.items():
            arrays[name][index] = value
        write_file(record, json.dumps({"sha256": _sums(block)}) + "\n", durable=False)

    def _block(self, index, record) -> Block | None:
        try:
            arrays = self._existing()
            block = {name: np.asarray(arrays[name][index]) for name in record["sha256"]}
        except (KeyError, TypeError, ValueError, IndexError, FileNotFoundError):
            # A chunk of another length, metadata that is gone: Zarr and NumPy complain in many ways.
            return None
        return block if _sums(block) == record["sha256"] else None

    def _existing(self):
        import zarr

        if self._arrays is None:
            # Of arrays that exist already, this is not remembered.
            found = zarr.open_group(self.group, mode="r+").arrays()
            self._arrays = {name: array.with_config(_CONFIG) for name, array in found}
        return self._arrays

    def _opened(self, block):
        """The arrays that `block` goes into, made if there are none that fit; what else there was is forgotten."""
        wanted = {name: ((self.count, *value.shape), value.dtype) for name, value in block.items()}
        try:
            arrays = self._existing()
        except (KeyError, TypeError, ValueError, FileNotFoundError):
            arrays = {}
        found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        if found == wanted:
            return arrays
        whole, _ = self.read()
        require(not whole, "make", "return the same names, shapes and types for every block", _words(block))
        self._arrays = _create(self.group, self.title, wanted)
        return self._arrays


def _create(folder, title, wanted):
    import zarr

    folder.parent.mkdir(exist_ok=True)
    group = zarr.open_group(folder, mode="w", attributes={"title": title})
    arrays = {}
    for name, (shape, dtype) in wanted.items():
        labels = ["block", *(f"{name}_{axis}" for axis in range(len(shape) - 1))]
        arrays[name] = group.create_array(
            name,
            shape=shape,
            chunks=(1, *(max(1, n) for n in shape[1:])),
            dtype=dtype,
            dimension_names=labels,
            # Noise does not compress.
            compressors=None,
            fill_value=np.zeros((), dtype)[()],
            config=_CONFIG,
        )
    return arrays


def _sums(block: Block) -> dict[str, str]:
    described = {name: f"{value.shape} {value.dtype} ".encode() + np.ascontiguousarray(value).tobytes() for name, value in block.items()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in described.items()}


def _words(block: Block) -> str:
    return ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in block.items())


def _read(path: Path) -> dict:
    """What a file of JSON says; nothing if it cannot be read, as after a power cut."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
