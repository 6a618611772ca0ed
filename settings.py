"""All settings of training and network: each field with its help, bounds and choices, and the recipes.

Reads and writes  nothing. torch is not loaded: --help answers at once.

    train, shape = TrainConfig(batch=8), GeneratorConfig(scale=40)
    add_settings(parser, TrainConfig)                 # an option for each field that has a group
"""

import argparse
import dataclasses
import itertools
import operator

from utils import MANY, DataError

# fmt: off
__all__ = [
    "GeneratorConfig", "LENGTH", "LOSSES", "NETWORK", "RECIPE", "RECIPES", "SetField", "TRANSFORMS", "TrainConfig",
    "YOUR_DATA", "add_settings", "check_settings", "given", "option", "prime_factors",
]
# fmt: on


def option(default, words, *, group=None, choices=(), low=None, high=MANY, joined=False, **argparse_words):
    """A field of a settings dataclass: its default, its help, its bounds, and the group of options it is listed under.

    Args: group: heading in --help; None: a setting that only recipes and rules change. choices: allowed values.
        low, high: bounds of a number, or of each number of a tuple. joined: several choices may be joined by "+".
        argparse_words: what add_argument needs besides.
    """
    about = {"help": words, "group": group, "choices": tuple(choices), "low": low, "high": high, "joined": joined}
    return dataclasses.field(default=default, metadata={**about, "argparse": argparse_words})


def check_settings(settings):
    """Check every field of a settings dataclass against the choices and bounds of its `option`.

    Raises: DataError: names the option, its value and what is expected.
    """
    for item in dataclasses.fields(settings):
        value, about = getattr(settings, item.name), item.metadata
        shown = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
        name = f"--{item.name.replace('_', '-')} " if about.get("group") else f"--set {item.name}="
        if about.get("choices"):
            for word in value.split("+") if about["joined"] else [value]:
                if word not in about["choices"]:
                    known = ", ".join(filter(None, about["choices"]))
                    raise DataError(f"{name}{word}: expected one of {known}")
        if isinstance(item.default, bool) and not isinstance(value, bool):
            raise DataError(f"{name}{shown}: expected True or False")
        low, high = (about.get(end) for end in ("low", "high"))
        for number in value if isinstance(value, (tuple, list)) else [value]:
            if low is not None and not low <= number <= high:  # false for NaN too
                raise DataError(f"{name}{shown}: expected {low:g} to {high:g}")


def add_settings(parser, cls, *, shown=()):
    """Add the fields of a settings dataclass that have a group as options; those not typed are absent from the result.

    Args: parser: ArgumentParser; groups are made in it as needed. shown: {field: words that stand for its default}.
    """
    groups = {group.title: group for group in parser._action_groups}
    for item in dataclasses.fields(cls):
        about, default = item.metadata, item.default
        if not about.get("group"):
            continue
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            kind = {"nargs": "+", "type": int, "metavar": "N"}
        else:
            kind = {"type": type(default), "metavar": {int: "N", float: "X", str: "NAME"}[type(default)]}
        text = dict(shown).get(item.name, " ".join(map(str, default)) if isinstance(default, tuple) else default)
        groups[about["group"]].add_argument(
            f"--{item.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{about['help']} (default: {text})",
            **{**kind, **about["argparse"]},
        )


class SetField(argparse.Action):
    """--set NAME=VALUE ...: fields of settings dataclasses, also those without an option, as if they had one.

    Args: settings: the dataclasses. A tuple's numbers stand between commas.
    """

    def __init__(self, *args, settings, **words):
        super().__init__(*args, nargs="+", metavar="NAME=VALUE", default=argparse.SUPPRESS, **words)
        self.known = {item.name: item for cls in settings for item in dataclasses.fields(cls)}

    def __call__(self, parser, namespace, values, option_string=None):
        for word in values:
            name, _, text = word.partition("=")
            if name not in self.known or name.endswith(("_parameters", "_shape", "_fields", "scale")):
                parser.error(f"--set {word}: expected NAME=VALUE, NAME one of {', '.join(sorted(self.known))}")
            default = self.known[name].default
            try:
                if isinstance(default, bool):
                    value = {"true": True, "false": False}[text.lower()]
                elif isinstance(default, tuple):
                    value = tuple(type((default or (0,))[0])(part) for part in text.split(","))
                else:
                    value = type(default)(text)
            except (KeyError, ValueError):
                parser.error(f"--set {word}: expected a value like {name}={default}")
            setattr(namespace, name, value)


def given(args, cls):
    """{field: value} of the fields of a settings dataclass that were typed."""
    return {item.name: getattr(args, item.name) for item in dataclasses.fields(cls) if hasattr(args, item.name)}


NETWORK, RECIPE, LENGTH = "the network", "how it learns", "how long it trains"  # headings of stage 2's --help
YOUR_DATA = "your data"
LOSSES = ("crps", "mse", "l1", "vgg")
TRANSFORMS = ("log", "minmax", "zscore", "decimal", "mean", "binarise", "mean_over_max")


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Everything that decides a generator's weights and output; plain values, stored in the checkpoint by asdict().

    Empty tuples stand for a rule of models.py: fewer features, and fewer residual blocks, where pixels are many.
    """

    # fmt: off
    scale: int = option(100, "HR pixels along an LR cell", low=2, high=10_000)
    channels: int = option(32, "number of features at the LR grid", group=NETWORK, low=1, high=4096)
    blocks: int = option(4, "residual blocks at the LR grid", group=NETWORK, low=0, high=256)
    stage_channels: tuple = option((), "features of each upsampling stage", low=1, high=4096)
    stage_blocks: tuple = option((), "residual blocks of each stage, one number for each prime factor of the scale, "
        "the largest first", group=NETWORK, low=0, high=256)
    noise_channels: int = option(2, "random fields joined at each grid; 0: one field without randomness (SRResNet)",
        group=NETWORK, low=0, high=4096)
    noise_scale: tuple = option((1.0, 1.0), "factors of the noise in use, TrainConfig.noise_in_use or what was fitted",
        low=0, high=10)
    directed: bool = option(True, "lay the noise along lines, too, that follow a flow (models.DirectedNoise)")
    norm: str = option("none", "none, or batch for batch normalisation (it disturbs amounts)",
        choices=("none", "batch"))
    activation: str = option("leakyrelu", "of the layers at LR", choices=("prelu", "relu", "leakyrelu", "tanh"))
    stage_activation: str = option("leakyrelu", "of the stages", choices=("prelu", "relu", "leakyrelu", "tanh"))
    transform: str = option("log", f"scaling of rain before the network, one of {', '.join(TRANSFORMS)}",
        choices=TRANSFORMS)
    transform_parameters: dict = dataclasses.field(default_factory=lambda: {"c": 10.0})
    output: str = option("exp", "what turns the network's output into rain", choices=("softplus", "exp"))
    conserve: bool = option(True, "rescale each block of pixels to the rain of its LR cell (--target paired: off)",
        group=NETWORK)
    position_channels: int = option(0, "learned maps of one fixed region (terrain, coast); the model works only there",
        group=NETWORK, low=0, high=4096)
    position_shape: tuple = ()
    static_fields: tuple = ()  # dicts of static.describe_fields: name, units, mean, std
    predictor_fields: tuple = ()  # dicts of predictors.describe_predictors, likewise
    # fmt: on

    @property
    def coarse(self):
        """Number of stages up to the coarser grid of training, at most a third of HR; 0: none."""
        grids = list(itertools.accumulate([1, *prime_factors(self.scale)[::-1]], operator.mul))
        return max(k for k, grid in enumerate(grids) if 3 * grid <= self.scale or not k)

    def __post_init__(self):
        check_settings(self)
        stages = sum(1 for _ in prime_factors(self.scale))
        for name in ("stage_channels", "stage_blocks"):
            values = getattr(self, name)
            if values and len(values) != stages:
                words = f"--{name.replace('_', '-')} {' '.join(map(str, values))}"
                raise DataError(f"{words}: scale {self.scale} has {stages} stages, expected one number for each")
        if self.position_channels and len(self.position_shape) != 2:
            raise DataError("position_channels need position_shape = (H, W), the HR shape of the fixed region")


def prime_factors(scale):
    """Prime factors of an integer scale, ascending: 100 -> [2, 2, 5, 5]. Raises ValueError below 2."""
    if scale < 2:
        raise ValueError(f"scale = {scale}: an integer of at least 2 is needed")
    factors, rest, p = [], scale, 2
    while rest > 1:
        while rest % p == 0:
            factors.append(p)
            rest //= p
        p += 1
    return factors


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a generator is trained; stands in the checkpoint as a dict. What has no group is set by a recipe alone."""

    # fmt: off
    recipe: str = option("crps-gan", "crps-gan (fair CRPS, then with a critic), crps (without a critic), srgan (as "
        "published), srgan-notes (with batch normalisation)",
        group=RECIPE, choices=("crps-gan", "crps", "srgan", "srgan-notes"))
    content_steps: int = option(800, "steps of the content phase (generator alone); more for large archives",
        group=LENGTH, low=0)
    adversarial_steps: int = option(1200, "steps of the adversarial phase (generator against critic); 0: none; 5000 or "
        "more make members hard to tell from real rain", group=LENGTH, low=0)
    epoch_steps: int = option(300, "steps between validations, each with a checkpoint", group=LENGTH, low=1)
    valid_share: float = option(0.1, "share of the days (of few files: of their columns) held out for validation",
        group=LENGTH, low=0, high=0.9)
    valid_windows: int = option(24, "windows scored at each validation", group=LENGTH, low=1, high=100_000)
    content: str = option("crps", "content loss: crps, mse, l1 or vgg; several joined by +",
        group=RECIPE, choices=LOSSES, joined=True)
    adversarial_content: str = option("", "content loss of the adversarial phase; empty: the same",
        choices=("", *LOSSES), joined=True)
    adversarial: str = option("relativistic", "adversarial loss", choices=("relativistic", "hinge", "bce"))
    members: int = option(2, "members made of each sample", low=1, high=1024)
    batch: int = option(4, "samples in a step, over all processes", group=RECIPE, low=1, high=65_536)
    window: tuple = option((2, 3), "smallest and largest side of what the network sees, in crops; 0: the whole region",
        group=RECIPE, low=1, high=10_000)
    crop: int = option(200, "side of what is made and compared, HR pixels (at least one LR cell); 0: the whole window",
        group=RECIPE, low=0, high=100_000)
    structure: tuple = option((0.1, 0.5), "weights of both parts of models.structure_score; 0 0: none", low=0)
    coarse: bool = option(True, "make every other step at a coarser grid, where a crop holds four times the area")
    coarse_archive: str = option("", "data folder of stage 1 with files at the coarser grid's step: every other coarse "
        "step is made from them")
    pools: tuple = option((1, 4, 16), "sides of the block means the CRPS is taken on, HR pixels", low=1, high=10_000)
    learning_rate: float = option(1e-3, "learning rate of the generator", group=RECIPE, low=1e-12, high=10)
    schedule: str = option("cosine", "cosine (to 0 in each phase) or half (a tenth from half time on)",
        choices=("cosine", "half"))
    optimizer: str = option("adamw", "optimiser of the generator", choices=("adamw", "adam"))
    weight_decay: float = option(0.01, "weight decay of adamw", low=0)
    restraint: float = option(1e-3, "weight of the mean square of the network's output", low=0)
    clip_norm: float = option(1.0, "largest gradient norm; 0: gradients are clamped to -1..1", low=0)
    ema: float = option(0.997, "decay of the averaged weights that stages 3 and 4 use", low=0, high=1)
    critic: str = option("patches", "models.Discriminator, or that of SRGAN", choices=("patches", "srgan"))
    beta: float = option(0.5, "norm of the critic's gradient at the generator's output over the content's", low=0)
    balanced: bool = option(True, "beta is such a ratio; False: the weight of the adversarial loss")
    penalty: float = option(0.1, "weight of the gradient penalty, mean square slope of a patch's logit", low=0)
    discriminator_rate: float = option(5e-4, "learning rate of the discriminator", low=1e-12, high=10)
    noise_in_use: tuple = option((0.0, 0.0), "factors of the noise in use: of trunk and first stage, of the others; "
        "0,0: fitted at the end on what is held out", low=0, high=10)
    amounts: float = option(2.5, "training amounts are scaled by up to this factor, either way", low=1, high=100)
    initial: str = option("default", "initial weights: default, or normal for N(0, 0.02)",
        choices=("default", "normal"))
    seed: int = option(0, "seed of weights, windows and noise", group=RECIPE, low=0)
    # fmt: on

    def __post_init__(self):
        if tuple(self.window) in ((), (0,)):
            object.__setattr__(self, "window", ())
        elif len(self.window) != 2 or not 1 <= self.window[0] <= self.window[1]:
            raise DataError(f"--window {' '.join(map(str, self.window))}: expected a smallest and a largest side, or 0")
        check_settings(self)
        if len(self.noise_in_use) != 2 or any(self.noise_in_use) != all(self.noise_in_use):
            words = ",".join(f"{factor:g}" for factor in self.noise_in_use)
            raise DataError(f"--set noise_in_use={words}: expected two factors above 0, or 0,0 to have them fitted")


# fmt: off
_SRGAN = {  # Ledig et al. (2017)
    "content": "mse", "adversarial_content": "vgg", "adversarial": "bce", "beta": 1e-3, "adversarial_steps": 4000,
    "optimizer": "adam", "schedule": "half", "learning_rate": 1e-4, "discriminator_rate": 1e-4, "weight_decay": 0.0,
    "restraint": 0.0, "clip_norm": 0.0, "amounts": 1.0, "batch": 16, "structure": (0.0, 0.0), "coarse": False,
    "critic": "srgan", "balanced": False, "penalty": 0.0,
}
# fmt: on
RECIPES = {  # name: (fields of TrainConfig, fields of GeneratorConfig)
    "crps-gan": ({}, {}),
    "crps": ({"adversarial_steps": 0}, {}),
    "srgan": (_SRGAN, {"noise_channels": 0}),
    "srgan-notes": (
        {**_SRGAN, "adversarial_content": "mse+vgg", "initial": "normal", "epoch_steps": 100},
        {"noise_channels": 0, "norm": "batch"},
    ),
}
