"""Build the network that a MODEL argument names, without downloading anything."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from refold.errors import InputError, MissingDependencyError, one_line
from refold.files import is_file, is_folder
from refold.sources.guest import PREFIX, hosted
from refold.sources.names import suggest
from refold.sources.pruned import Origin, about_pruned, is_pruned, mark_pruned, rebuilt
from refold.sources.runs import CONFIG, open_run, run_at

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMS = (
    "timm:NAME, torchvision:NAME, hf:FOLDER, path/to/file.py:factory, an .onnx or .pt2 file, the "
    "folder of a run, a pruned .safetensors file, or one of our names"
)


WEIGHTS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar", ".h5", ".hdf5")
"""Files of weights alone."""


class Built(NamedTuple):
    """A network, and what the place that it is from says of it.

    Args:
        model: in evaluation mode.
        example_inputs: inputs it was exported with.
        sizes: of one example, without the batch, which may then be any.
        about: its classes, and how images are prepared.
    """

    model: nn.Module
    example_inputs: tuple[torch.Tensor, ...] | None = None
    sizes: tuple[tuple[int, ...], ...] = ()
    about: Mapping[str, Any] = MappingProxyType({})


def is_zoo(name: str) -> bool:
    """Say whether MODEL names an architecture, and so has no trained weights of its own."""
    return name.startswith(("timm:", "torchvision:")) or name in own_names()


def brings_weights(name: str) -> bool:
    """Say whether MODEL may come with trained weights, as a factory and a saved folder may."""
    return not is_zoo(name)


def own_names() -> list[str]:
    """Return the names of our own networks."""
    from refold.models import list_models

    return list_models()


def build(
    name: str, num_classes: int | None = None, fitting: Mapping[str, int] = MappingProxyType({})
) -> Built:
    """Return the network that MODEL names, in evaluation mode.

    Args:
        name: one of `refold.list_models()`, `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`,
            `path/to/file.py:factory`, a `.pt2` path, the folder of a run of `refold train` (its
            best epoch) or `RUN/checkpoints/last`, or a `.safetensors` of `refold prune`.
        num_classes: outputs of the classifier; None for as many as it has by itself.
        fitting: options such as `in_chans` that its weights ask for, given where it takes them.

    Raises:
        InputError: if there is no such network, or it cannot be built.
        MissingDependencyError: if the zoo is not installed.
    """
    if name.lower().endswith(".pt2"):
        _refuse_classes(name, num_classes)
        return _from_exported(Path(name))
    if is_pruned(name):
        _refuse_classes(name, num_classes)
        model, example = rebuilt(Path(name), _rebuilt)
        sizes = tuple(tuple(x.shape[1:]) for x in example)
        return Built(model.eval(), sizes=sizes, about=about_pruned(Path(name)))
    if found := run_at(name):
        _refuse_classes(name, num_classes)
        model, image, about = open_run(*found)
        return Built(model.eval(), sizes=(image,), about=about)
    asked = {} if num_classes is None else {"num_classes": num_classes}
    return Built(_built(name, {**fitting, **asked}, demands=asked).eval())


def note_origin(model: nn.Module, path: Path, origin: Origin) -> None:
    """Say in a written `.safetensors` file what its network was pruned from, so that it is a MODEL.

    Args:
        model: the pruned network, whose weights the file holds.
        path: the file.
        origin: what it comes from.

    Raises:
        RefusedError: when its shape cannot be made again; the file then stays as it was.
    """
    mark_pruned(model, path, origin, _rebuilt)


def _rebuilt(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a network with those of the options that it takes: its weights show what it needs."""
    return _built(name, options, demands=())


def _built(
    name: str, options: Mapping[str, Any], *, demands: Collection[str] | None = None
) -> nn.Module:
    """Return a network; it must take the options that are demanded, all of them where None."""
    demands = tuple(options) if demands is None else demands
    options = dict(options)
    zoo, _, rest = name.partition(":")
    if zoo in _ZOOS:
        return _ZOOS[zoo](rest, **options)
    if options.pop("pretrained", False):
        raise InputError(
            f"--pretrained: no weights of {name} are published under this name; give a timm: or "
            "torchvision: network, or a file with --checkpoint"
        )
    if zoo == "hf":
        if "num_classes" in demands:
            _refuse_classes(name, options.get("num_classes"))
        _refuse_options(name, demands)
        return _from_hugging_face(Path(rest))
    if ".py:" in name:
        return _from_file(name, demands=demands, **options)
    if is_pruned(name):
        _refuse_options(name, demands)
        return rebuilt(Path(name), _rebuilt)[0]
    if found := run_at(name):
        _refuse_options(name, demands)
        return open_run(*found).model
    if name in own_names():
        from refold.models import create_model  # late, as it takes torch along

        return create_model(name, **options)
    raise InputError(_unknown_form(name))


def _refuse_classes(name: str, wanted: int | None) -> None:
    if wanted is not None:
        raise InputError(
            f"--num-classes {wanted}: {name} is a trained network, whose classes are what they "
            "are; leave the option out"
        )


def _refuse_options(name: str, demands: Collection[str]) -> None:
    if unknown := sorted(f"options.{key}" for key in {*demands} - {"num_classes"}):
        raise InputError(
            f"{name} is a trained network, which is what it is: leave {', '.join(unknown)} out"
        )


class Builder(Protocol):
    """Builds a network to train from its name, as `build_to_train` does."""

    def __call__(
        self, name: str, /, *, num_classes: int | None = None, in_chans: int, **options: Any
    ) -> Any:
        """Return the network; of published weights with the classes that it has by itself."""
        ...


def build_to_train(
    name: str, /, *, num_classes: int | None = None, in_chans: int, **options: Any
) -> nn.Module:
    """Return the network that MODEL names, fresh, for so many classes and channels.

    Args:
        name: as in `build`, but for `.pt2`, whose mode is traced in.
        num_classes: outputs of the classifier; 0 for none, None for as many as it has by itself.
        in_chans: channels of the image.
        options: of the network.

    Raises:
        InputError: if there is no such network, or it cannot be built like that.
        MissingDependencyError: if the zoo is not installed.
    """
    if name.lower().endswith(".pt2"):
        raise InputError(f"{name} is an exported program, which cannot be trained: give its source")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    wanted = {**classes, "in_chans": in_chans, **options}
    return _built(name, wanted, demands=tuple(options))


def _unknown_form(name: str) -> str:
    if name.lower().endswith(".onnx"):
        return (
            f"{name} is an ONNX file, which convert, inspect, verify, bench, prune, "
            "remove-residuals and report take; "
            "this command needs the network in PyTorch"
        )
    path = Path(name)
    if path.suffix.lower() in (".xml", *WEIGHTS) and not is_file(path):
        return f"there is no file {name!r}: give {FORMS}"
    if path.suffix.lower() == ".xml":
        return (
            f"{name} is an OpenVINO file, which is no network to fold: give what it was made from"
        )
    if path.suffix.lower() in WEIGHTS:
        run = run_at(str(path.parent))
        way = f"its run, {run[0]}, or the" if run else "the"
        return (
            f"{name} is no MODEL: of such a file weights alone are read. Give {way} network, and "
            f"the weights with --checkpoint {name}"
        )
    if name and is_folder(path):
        if run := run_at(str(path.parent)):
            return f"{name} lies in the folder of a run: give {run[0]}, or one of its files"
        if is_file(path / "config.json"):
            return f"{name} is a folder: if save_pretrained wrote it, give hf:{name}"
        return f"{name} is a folder without a run ({CONFIG} is missing): give {FORMS}"
    if name.endswith(".py"):
        return f"{name!r} names no factory: write {name}:FUNCTION, a callable returning the network"
    near = suggest(name, own_names())
    return f"{name!r} is not a MODEL: give {FORMS} (`refold models '*{name}*'` lists names){near}"


def _unknown(zoo: str, name: str, known: list[str]) -> str:
    return f"{zoo} has no network {name!r} (`refold models PATTERN` lists names)" + suggest(
        name, known
    )


def _from_timm(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(
            f"timm:{name} needs timm: run pip install 'refold[models]'"
        ) from error
    known: list[str] = timm.list_models()
    # A pretrained tag may follow the name; any other form (hf-hub:…) would reach for the network.
    if name.split(".")[0] not in known:
        raise InputError(_unknown("timm", name, known))
    try:
        with _downloading(f"timm:{name}", wanted=pretrained):
            return timm.create_model(name, pretrained=pretrained, **options)
    except InputError:
        raise
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"timm:{name} with {options}: {_brief(error)}") from error


def _from_torchvision(
    name: str, *, in_chans: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingDependencyError(
            f"torchvision:{name} needs torchvision: run pip install 'refold[models]'"
        ) from error
    known = models.list_models()
    if name not in known:
        raise InputError(_unknown("torchvision", name, known))
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    if in_chans != 3:
        raise InputError(f"torchvision:{name} takes images of 3 channels, not {in_chans}")
    config: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None, **options}
    if "weights_backbone" in accepted:  # detectors would download their backbone by default
        config["weights_backbone"] = None
    with _downloading(f"torchvision:{name}", wanted=pretrained):
        return models.get_model(name, **config)


_ZOOS: dict[str, Callable[..., nn.Module]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}


@contextmanager
def _downloading(name: str, *, wanted: bool) -> Generator[None]:
    """Say what to do where published weights cannot be had.

    Raises:
        InputError: instead of the library's own error.
    """
    try:
        yield
    except Exception as error:
        if not wanted:
            raise
        raise InputError(
            f"the published weights of {name} cannot be loaded ({_brief(error)}): if the hub "
            "cannot be reached from here, fetch them elsewhere and give the file with --checkpoint"
        ) from error


def _from_hugging_face(folder: Path) -> nn.Module:
    """Return the network, with its weights, that `save_pretrained` wrote into a folder."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"hf:{folder} needs transformers: run pip install 'refold[hf]'"
        ) from error
    if not is_file(folder / "config.json"):
        raise InputError(
            f"hf:{folder} holds no config.json: give a folder that save_pretrained wrote"
        )
    try:  # nothing is downloaded, no pickle is read and no code of the folder is run
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        known = [getattr(transformers, kind, None) for kind in config.architectures or ()]
        kind: Any = next((found for found in known if found), transformers.AutoModel)
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"hf:{folder} cannot be loaded: {_brief(error)}") from error


def _from_file(name: str, *, demands: Collection[str], **options: Any) -> nn.Module:
    """Call a factory with those of the options that it takes; it must take those demanded."""
    from torch import nn

    path_text, _, attribute = name.rpartition(":")
    path = Path(path_text)
    if not is_file(path):
        raise InputError(f"there is no file {path_text!r}: give path/to/file.py:factory")
    module = _run_file(path, name)
    with hosted(f"{name} could not be called", path):
        factory = getattr(module, attribute, None)
    if factory is None:
        public = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise InputError(f"{path} defines no {attribute!r}{suggest(attribute, public)}")
    ready = isinstance(factory, nn.Module)
    taken = {} if ready else _taken(factory, options)
    if untaken := [key for key in demands if key not in taken]:
        flags = {"num_classes": "--num-classes"}
        flag = ", ".join(flags.get(key, f"options.{key}") for key in untaken)
        raise InputError(f"{name} takes no such argument: leave {flag} out, or add it there")
    if ready:
        return factory
    with hosted(f"{name} could not be called", path):
        model = factory(**taken)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} {_returned(model)}, but must return an nn.Module")
    return model


def _returned(value: object) -> str:
    """Say what a factory returned, and what was probably meant.

    >>> _returned(None)
    'returned nothing (its last line should return the network)'
    """
    if value is None:
        return "returned nothing (its last line should return the network)"
    if isinstance(value, type):
        return f"returned the class {value.__name__} itself (call it: return {value.__name__}())"
    if isinstance(value, Mapping):
        return (
            f"returned {type(value).__name__} (if these are weights, save them, build the network "
            "and give --checkpoint)"
        )
    return f"returned {type(value).__name__}"


def _taken(factory: Any, options: dict[str, Any]) -> dict[str, Any]:
    if not options:
        return {}
    parameters = inspect.signature(factory).parameters.values()
    names = {row.name for row in parameters}
    is_open = any(row.kind is row.VAR_KEYWORD for row in parameters)
    return {name: value for name, value in options.items() if is_open or name in names}


class _AsItStands(SourceFileLoader):
    """Compiles a file each time: Python takes one that was edited within a second for the old one.

    It leaves no compiled files beside it, either.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _run_file(path: Path, name: str) -> Any:
    module_name = f"{PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _AsItStands(module_name, str(path))
    module = importlib.util.module_from_spec(spec)
    # Registered first, as for any import: dataclasses and fx look a class's module up by name.
    sys.modules[module_name] = module
    with hosted(f"{name}: {path.name} could not be run", path):
        spec.loader.exec_module(module)
    return module


def _from_exported(path: Path) -> Built:
    import torch

    from refold.exporting import described, is_compiled, quiet
    from refold.torch_versions import module_of

    if not is_file(path):
        raise InputError(f"there is no file {str(path)!r}: give {FORMS}")
    if is_compiled(path):
        raise InputError(
            f"{path} is machine code, which has no layers any more: give the network that it was "
            "made of, or a .pt2 written without --aot"
        )
    try:
        with path.open("rb") as stream, quiet():  # torch goes by a suffix in small letters
            program = torch.export.load(stream)
    except Exception as error:
        raise InputError(f"{path} is not an exported program: {_brief(error)}") from error
    model = module_of(program)
    # An exported module has its mode traced in and forbids .eval(): only the flags are missing.
    for module in model.modules():
        module.training = False
    inputs = _tensors(program.example_inputs)
    return Built(model, inputs, _sizes_of_one(program, inputs), described(path))


def _sizes_of_one(
    program: torch.export.ExportedProgram, inputs: tuple[torch.Tensor, ...] | None
) -> tuple[tuple[int, ...], ...]:
    """Return the sizes of one example, where a program takes batches of any size."""
    import torch

    given = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in given]
    if not inputs or not all(x.is_floating_point() for x in inputs):
        return ()  # numbers that mean something, such as words: those of the file are right
    if not all(x is not None and x.ndim and isinstance(x.shape[0], torch.SymInt) for x in values):
        return ()
    return tuple(tuple(x.shape[1:]) for x in inputs)


def _tensors(example_inputs: Any) -> tuple[torch.Tensor, ...] | None:
    """Return exported example inputs if they are plain positional tensors."""
    import torch

    args, kwargs = example_inputs or ((), {})
    plain = args and not kwargs and all(isinstance(value, torch.Tensor) for value in args)
    return tuple(args) if plain else None


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
