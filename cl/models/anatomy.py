"""Anatomy: a total partition of a model's parameters, so that methods name parts, not modules.

Every parameter gets a layer (index in order of depth, None outside the repeated blocks), a
category (`attention feed_forward norm conv embedding head other`) and a role (`q k v qkv o gate
up down weight bias`). HFT draws its halves from it, FPF its modules, LiNeS its depths.

Layers are a backbone's `layers` if it has that ModuleList (the contract of `cl/models`), else they
are found: the blocks are the modules with parts that stand in Sequentials and lists, followed
through containers and stages to the nesting depth at which most of them stand. So a ResNet layer
is a residual block, a transformer's or mixer's an encoder block, also where they are grouped into
stages (Swin, ConvNeXt). In a chain that has none (vgg) every link but norms is a layer; a model
whose blocks stand in no list (inception) has none. Categories follow from the type of the
module that owns the parameter and from the names around it; the tables below hold the names of
timm, torchvision and Hugging Face models.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn

CATEGORIES = ("attention", "feed_forward", "norm", "conv", "embedding", "head", "other")
ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "down", "weight", "bias")

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# names: of one module on a parameter's path, or of that module's class
_STAGE = re.compile(r"Stage$|BasicLayer$")
_ATTENTION = re.compile(
    r"^(\w*attn|attention|self_attention)$|Attention(Block|V2|\w*sample|Rope)?$|Attn$", re.I
)
_FEED_FORWARD = re.compile(
    r"^(mlp\w*|ffn|feed_?forward)$|(Mlp|MLP|MLPBlock|FeedForward|FFN|GluMlp|SwiGLU\w*)$"
)
_NORM = re.compile(r"Norm\w*$|^Affine$")
_EMBEDDING = re.compile(
    r"^(patch_embed\w*|pos_embed\w*|(cls|class|dist|reg|register|mask)_tokens?|embeddings?|"
    r"conv_proj)$|PatchEmbed$"
)
_HEAD = re.compile(
    r"^(head\w*|heads|fc|classifier|last_linear|lm_head|score|actor|critic|policy|value)$"
)
_DOWNSAMPLE = re.compile(r"^(downsample|reduction)$")
_ROLES = {
    "attention": {
        "qkv": r"\w*qkv\w*|in_proj\w*|query_key_value|c_attn|kv|to_kv|kv_proj",
        "q": r"q|to_q|q_proj\w*|query|wq",
        "k": r"k|to_k|k_proj\w*|key|wk",
        "v": r"v|to_v|v_proj\w*|value|wv",
        "o": r"proj|out_proj|o_proj|to_out|dense|c_proj|wo|merge",
    },
    "feed_forward": {
        "gate": r"gate|gate_proj|fc1_g|w1_g|gate_up_proj",
        "up": r"up_proj|fc1|fc1_x|c_fc|w1|w12|lin1|dense_h_to_4h",
        "down": r"down_proj|fc2|c_proj|w2|w3|lin2|dense_4h_to_h",
    },
}


@dataclass(frozen=True)
class Part:
    """One parameter: name as in `named_parameters`, number of elements, and where it belongs."""

    name: str
    size: int
    layer: int | None
    category: str
    role: str


def anatomy(model: nn.Module) -> list[Part]:
    """One Part per parameter of `model`, in the order of `named_parameters`."""
    modules = dict(model.named_modules())
    index = {path: k for k, path in blocks(model).items()}
    heads = _heads(model, modules)
    patches = _patches(modules)
    parts = []
    for name, p in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        around = _around(path, modules)
        block = next((owner for owner, _ in around if owner in index), None)
        inside = [pair for pair in around if block is None or len(pair[0]) > len(block)]
        category = _category(leaf, inside, modules[path])
        if path in heads:
            category, block = "head", None
        elif path == patches:
            category = "embedding"
        role = _role(leaf, category, modules[path], inside if block is not None else [])
        layer = None if block is None else index[block]
        parts.append(Part(name, p.numel(), layer, category, role))
    return parts


def blocks(model: nn.Module) -> dict[int, str]:
    """{layer index: path of the module}, in order of depth; empty if nothing repeats."""
    backbone = getattr(model, "backbone", None)
    listed = getattr(backbone, "layers", None)
    if isinstance(listed, nn.ModuleList):
        return {k: f"backbone.layers.{k}" for k in range(len(listed))}
    found = list(_blocks(*_unwrapped(model)))
    depths = Counter(path.count(".") for path in found)
    if depths and max(depths.values()) > 1:
        deepest = max(depths, key=lambda depth: (depths[depth], depth))
        return dict(enumerate(path for path in found if path.count(".") == deepest))
    return dict(enumerate(_chain(model)))


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The backbone if there is one, without modules that only hold another, and its path."""
    module, path = model, ""
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, nn.Module):
        module, path = backbone, "backbone"
    while not isinstance(module, CONTAINERS):
        children = [(n, c) for n, c in module.named_children() if _n_parameters(c)]
        if len(children) != 1 or any(True for _ in module.parameters(False)):
            break
        path = f"{path}.{children[0][0]}" if path else children[0][0]
        module = children[0][1]
    return module, path


def _blocks(module: nn.Module, path: str):
    """Paths of the outermost modules with parts, containers and stages being looked into."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if not _has_parts(child):
            continue
        listed = isinstance(module, CONTAINERS) or _STAGE.search(type(module).__name__)
        if isinstance(child, CONTAINERS) or _is_stage(child, wrapped=not listed):
            yield from _blocks(child, inner)
        elif listed:
            yield inner


def _is_stage(module: nn.Module, wrapped: bool) -> bool:
    """Whether a module is no block but holds them: by name, or in a list that is most of it.

    wrapped: whether a single child is enough, which the body of a block may be, too.
    """
    if _STAGE.search(type(module).__name__):
        return True
    children = [child for child in module.children() if _n_parameters(child)]
    own = sum(p.numel() for p in module.parameters(False))
    if wrapped and len(children) == 1 and not own:
        return True
    lists = [c for c in children if isinstance(c, CONTAINERS) and _holds_blocks(c)]
    return len(lists) == 1 and _n_parameters(lists[0]) > _n_parameters(module) / 2


def _holds_blocks(container: nn.Module) -> bool:
    """Whether most of what a container lists has parts of its own."""
    children = [child for child in container.children() if _n_parameters(child)]
    if all(isinstance(child, CONTAINERS) for child in children):
        return any(_holds_blocks(child) for child in children)
    whole = [c for c in children if _has_parts(c) and not isinstance(c, CONTAINERS)]
    return 2 * len(whole) > len(children) or any(
        _holds_blocks(c) for c in children if isinstance(c, CONTAINERS)
    )


def _chain(model: nn.Module) -> list[str]:
    """The links of the longest Sequential or list, norms not counted; empty below two."""
    longest: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, CONTAINERS):
            links = [
                f"{path}.{name}" if path else name
                for name, child in module.named_children()
                if _n_parameters(child) and not _is_norm(child)
                if isinstance(child, CONTAINERS) or not _has_parts(child)
            ]
            longest = max(longest, links, key=len)
    return longest if len(longest) > 1 else []


def _has_parts(module: nn.Module) -> bool:
    return any(_n_parameters(child) for child in module.children())


def _n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or (
        _NORM.search(type(module).__name__) is not None and not _has_parts(module)
    )


def _around(path: str, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """(path, class name) of a module and of all that hold it, innermost first."""
    around = []
    while path:
        around.append((path, type(modules[path]).__name__))
        path = path.rpartition(".")[0]
    return around


def _heads(model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    """Paths of what answers: `head` of a Classifier, else the last layer of what is named so."""
    if "backbone" in modules and "head" in modules:
        return {path for path in modules if path == "head" or path.startswith("head.")}
    last, wrapper = {}, _wrapper(model)
    for path, module in modules.items():
        first = path.removeprefix(wrapper).partition(".")[0]
        if _HEAD.match(first) and isinstance(module, (nn.Linear, nn.Conv2d)):
            last[first] = path
    return set(last.values())


def _wrapper(model: nn.Module) -> str:
    """`NAME.` of the only child of a module without parameters of its own, else the empty string.

    So is a language model held beside its tokenizer (`cl/models/language.py`).
    """
    children = [name for name, _ in model.named_children()]
    own = any(True for _ in model.parameters(False))
    return f"{children[0]}." if len(children) == 1 and not own else ""


def _patches(modules: dict[str, nn.Module]) -> str | None:
    """The path of a transformer's first layer if it cuts patches: kernel and stride are equal."""
    if not any(_ATTENTION.search(type(module).__name__) for module in modules.values()):
        return None
    leaves = ((n, m) for n, m in modules.items() if any(True for _ in m.parameters(False)))
    path, first = next(((n, m) for n, m in leaves if not _has_parts(m)), (None, None))
    cuts = isinstance(first, CONVS) and first.kernel_size == first.stride
    return path if cuts and max(first.stride) > 1 else None


def _matches(table: re.Pattern, around: list[tuple[str, str]]) -> bool:
    return any(table.search(p.rpartition(".")[2]) or table.search(kind) for p, kind in around)


def _category(leaf: str, inside: list[tuple[str, str]], owner: nn.Module) -> str:
    """By type where that decides, else by the names around the parameter within its block."""
    single = not _has_parts(owner)
    if _is_norm(owner):
        return "norm"
    if isinstance(owner, nn.Embedding) or _EMBEDDING.match(leaf) or _matches(_EMBEDDING, inside):
        return "embedding"
    pointwise = isinstance(owner, CONVS) and set(owner.kernel_size) == {1} and owner.groups == 1
    dense = isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D" or pointwise
    if _matches(_ATTENTION, inside) and (dense or not isinstance(owner, CONVS)):
        return "attention" if dense or not _is_scale(leaf, owner) else "other"
    if dense and _matches(_FEED_FORWARD, inside):
        return "feed_forward"
    if isinstance(owner, CONVS):
        return "conv"
    if _matches(_DOWNSAMPLE, inside) or not (single and isinstance(owner, nn.Linear)):
        return "other"
    return "feed_forward"


def _is_scale(leaf: str, owner: nn.Module) -> bool:
    return leaf in ("gamma", "scale", "temperature") or "Scale" in type(owner).__name__


def _role(leaf: str, category: str, owner: nn.Module, inside: list[tuple[str, str]]) -> str:
    """`bias`, a projection's part in its block, or `weight`."""
    if leaf.endswith("bias"):
        return "bias"
    names = [leaf] if leaf != "weight" else []
    names += [path.rpartition(".")[2] for path, _ in inside]
    for role, pattern in _ROLES.get(category, {}).items():
        if any(re.fullmatch(pattern, name) for name in names):
            return role
    if category == "feed_forward" and isinstance(owner, nn.Linear) and inside:
        widths = owner.in_features, owner.out_features  # a block that numbers its layers
        return "weight" if widths[0] == widths[1] else "up" if widths[1] > widths[0] else "down"
    return "weight"
