"""Models larger than a device: the blocks of the backbone spread over GPUs, host memory and disk, by accelerate.

Only blocks are spread. Embedding, head, norm, tower and projector stay on one device, the main one: they are small beside the
blocks and are used in more ways than by their forward. A block on another GPU runs there; one in host memory or on disk is
brought to the main device for its turn, in every forward, and let go again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.checkpoints.keymap import Weight
from vlm.checkpoints.shards import Stored
from vlm.errors import OptionError

BLOCKS = "backbone.blocks."
DISK = "disk"
#: Share of a device's free memory that is left for activations and caches when the caller gives no limits.
RESERVE = 0.1

DeviceMap = str | Mapping[str, int | str]


@dataclass
class Placement:
    """Where the parameters of a model go, and what of it lies on disk.

    Attributes:
        main: device of everything but blocks, and where blocks of host memory and disk are run.
        blocks: of each block, its device; None is the disk. folder: for what must be written there.
        index: of accelerate's ``OffloadedWeightsLoader``, by parameter, filled while loading.
    """

    main: torch.device
    blocks: tuple[torch.device | None, ...]
    folder: Path
    index: dict[str, dict[str, Any]] = field(default_factory=dict)

    def home(self, name: str) -> torch.device | None:
        """Device of a parameter, None for the disk."""
        if not name.startswith(BLOCKS):
            return self.main
        return self.blocks[int(name[len(BLOCKS) :].split(".")[0])]

    def refer(self, weight: Weight, stored: Stored, shape: torch.Size, dtype: torch.dtype) -> bool:
        """Leave a parameter where it is, in its checkpoint; False if it is not stored in one piece, or in another type."""
        if len(weight.parts) > 1 or stored.shape != tuple(shape) or stored.dtype != dtype:
            return False
        self.index[weight.name] = {"safetensors_file": str(stored.file), "weight_name": stored.key, "dtype": str(dtype).removeprefix("torch.")}
        return True

    def spill(self, name: str, tensor: Tensor) -> None:
        """Write a parameter to the folder."""
        from accelerate.utils import offload_weight

        offload_weight(tensor, name, str(self.folder), self.index)

    def attach(self, model: nn.Module) -> None:
        """Have the blocks run where they are, or be fetched for their turn; the parameters are in place."""
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module
        from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset

        on_disk = OffloadedWeightsLoader(save_folder=str(self.folder), index=self.index) if self.index else None
        for i, where in enumerate(self.blocks):
            block: nn.Module = model.backbone.blocks[i]  # type: ignore[union-attr, index, assignment]
            if where == self.main:
                continue
            if where is None or where.type == "cpu":
                kept = None if where is not None else PrefixedDataset(on_disk, f"{BLOCKS}{i}.")
                hook: Any = AlignDevicesHook(self.main, offload=True, weights_map=kept, place_submodules=True)
            else:
                hook = _elsewhere(where)
            add_hook_to_module(block, hook)

    def summary(self) -> str:
        """How many blocks are where, in words; '' if all are on the main device."""
        counts: dict[str, int] = {}
        for where in self.blocks:
            name = DISK if where is None else str(where)
            counts[name] = counts.get(name, 0) + 1
        if set(counts) == {str(self.main)}:
            return ""
        spread = ", ".join(f"{count} on {name}" for name, count in counts.items())
        return f"the {len(self.blocks)} blocks are spread: {spread}; all else is on {self.main}"


def _elsewhere(where: torch.device) -> Any:
    """A hook for a block that has its own GPU: its input comes over, the states go back; keys and values stay with it."""
    from accelerate.hooks import ModelHook
    from accelerate.utils import send_to_device

    class Elsewhere(ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            self.back = args[0].device
            return send_to_device(args, where), send_to_device(kwargs, where)

        def post_forward(self, module: nn.Module, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            return output[0].to(self.back), output[1], output[2]

    return Elsewhere()


def place(
    model: nn.Module, device_map: DeviceMap, *, dtype: torch.dtype, device: torch.device | None = None,
    max_memory: Mapping[int | str, int | str] | None = None, offload_folder: str | Path | None = None,
) -> Placement:  # fmt: skip
    """Decide where the blocks of a model on the meta device go.

    Args:
        device_map: 'auto' fills GPUs, then host memory, then the disk (accelerate's ``infer_auto_device_map``); or devices by
            module name, the longest prefix counts: ``{"": 0, "backbone.blocks.20": "cpu", "backbone.blocks.21": "disk"}``.
        dtype: of the parameters to come. device: the main one; by default the first GPU of the map, else the CPU.
        max_memory: for 'auto', by device (``{0: "20GiB", "cpu": "30GiB"}``); by default what is free, less a tenth.
        offload_folder: made if absent; a temporary folder by default, which goes with the model.

    Raises:
        OptionError: accelerate is missing, a device or module that is none, a map that splits more than blocks.
    """
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise OptionError("device_map needs the package accelerate", remedy="pip install 'diffusion-vlm[accelerate]', or name one device") from error
    blocks = getattr(getattr(model, "backbone", None), "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise OptionError("this model has no blocks that a device_map could spread", remedy="name one device")
    if device_map == "auto":
        main, places = _auto(model, blocks, dtype, device, max_memory)
    elif isinstance(device_map, str):
        raise OptionError(f"device_map is {device_map!r}", remedy="use 'auto', or devices by module name")
    else:
        main, places = _by_name(model, len(blocks), device_map, device)
    folder = Path(offload_folder) if offload_folder is not None else Path(_temporary(model)) if None in places else Path()
    if None in places:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(f"cannot be made ({error.strerror or error})", source=str(folder), remedy="name another offload_folder") from error
    return Placement(main, places, folder)


def _temporary(model: nn.Module) -> str:
    """A folder that is removed with the model."""
    holder = tempfile.TemporaryDirectory(prefix="diffusion-vlm-offload-")
    model._offload_folder = holder  # type: ignore[assignment]
    return holder.name


def _accelerator() -> str:
    """What a bare number is a number of."""
    current = torch.accelerator.current_accelerator()
    return "cuda" if current is None else current.type


def as_device(name: int | str) -> torch.device | None:
    """The device of a name or GPU number, None for 'disk'; raises OptionError."""
    if name == DISK:
        return None
    try:
        found = torch.device(_accelerator(), name) if isinstance(name, int) else torch.device(name)
        return torch.device(found.type, 0) if found.index is None and found.type != "cpu" else found
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"there is no device {name!r}", remedy="use a GPU's number, 'cuda:N', 'cpu' or 'disk'") from error


def _by_name(model: nn.Module, count: int, device_map: Mapping[str, int | str], device: torch.device | None) -> tuple[torch.device, tuple[Any, ...]]:
    known = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    unknown = sorted(set(device_map) - known)
    if unknown:
        raise OptionError(f"device_map names {unknown[0]!r}, which is no module of the model", remedy=f"for example '{BLOCKS}0'")
    devices = {name: as_device(where) for name, where in device_map.items()}
    rest = {name: where for name, where in devices.items() if not f"{name}.".startswith(BLOCKS) and name != ""}
    cards = [d for d in devices.values() if d is not None and d.type != "cpu"]
    main = device or devices.get("") or next(iter(rest.values()), None) or next(iter(cards), torch.device("cpu"))
    for name, where in rest.items():
        if where != main:
            raise OptionError(f"device_map puts {name} on {where or DISK}, and all but blocks stays on {main}", remedy=f"spread only '{BLOCKS}N'")

    def of(block: str) -> torch.device | None:
        matching = [name for name in devices if name == "" or f"{block}.".startswith(f"{name}.")]
        if not matching:
            raise OptionError(f"device_map says nothing of {block}", remedy="add '' for all that is not named")
        return devices[max(matching, key=len)]

    return main, tuple(of(f"{BLOCKS}{i}") for i in range(count))


def _auto(
    model: nn.Module, blocks: nn.ModuleList, dtype: torch.dtype, device: torch.device | None, max_memory: Mapping[int | str, int | str] | None
) -> tuple[torch.device, tuple[Any, ...]]:
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_max_memory

    try:
        budget = get_max_memory(dict(max_memory) if max_memory is not None else None)
    except ValueError as error:
        raise OptionError(f"max_memory is wrong: {error}", remedy='for example {0: "20GiB", "cpu": "30GiB"}') from error
    if max_memory is None:
        budget = {where: int(size * (1 - RESERVE)) for where, size in budget.items()}
    chosen = next((where for where in budget if where not in ("cpu", DISK)), "cpu")
    main = device or as_device(chosen) or torch.device("cpu")
    inside = sum(p.numel() for p in blocks.parameters())
    core = (sum(p.numel() for p in model.parameters()) - inside) * dtype.itemsize
    key = next((where for where in budget if as_device(where) == main), None)
    if key is None or budget[key] <= core:
        raise OptionError(f"{main} has no room for what is not blocks ({core / 1e9:.2f} GB)", remedy="raise max_memory, or use a smaller dtype")
    budget[key] -= core
    found = infer_auto_device_map(blocks, budget, no_split_module_classes=[type(blocks[0]).__name__], dtype=dtype, clean_result=False)
    return main, tuple(as_device(found[str(i)]) for i in range(len(blocks)))
