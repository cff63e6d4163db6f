"""Read the options of a plain network from an mmdet checkpoint, its config, and mmdet's own configs."""

from collections.abc import Mapping
from typing import Any

from understudy.checkpoints.import_options import ImportOptions, fits
from understudy.checkpoints.mmdet_config import image_scale, look_up, modernised, normalisation, recorded_names
from understudy.checkpoints.mmdet_layout import CAFFE, IMAGENET, REGNET, MMDetLayout, Setting, last_name
from understudy.checkpoints.mmdet_sizes import BackboneSizes
from understudy.detectors.build import builder_settings
from understudy.detectors.families import Family


class OptionsReader:
    """Read the options of a plain network, and collect assumptions and faults.

    Each value is the user's if given, else the config's, else that of mmdet's own config of the family. A value of
    the last kind is an assumption.

    Attributes:
        assumptions: facts that neither the user nor the file gives.
        faults: reasons why the detector cannot be built.
        caffe: backbone and images are those of Caffe's ResNets.
        rgb: the stem takes red first.
    """

    def __init__(
        self, family: Family, layout: MMDetLayout, tensors: BackboneSizes, config: Any, options: ImportOptions
    ):
        self.family, self.layout, self.tensors, self.options = family, layout, tensors, options
        self.config = None if config is None else modernised(config)
        self.sizes = layout.sizes(tensors)
        self.available = set(builder_settings(family.name, "mmdet"))
        self.assumptions: list[str] = []
        self.faults: list[str] = []
        self.caffe, self.rgb = False, True

    def build(self) -> dict[str, Any]:
        """Return the options of :func:`understudy.detectors.build.plain_network`."""
        self._check_config()
        style = self._style()
        mean, std = self._preprocessing()
        sides = self._sides()
        settings, options = self._settings(style)
        self._check_names()
        self._check_anchors(settings)
        return {
            "name": f"{self.family.name}_{self.tensors.backbone}",
            "num_classes": self.sizes["num_classes"],
            "conventions": "mmdet",
            "settings": settings,
            "neck_channels": self.tensors.neck_channels,
            "width_mult": self.tensors.width_mult,
            "norm": "frozen",
            "head_norm": self.layout.head_norm if self.tensors.group_norm else None,
            "image_mean": [value / 255 for value in mean],
            "image_std": [value / 255 for value in std],
            **sides,
            **options,
        }

    def class_names(self, meta: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the class names: the user's, the checkpoint's or its config's."""
        count = self.sizes["num_classes"]
        names, origin = self.options.classes, "--classes has"
        if names is None:
            names, origin = recorded_names(meta, self.config), "the file has names of"
        if names is None:
            hint = {80: "coco (its 80 classes)", 20: "voc (its 20 classes)"}.get(count, "cat,dog,...")
            self.faults.append(
                f"the file does not contain the names of its {count} classes: add --classes {hint} or a file of names"
            )
        elif len(names) != count:
            self.faults.append(f"{origin} {len(names)} classes, its tensors have {count}")
        return tuple(names or ())

    # --- values -------------------------------------------------------------------------------------------------------

    def _settings(self, style: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of this family, and the options that every family has."""
        from_tensors = {
            "style": style,
            "stacked_convs": self.tensors.stacked_convs,
            "conv_bias": self.tensors.conv_bias,
            **self.sizes,
            "groups": self.options.settings.get(
                "groups", look_up(self.config, "model.bbox_head.norm_cfg.num_groups", 32)
            ),
        }
        settings = {name: value for name, value in from_tensors.items() if name in self.available}
        options: dict[str, Any] = {}
        for setting in self.layout.settings:
            (settings if setting.name in self.available else options)[setting.name] = self._setting(setting)
        return settings, options

    def _setting(self, setting: Setting) -> Any:
        in_config = look_up(self.config, setting.path)
        if setting.name in self.options.settings:
            value = self.options.settings[setting.name]
        elif in_config is not None:
            value = setting.convert(in_config)
        elif self.config is not None and setting.default is not None:
            value = setting.convert(setting.default)
        else:
            value = setting.usual
            if self.tensors.conv_bias:
                value = self.layout.with_bias.get(setting.name, value)
            self._assume(f"{setting.name} is {_words(value)}", f"--set {setting.name}=...")
        if not fits(value, setting.usual) or (setting.allowed and value not in setting.allowed):
            expected = (
                f"one of {', '.join(setting.allowed)}" if setting.allowed else f"a value like {_words(setting.usual)}"
            )
            self.faults.append(f"{setting.name}: expected {expected}, got {value!r} (from --set or {setting.path})")
        return list(value) if isinstance(value, tuple) else value

    def _style(self) -> str:
        """Return the bottlenecks' style; sets ``caffe``. Basic blocks have one style, but their images may be Caffe's.

        The style decides which convolution of a bottleneck has the stride.
        """
        style = self.options.style or last_name(look_up(self.config, "model.backbone.style"))
        if style is None and self.config is not None:
            style = "pytorch"  # mmdet's default
        if style is None:
            usually_caffe = self.layout.usually_caffe and self.tensors.backbone.startswith("resnet")
            style = "caffe" if usually_caffe else "pytorch"
            if self.tensors.bottleneck:
                convolution = {"caffe": "first 1x1", "pytorch": "3x3"}[style]
                self._assume(f"bottlenecks stride in their {convolution} convolution ({style} style)", "--style")
        self.caffe = style == "caffe"
        if style not in ("caffe", "pytorch"):
            self.faults.append(f"--style: expected caffe or pytorch, got {style!r}")
        elif style == "caffe" and self.tensors.bottleneck and "style" not in self.available:
            self.faults.append(f"{self.family.title} with a caffe-style ResNet is not supported")
        return style if self.tensors.bottleneck else "pytorch"

    def _preprocessing(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of red, green and blue in 0..255; sets ``rgb``."""
        found: dict[str, Any] | None = normalisation(self.config)
        assumed = found is None
        if found is None:
            found = self._usual_normalisation()
            order = "red, green, blue" if found["bgr_to_rgb"] else "blue, green, red"
            self._assume(f"the network takes the colours as {order}", "--style")
        self.rgb = found["bgr_to_rgb"]
        values = []
        for name in ("mean", "std"):
            value = getattr(self.options, name)
            if value is None:
                value = found[name] if self.rgb else found[name][::-1]
                if assumed:
                    self._assume(f"{name} of red, green and blue is {_words(value)}", f"--{name} R,G,B")
            values.append(list(value))
        return values[0], values[1]

    def _usual_normalisation(self) -> dict[str, Any]:
        if self.tensors.backbone.startswith("regnet"):
            return REGNET
        if not self.caffe:
            return IMAGENET
        return dict(CAFFE if self.tensors.conv_bias else self.layout.caffe)

    def _sides(self) -> dict[str, int]:
        """Return the sides of images in pixels, by their names in the plain network."""
        scale = image_scale(self.config)
        sides = {}
        for name, pixels in zip(("shorter_side", "longer_side"), scale or (800, 1333), strict=True):
            sides[name] = self.options.settings.get(name, pixels)
            if name not in self.options.settings and scale is None:
                self._assume(f"{name} of images is {pixels} pixels", f"--set {name}=...")
            if not fits(sides[name], 800):
                self.faults.append(f"--set {name}: expected pixels, got {sides[name]!r}")
        return sides

    def _assume(self, fact: str, flag: str) -> None:
        self.assumptions.append(f"{fact} ({flag})")

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_config(self) -> None:
        """Compare the config with the abilities of the plain network, and with the sizes of the tensors."""
        if self.config is None:
            return
        for path, supported in self.layout.expected.items():
            value = look_up(self.config, path)
            if value is not None and not any(_plain(value) == each for each in supported):
                words = ", ".join(map(_words, supported))
                self.faults.append(f"its config has {path} = {_words(_plain(value))}; supported: {words}")
        head, tensors = self.layout.head_path, self.tensors
        found = {**self.sizes, "stacked_convs": tensors.stacked_convs}
        sizes = {f"model.backbone.{name}": size for name, size in tensors.sizes.items()}
        sizes |= {"model.neck.out_channels": tensors.neck_channels, f"{head}.num_classes": found["num_classes"]}
        sizes |= {path: found[name] for name, path in self.layout.sizes_in_config.items()}
        for path, size in sizes.items():
            value = look_up(self.config, path)
            if isinstance(value, int) and value != size:
                self.faults.append(f"its config has {path} = {value}, its tensors {size}")
        kind = last_name(look_up(self.config, f"{head}.type"))
        if kind is not None and kind != self.layout.head:
            self._assume(f"the {kind} of its config detects like a {self.layout.head}", "compare its AP with mmdet's")
        for stage in ("model.test_cfg", "model.test_cfg.rcnn"):
            if "soft" in str(nms := look_up(self.config, f"{stage}.nms.type", "")).lower():
                self._assume(f"{nms} is replaced by ordinary NMS", "--set nms_threshold=VALUE")

    def _check_names(self) -> None:
        available = {setting.name for setting in self.layout.settings} | {"shorter_side", "longer_side"}
        available |= {"groups"} & self.available
        self.faults += [
            f"--set {name}: {self.family.title} of mmdet has no such setting; available: {', '.join(sorted(available))}"
            for name in self.options.settings
            if name not in available
        ]

    def _check_anchors(self, settings: Mapping[str, Any]) -> None:
        """Check that the settings give as many anchors as the head has."""
        ratios, octaves = settings.get("ratios"), settings.get("octaves", 1)
        if not isinstance(ratios, list) or not isinstance(octaves, int):
            return
        if len(ratios) * octaves != self.sizes["anchors"]:
            names = "ratios and octaves (sizes)" if "octaves" in settings else "ratios"
            self.faults.append(
                f"its head has {self.sizes['anchors']} anchors per cell, but {len(ratios)} ratios in {octaves} sizes "
                f"are {len(ratios) * octaves}: set the {names} of its anchors by --set"
            )


def _plain(value: Any) -> Any:
    """Turn tuples into lists, and remove the modules of types, so that configs of all styles compare."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return last_name(value)


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
