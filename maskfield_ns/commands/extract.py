"""``maskfield extract``."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from maskfield_ns import compat
from maskfield_ns.errors import MaskfieldError


def extract(
    data: Path,
    method: str | None,
    cache_dir: Path | None,
    proposer: str,
    embedder: str,
    dataparser: str | None = None,
    dataparser_options: Sequence[str] = (),
    missing_images: Literal["refuse", "skip"] = "refuse",
) -> None:
    """Builds the mask cache that ``ns-train METHOD --data DATA`` will read, and says how to use it.

    Args:
        data: capture folder, or its transforms.json; with another dataparser what that one takes.
        method: name of a registered method; its foundation models are used. None: :func:`usual_method`.
        cache_dir: folder of the cache; None: inside the capture.
        proposer: kind of proposer (:mod:`maskfield_ns.foundation.registry`), or "preset" for the method's own.
        embedder: kind of embedder (same module), or "preset".
        dataparser: name of a dataparser, as ns-train knows it; None: the method's own.
        dataparser_options: options of it, as a user would type them after its name.
        missing_images: what happens to frames whose image file does not exist.

    Raises:
        MaskfieldError: no such method or dataparser; a broken capture or scene; weights that cannot be had; a
            cache that cannot be written.
    """
    if method is None:
        method, reason = usual_method()
        print(f"masks and embeddings for {method} ({reason}); another method: --method NAME")
    config = method_config(method)
    from maskfield_ns.data import mask_source

    settings = config.pipeline.datamanager
    settings.data, settings.cache_dir = data, cache_dir
    settings.proposer_kind, settings.embedder_kind = proposer, embedder
    settings.dense_maps = config.pipeline.model.system.needs().dense
    settings.missing_images = missing_images
    if dataparser is not None:
        settings.dataparser = dataparser_config(dataparser, dataparser_options)
    report = mask_source.extract(settings, config.machine.device_type)
    command = ["ns-train", method, "--data", str(data)]
    for flag, value, default in (
        ("cache-dir", cache_dir, None),
        ("proposer-kind", proposer, "preset"),
        ("embedder-kind", embedder, "preset"),
        ("missing-images", missing_images, "refuse"),
    ):
        if value != default:
            command += [f"--pipeline.datamanager.{flag}", str(value)]
    command += [] if dataparser is None else [dataparser, *dataparser_options]
    print(f"cache: {report.folder}\ntrain with it: {shlex.join(command)}")


def usual_method() -> tuple[str, str]:
    """The method that this machine is meant for, and why."""
    if compat.default_device_type() == "cuda":
        return "maskfield-splat", "torch can use CUDA"
    return "maskfield-splat-lite", "torch cannot use CUDA"


def dataparser_config(name: str, options: Sequence[str] = ()) -> Any:
    """A dataparser's config as ns-train makes it of the words after the method's options.

    Words that are no options of it end the process as tyro does, with a message and exit code 2.

    Raises:
        MaskfieldError: nerfstudio knows no such dataparser.
    """
    import tyro
    from nerfstudio.configs.dataparser_configs import all_dataparsers

    if name not in all_dataparsers:
        raise MaskfieldError(f"there is no dataparser {name!r}; there are {', '.join(sorted(all_dataparsers))}")
    return tyro.cli(
        type(all_dataparsers[name]),
        default=copy.deepcopy(all_dataparsers[name]),
        args=list(options),
        prog=f"maskfield extract --data DATA {name}",
        # As ns-train: switches take True or False.
        config=(tyro.conf.SuppressFixed, tyro.conf.FlagConversionOff),
    )


def method_config(name: str) -> Any:
    """A copy of a method's trainer config, to be changed freely.

    Args:
        name: of a method of this package, or of another package's whose datamanager derives from one of ours.

    Raises:
        MaskfieldError: there is no such method, or it has no masks.
    """
    from nerfstudio.plugins.types import MethodSpecification

    from maskfield_ns import configs

    known = {
        str(spec.config.method_name): spec for spec in vars(configs).values() if isinstance(spec, MethodSpecification)
    }
    if name in known:
        return copy.deepcopy(known[name].config)
    from nerfstudio.configs.method_configs import all_methods

    from maskfield_ns.data.mask_source import MaskSourceConfig

    config = all_methods.get(name)
    if config is None or not isinstance(config.pipeline.datamanager, MaskSourceConfig):
        what = "there is no method" if config is None else "no masks are made for the method"
        raise MaskfieldError(f"{what} {name!r}; methods with mask fields: {', '.join(sorted(known))}")
    return copy.deepcopy(config)
