"""The lines that random graphs are grown from: what PyTorch code does with a value."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from helpers.random_graph_growth import Body, Env, Growth, Line, UselessLineError

Kind = Callable[[Growth], Line]

BENDS = (
    *("F.relu({v})", "torch.relu({v})", "{v}.relu()", "torch.sigmoid({v})", "{v}.tanh()"),
    *("F.gelu({v})", "F.silu({v})", "F.hardswish({v})", "F.leaky_relu({v}, 0.1)", "F.relu6({v})"),
    *("{v}.clamp(min=-0.5)", "{v}.clamp(-1, 1)", "F.elu({v})", "{v}.abs()", "{v}.pow(2)"),
    *("F.softmax({v}, 1)", "F.dropout({v}, 0.5, self.training)", "F.normalize({v}, dim=1)"),
)
BEND_LAYERS = (
    *("nn.ReLU()", "nn.ReLU(inplace=True)", "nn.SiLU()", "nn.Hardswish(inplace=True)"),
    *("nn.PReLU()", "nn.LeakyReLU(0.2)", "nn.Identity()", "nn.Dropout(0.3)", "nn.GELU()"),
    *("nn.ReLU6()", "nn.Softplus()", "nn.Sigmoid()"),
)
SCALES = (
    *("{v} * {p}", "{p} * {v}", "{v} / {p}", "torch.mul({v}, {p})", "{v}.mul({p})"),
    *("torch.div({v}, {p})", "-{v}", "torch.neg({v})", "{v}.neg()", "{p} * {v} * {q}"),
)
SHIFTS = (
    *("{v} + {p}", "{p} + {v}", "{v} - {p}", "{p} - {v}", "1 - {v}", "1. - {v}", "{v}.add({p})"),
    *("torch.sub({v}, {p}, alpha=2)", "torch.add({v}, {p}, alpha=-0.5)", "torch.rsub({v}, {p})"),
    *("{v} * {p} + {q}", "({v} - {p}) / {q}", "{q} - {v} * {p}", "{v} * 0.5 + 0.1"),
    *("torch.addcmul({p}, {v}, {q})", "torch.addcmul({v}, {p}, {q}, value=0.5)"),
)
SUMS = (
    *("{v} + {w}", "{v} - {w}", "{v}.add({w})", "torch.add({v}, {w}, alpha=0.5)", "{v} + {v}"),
    *("torch.sub({v}, {w}, alpha=2)", "sum([{v}, {w}])", "{v} + {p} * {w}", "{p} * {v} - {w}"),
    *("torch.addcmul({v}, {w}, {p})", "torch.lerp({v}, {w}, 0.3)", "torch.rsub({v}, {w})"),
    *("torch.stack([{v}, {w}]).sum(0)", "torch.sub({v}, {v}, alpha=2)", "{v} + {w} + {u}"),
    *("torch.subtract({v}, {w})", "sum([{v}, {w}, {u}]) / 3", "{v} * 0.5 + {w} * 0.5"),
)
PRODUCTS = (
    *("{v} * {w}", "{v} * {w}.sigmoid()", "{v} / (1 + {w}.abs())", "torch.maximum({v}, {w})"),
    *("{v} * {w}.mean((2, 3), keepdim=True)", "{v} + {w}.mean(1, keepdim=True)"),
    *("{v} * torch.sigmoid({v})", "torch.where({v} > 0, {v}, {p} * {v})", "{v}.mul({w})"),
)
WRITES = (
    *("{v} += {w}", "{v} -= {w}", "{v} *= {p}", "{v} += {p}", "{v} /= {p}", "{v} += 0.5"),
    *("{v}.add_({w})", "{v}.add_({w}, alpha=0.5)", "{v}.sub_({p})", "{v}.mul_({p})"),
    *("{v}.neg_()", "{v}.div_({p})", "{v}.mul_(0.5)", "{v}.relu_()", "F.relu({v}, inplace=True)"),
    *("torch.relu_({v})", "{v}.clamp_(-1, 1)", "{v}[:, :1].mul_(0.5)", "{v}[:, 1:].add_({p})"),
    *("F.relu_({v})", "F.hardswish({v}, inplace=True)", "{v}.copy_({w})", "{v}.addcmul_({w}, {p})"),
    *("torch.add({v}, {w}, out={u})", "{v}.mul_({w}.sigmoid())", "{v}[:, :1] = {w}[:, :1]"),
    *("{v}[:, 1:] += {p}", "F.leaky_relu_({v}, 0.1)", "{v}.sub_({w})", "torch.neg_({v})"),
    *("{n} = {v}.mul_({p})", "{n} = {v}.add_({w})", "{n} = F.relu({v}, inplace=True)"),
    *("{n} = {v}\n{v} = {v} * {p}", "{v}.lerp_({w}, 0.3)", "{v} = {v} + {w}", "{v} = {p} * {v}"),
)
VIEWS = (
    *(
        "{v}.flatten(2)",
        "{v}.flatten(1)",
        "{v}.flatten(2).transpose(1, 2)",
        "torch.flatten({v}, 2)",
    ),
    *("{v}.transpose(1, 2)", "{v}.transpose(1, -1)", "{v}.movedim(1, -1)", "{v}.movedim(-1, 1)"),
    *("{v}.permute(0, 2, 3, 1)", "{v}.permute(0, 3, 1, 2)", "{v}.swapaxes(1, -1)", "{v}.mT"),
    *("{v}.reshape({v}.shape[0], {v}.shape[1], -1)", "{v}.reshape({w}.shape)", "{v}.view_as({w})"),
    *("{v}.view({v}.size(0), 2, -1, *{v}.shape[2:]).transpose(1, 2).flatten(1, 2)",),
    *(
        "{v}.unsqueeze(1)",
        "{v}.squeeze(1)",
        "{v}.unsqueeze(-1)",
        "{v}[:, None]",
        "{v}.flatten(0, 1)",
    ),
    *("{v}.contiguous()", "{v}.clone()", "{v}.detach()", "{v}.flip(1)", "{v}.roll(1, 1)"),
    *("{v}.unflatten(1, (2, -1))", "{v}.view({v}.shape)", "{v}[...]", "{v}.expand_as({w})"),
    *(
        "{v}.transpose(1, 2).reshape({w}.shape)",
        "{v}.transpose(1, 2).contiguous()",
        "{v}.squeeze(-1)",
    ),
    *("{v}.reshape(-1, {v}.shape[-1])", "{v}.view(len({v}), -1)"),
    *("torch.flatten({v}, 2)", "{v}.flatten(0, 1)", "{v}.to(torch.float64)"),
)
POOLS = (
    *("F.avg_pool{r}d({v}, 3, 2, 1)", "F.avg_pool{r}d({v}, 2)", "F.max_pool{r}d({v}, 3, 1, 1)"),
    *("F.avg_pool{r}d({v}, 3, 1, 1, count_include_pad=False)", "F.adaptive_avg_pool{r}d({v}, 1)"),
    *("{v}.mean({axes}, keepdim=True)", "{v}.mean({axes})", "{v}.amax({axes})", "{v}.mean(-1)"),
    *("F.adaptive_avg_pool{r}d({v}, {w}.shape[2:])", "F.avg_pool{r}d({v}, 3, 1, 1)"),
    *("F.max_pool{r}d({v}, 2, ceil_mode=True)", "{v}.sum(1, keepdim=True)", "{v}.mean(1)"),
)
POOL_LAYERS = (
    *("nn.AvgPool{r}d(3, 1, 1)", "nn.AvgPool{r}d(2, 2)", "nn.AdaptiveAvgPool{r}d(1)"),
    *("nn.MaxPool{r}d(3, 2, 1)", "nn.Upsample(scale_factor=2)", "nn.AdaptiveAvgPool{r}d(2)"),
)
SIZED = (
    *("F.interpolate({v}, size={w}.shape[2:])", "F.interpolate({v}, scale_factor=2)"),
    *("F.interpolate({v}, size={w}.shape[-{r}:])", "F.interpolate({v}, {w}.shape[2:], mode='{m}')"),
    *("F.interpolate({v}, size={w}.shape[2:], mode='{m}', align_corners=True)",),
    *("F.interpolate({v}, size=tuple({w}.size()[2:]))", "F.interpolate({v}, size={v}.shape[2:])"),
    *("F.interpolate(F.avg_pool{r}d({v}, 3, 2, 1), size={v}.shape[-{r}:])",),
)
PADS = (
    *("F.pad({v}, {ring})", "F.pad({v}, {ring}, mode='reflect')", "F.pad({v}, {ring}, value=0.5)"),
    *("F.pad({v}, {ring}, 'replicate')", "F.pad({v}, ({flat}0, 1))", "F.pad({v}, (1, -1))"),
)
SLICES = (
    *("{v}[:, :{k}]", "{v}[:, {k}:]", "{v}[:, ::2]", "{v}[:, [{i}]]", "{v}[:, {k}:{k} + 1]"),
    *("{v}.narrow(1, 0, {k})", "{v}[:, {k}]", "{v}[..., 1:]", "{v}[:, :, 1:-1]", "{v}[:, -1:]"),
    *("{v}[:, :, ::2, ::2]", "{v}[:1]", "{v}[..., :1]", "{v}.select(1, {k})", "{v}[..., 1:, :]"),
    *("torch.narrow({v}, 1, {k}, 1)", "torch.cat([{v}[..., ::2], {v}[..., ::2]], 1)"),
)
PARTINGS = (
    *("{a}, {b} = {v}.chunk(2, 1)", "{a}, {b} = torch.chunk({v}, 2, dim=1)"),
    *(
        "{a}, {b} = {v}.split([{k}, {rest}], 1)",
        "{a}, {b} = torch.split({v}, [{k}, {rest}], dim=1)",
    ),
    *("{a}, {b} = torch.tensor_split({v}, 2, 1)", "{a}, {b} = {v}.split({half}, 1)"),
    *("{a} = {v}.chunk(2, 1)[1]", "{a} = torch.chunk({v}, 2, 1)[0]"),
    *("{a}, {b} = {v}.chunk(2, -1)", "{b} = {v}[:, :{k}]\n{a} = {v}[:, {k}:]"),
)
JOINS = (
    *("torch.cat([{v}, {w}], 1)", "torch.cat(({v}, {w}), dim=1)", "torch.cat([{v}, {v}], 1)"),
    *("torch.concat([{v}, {w}, {u}], 1)", "torch.cat([{v}, {w}], -1)", "torch.cat([{v}, {w}], 0)"),
    *("torch.cat([{v}[:, :1], {w}], 1)", "torch.stack([{v}, {w}], 1).flatten(1, 2)"),
)


def fill(g: Growth, text: str, value: str) -> Line:
    """Return a line from a template; `{p}` and `{q}` are parameters, the other letters values."""
    setup: list[str] = []
    known = {"v": value, "w": g.like(value), "u": g.like(value), "r": g.rank}
    for name in "pq":
        if f"{{{name}}}" in text:
            known[name], more = factor(g, value)
            setup.extend(more)
    known["axes"] = "(2, 3)" if g.rank == 2 else "2"
    known["ring"] = g.rng.choice([str((1,) * 2 * g.rank), str((1, 0) * g.rank)])
    known["flat"], known["m"] = "0, " * 2 * g.rank, "bilinear" if g.rank == 2 else "linear"
    known["n"] = g.fresh("v")
    return Line(text.format(**known), tuple(setup))


def factor(g: Growth, value: str) -> tuple[str, list[str]]:
    """Return an expression that scales a value, and what it needs."""
    if (known := g.standing(g.factors)) and g.coin(0.25):
        return g.rng.choice(known), []
    if g.coin(0.15):
        return g.rng.choice(["0.5", "-1.25", "2", "torch.tensor(0.7)"]), []
    dims = len(g.shape(value))
    channels = g.shape(value)[1] if g.steady(value, 1) else 1
    ones = ", 1" * (dims - 2)
    per = f"{channels}{ones}" if dims > 2 else f"{channels},"
    name = g.fresh("p")
    text, use = g.rng.choice(
        [
            (f"P(torch.ones(1, {channels}{ones}))", f"self.{name}"),
            (f"P(torch.ones({per}))", f"self.{name}"),
            (f"P(torch.ones(2, {per}))", f"self.{name}[0]"),
            (f"P(torch.ones(2, 1, {per}))", f"self.{name}[1]"),
            (f"P(torch.ones({channels}))", f"self.{name}.view(1, -1{ones})"),
            (f"P(torch.ones({channels}))", f"self.{name}[:{', None' * (dims - 2)}]"),
            (f"P(torch.ones({channels}))", f"self.{name}.reshape({channels}{ones})"),
            ("P(torch.ones(1))", f"self.{name}"),
            ("P(torch.tensor(1.0))", f"self.{name}"),
            (f"P(torch.ones(1, {channels}{ones}))", f"self.{name}.abs()"),
            (f"P(torch.ones({g.shape(value)[-1]}))", f"self.{name}"),
        ]
    )
    g.factors.append(use)
    if "[0]" in use or "[1]" in use:
        g.factors += [f"self.{name}[0]", f"self.{name}[1]"]
    return use, [f"self.{name} = {text}"]


def of(texts: tuple[str, ...], *fits: str) -> Kind:
    """Return a kind of line that draws one of these expressions."""

    def draw(g: Growth) -> Line:
        value = g.pick(*(getattr(g, fit) for fit in fits))
        line = fill(g, g.rng.choice(texts), value)
        return Line(f"{g.fresh('v')} = {line.code}", line.setup)

    return draw


def write(g: Growth) -> Line:
    """Something written in place, or a name that is given anew."""
    return fill(g, g.rng.choice(WRITES), g.pick())


def layer(g: Growth, value: str, text: str, kind: str) -> Line:
    """A new module, called on a value."""
    name = g.fresh(kind)
    g.modules.append(f"self.{name}")
    return Line(f"{g.fresh('v')} = self.{name}({value})", (f"self.{name} = {text}",))


def norm_text(g: Growth, channels: int, dims: int) -> str:
    """A norm for values of so many axes, most often a batch norm."""
    rank = max(1, dims - 2)
    options = g.rng.choice(["", "", "", ", affine=False", ", eps=0.01", ", momentum=None"])
    draw = g.rng.random()
    if draw < 0.05:
        return f"nn.GroupNorm(1, {channels})"
    if draw < 0.1 and dims > 2:
        return f"nn.InstanceNorm{rank}d({channels}, affine=True)"
    if draw < 0.12:
        return f"nn.BatchNorm{rank}d({channels}, track_running_stats=False)"
    return f"nn.BatchNorm{rank}d({channels}{options})"


def norm(g: Growth) -> Line:
    """A norm of channels; sometimes of the last axis."""
    value = g.pick(g.channelled)
    shape = g.shape(value)
    if g.coin(0.05) and g.steady(value, -1):
        return layer(g, value, f"nn.LayerNorm({shape[-1]})", "ln")
    return layer(g, value, norm_text(g, shape[1], len(shape)), "bn")


def conv_text(g: Growth, channels: int, rank: int) -> str:
    """A convolution, transposed or not."""
    out = g.rng.choice([2, 3, 4, 6, channels])
    kernel = g.rng.choice([1, 1, 3, 3, 2])
    groups = g.rng.choice([1, 1, gcd(out, channels)])
    bias = g.rng.choice(["", ", bias=False"])
    if g.coin(0.15):
        stride = g.rng.choice([1, 2])
        return (
            f"nn.ConvTranspose{rank}d({channels}, {out}, {kernel}, {stride}, groups={groups}{bias})"
        )
    padding = g.rng.choice([0, kernel // 2, kernel // 2, "'same'"])
    stride = g.rng.choice([1, 1, 2]) if padding != "'same'" else 1
    mode = g.rng.choice(["", "", "", ", padding_mode='reflect'", ", dilation=2"])
    mode = "" if kernel == 1 else mode
    return (
        f"nn.Conv{rank}d({channels}, {out}, {kernel}, {stride}, {padding}, groups={groups}"
        f"{bias}{mode})"
    )


def conv(g: Growth) -> Line:
    """A convolution of maps."""
    value = g.pick(g.channelled, lambda v: 3 <= len(g.shape(v)) <= 4)
    shape = g.shape(value)
    return layer(g, value, conv_text(g, shape[1], len(shape) - 2), "conv")


def linear(g: Growth) -> Line:
    """A linear layer on the last axis."""
    value = g.pick(lambda v: g.steady(v, -1))
    inputs = g.shape(value)[-1]
    bias = g.rng.choice(["", ", bias=False"])
    text = f"nn.Linear({inputs}, {g.rng.choice([2, 3, 5, inputs])}{bias})"
    return layer(g, value, text, "fc")


def linear_norm(g: Growth) -> Line:
    """A linear layer and a norm of its channels, on rows or tokens."""
    value = g.pick(lambda v: g.steady(v, -1))
    shape = g.shape(value)
    out = g.rng.choice([2, 3, shape[-1]])
    fc, bn = g.fresh("fc"), g.fresh("bn")
    g.modules += [f"self.{fc}", f"self.{bn}"]
    forms = ["self.{bn}(self.{fc}({v}))"]
    if len(shape) > 2:
        forms += ["self.{bn}(self.{fc}({v}).transpose(1, 2)).transpose(1, 2)"]
        forms += ["self.{bn}(self.{fc}({v}).flatten(0, 1)).unflatten(0, {v}.shape[:2])"]
        forms += ["self.{fc}(self.{bn}({v}.flatten(0, 1)).view_as({v}))"]
    text = g.rng.choice(forms)
    width = shape[-1] if text.startswith("self.{fc}") else out
    setup = f"self.{fc} = nn.Linear({shape[-1]}, {out})", f"self.{bn} = nn.BatchNorm1d({width})"
    return Line(f"{g.fresh('v')} = {text.format(fc=fc, bn=bn, v=value)}", setup)


def bend_layer(g: Growth) -> Line:
    """A nonlinearity, or nothing, as a module."""
    return layer(g, g.pick(), g.rng.choice(BEND_LAYERS), "act")


def pool_layer(g: Growth) -> Line:
    """A pool as a module."""
    return layer(g, g.pick(g.maps), g.rng.choice(POOL_LAYERS).format(r=g.rank), "pool")


def again(g: Growth) -> Line:
    """A module that was called before, on any value; its result may go unused."""
    known = g.standing(g.modules)
    if not known:
        raise UselessLineError
    call = f"{g.rng.choice(known)}({g.pick()})"
    return Line(call if g.coin(0.15) else f"{g.fresh('v')} = {call}")


def readers(g: Growth) -> Line:
    """Two or three layers or scales that read one value."""
    g.forced = g.pick(g.maps)
    kinds = [g.rng.choice([norm, conv, scale, shift, bend]) for _ in range(g.rng.choice([2, 3]))]
    lines = [kind(g) for kind in kinds]
    g.forced = ""
    setup = tuple(text for line in lines for text in line.setup)
    return Line("\n".join(line.code for line in lines), setup)


def functional(g: Growth) -> Line:
    """A layer as a function of the module's own parameters."""
    value = g.pick(g.channelled)
    shape, rank = g.shape(value), len(g.shape(value)) - 2
    out = g.rng.choice([2, 3, 4, shape[1]])
    w, b, n = g.fresh("w"), g.fresh("b"), g.fresh("v")
    weight, bias = f"self.{w} = P(torch.ones({out}, {shape[1]}", f"self.{b} = P(torch.ones({out}))"
    draw = g.rng.randrange(6)
    if draw == 0:
        code = f"F.conv{rank}d({value}, self.{w}, self.{b}, padding=1)"
        return Line(f"{n} = {code}", (f"{weight}{', 3' * rank}))", bias))
    if draw == 1:
        code = f"F.conv{rank}d({value}, self.{w}, None, {g.rng.choice([1, 2])})"
        return Line(f"{n} = {code}", (f"{weight}{', 1' * rank}))",))
    if draw == 2 and rank <= 2:
        return _functional_norm(g, value, shape[1], n)
    if not g.steady(value, -1):
        raise UselessLineError
    weight = f"self.{w} = P(torch.ones({out}, {shape[-1]}))"
    forms = ["F.linear({v}, self.{w}, self.{b})", "{v} @ self.{w}.T", "F.linear({v}, self.{w})"]
    forms += ["torch.matmul({v}, self.{w}.t()) + self.{b}"]
    text = g.rng.choice(forms).format(v=value, w=w, b=b)
    return Line(f"{n} = {text}", (weight, bias))


def _functional_norm(g: Growth, value: str, channels: int, target: str) -> Line:
    w, b, mean, var = (g.fresh(kind) for kind in ("p", "b", "mean", "var"))
    setup = [f"self.register_buffer('{name}', torch.ones({channels}))" for name in (mean, var)]
    if g.coin(0.3):
        call = f"F.batch_norm({value}, self.{mean}, self.{var})"
    else:
        setup += [f"self.{name} = P(torch.ones({channels}))" for name in (w, b)]
        call = (
            f"F.batch_norm({value}, self.{mean}, self.{var}, self.{w}, self.{b}, False, 0.1, 1e-3)"
        )
    return Line(f"{target} = {call}", tuple(setup))


def tied(g: Growth) -> Line:
    """A second name for a module, or a second module with the parameters of one."""
    starts = ("self.conv", "self.bn", "self.fc")
    layers = [text for text in g.standing(g.modules) if text.startswith(starts)]
    if not layers:
        raise UselessLineError
    old, name = g.rng.choice(layers), g.fresh("tied")
    text = next(line for line in g.setup if line.startswith(f"{old} = "))
    setup: tuple[str, ...] = (f"self.{name} = {old}",)
    if g.coin():
        setup = (text.replace(old, f"self.{name}", 1), f"self.{name}.weight = {old}.weight")
    g.modules.append(f"self.{name}")
    call = f"F.conv2d({g.pick()}, {old}.weight)" if g.coin(0.2) else f"self.{name}({g.pick()})"
    return Line(f"{g.fresh('v')} = {call}", setup)


def sequential(g: Growth) -> Line:
    """A Sequential; one of its children may be called on its own as well."""
    value = g.pick(g.maps)
    channels, parts = g.shape(value)[1], list[str]()
    for _ in range(g.rng.choice([2, 3])):
        draw = g.rng.random()
        if draw < 0.4:
            parts.append(conv_text(g, channels, g.rank))
            channels = int(parts[-1].split(", ")[1])
        elif draw < 0.8:
            parts.append(norm_text(g, channels, g.rank + 2))
        else:
            parts.append(g.rng.choice(BEND_LAYERS))
    name = g.fresh("seq")
    g.modules += [f"self.{name}", f"self.{name}[0]", f"self.{name}[1]"]
    code = f"{g.fresh('v')} = self.{name}({value})"
    return Line(code, (f"self.{name} = nn.Sequential({', '.join(parts)})",))


def branches(g: Growth) -> Line:
    """Convolutions with norms side by side, added up: what folds to one convolution."""
    value = g.pick(g.maps)
    channels, out, r = g.shape(value)[1], g.rng.choice([2, 3, 4]), g.rank
    kernels = [g.rng.choice([1, 3]) for _ in range(g.rng.choice([2, 3]))]
    setup, terms = list[str](), list[str]()
    for kernel in kernels:
        c, b = g.fresh("conv"), g.fresh("bn")
        setup += [f"self.{c} = nn.Conv{r}d({channels}, {out}, {kernel}, padding={kernel // 2})"]
        setup += [f"self.{b} = nn.BatchNorm{r}d({out})"]
        g.modules += [f"self.{c}", f"self.{b}"]
        terms.append(f"self.{b}(self.{c}({value}))")
    if out == channels and g.coin():
        terms.append(value)
    return Line(f"{g.fresh('v')} = {' + '.join(terms)}", tuple(setup))


def gather(g: Growth) -> Line:
    """Channels chosen by a buffer of indices."""
    value, name = g.pick(g.channelled), g.fresh("i")
    index = [g.rng.randrange(g.shape(value)[1]) for _ in range(g.rng.choice([1, 2, 3]))]
    setup = f"self.register_buffer('{name}', torch.tensor({index}))"
    form = g.rng.choice(["{v}[:, self.{i}]", "torch.index_select({v}, 1, self.{i})"])
    return Line(f"{g.fresh('v')} = {form.format(v=value, i=name)}", (setup,))


def cut(g: Growth) -> Line:
    """A slice of a value."""
    value = g.pick(g.channelled)
    return Line(f"{g.fresh('v')} = {_numbered(g, g.rng.choice(SLICES), value)}")


def part(g: Growth) -> Line:
    """A value parted in two."""
    value = g.pick(g.channelled, lambda v: g.shape(v)[1] > 1)
    return Line(_numbered(g, g.rng.choice(PARTINGS), value, a=g.fresh("v"), b=g.fresh("v")))


def _numbered(g: Growth, text: str, value: str, **names: str) -> str:
    channels = g.shape(value)[1]
    k = g.rng.randrange(1, max(2, channels))
    index = ", ".join(str(g.rng.randrange(channels)) for _ in range(2))
    return text.format(v=value, k=k, rest=channels - k, half=(channels + 1) // 2, i=index, **names)


scale, shift, bend = of(SCALES), of(SHIFTS), of(BENDS)
add, times, view = of(SUMS), of(PRODUCTS), of(VIEWS)
pool, resize, pad = of(POOLS, "maps"), of(SIZED, "maps"), of(PADS, "maps")
join = of(JOINS)


def block(g: Growth) -> Line:
    """A module of its own, with optional arguments that some calls give; often called twice."""
    value = g.pick(g.maps)
    # Block1_5 is the fifth name in Block1, and Block15 the fifteenth of the network.
    other = g.like(value)
    name = f"Block{g.fresh('')}" if g.name == "Net" else f"{g.name}_{g.fresh('')}"
    optional = g.coin(0.6)
    starts: list[Env] = [{"x": env[value], "skip": None, "scale": 1.0} for env in g.envs]
    if optional:
        starts += [{"x": env[value], "skip": env[other], "scale": 0.5} for env in g.envs]
    inner = Growth(g.rng, g.rank, dict(g.space), starts, name)
    for text in g.rng.sample(OPENINGS, g.rng.choice([1, 2])) if optional else ():
        inner.add(Line(text))
    inner.grow(
        [kind for kind in KINDS if kind is not block or name.count("_") < 2], g.rng.randint(2, 5)
    )
    results = inner.values()[-1:]
    if g.coin(0.2):
        results = inner.values()[-2:]
    if inner.shapes(results[-1]) == inner.shapes("x") and g.coin():
        results = [f"x + {results[-1]}"]
    signature = "x, skip=None, scale=1.0" if optional else "x"
    body = inner.body(signature, tuple(results), "tuple")
    exec(body.source(), inner.space)
    g.space[name] = inner.space[name]
    return _called(g, (*inner.blocks, body), value, other)


def _called(g: Growth, blocks: tuple[Body, ...], value: str, other: str) -> Line:
    """Return the line that calls the last of these blocks, once or several times."""
    body, attribute = blocks[-1], g.fresh("block")
    g.modules.append(f"self.{attribute}")
    v, name = g.fresh("v"), f"self.{attribute}"
    if len(body.results) > 1:
        return Line(f"{v}, {g.fresh('v')} = {name}({value})", (f"{name} = {body.name}()",), blocks)
    if g.coin(0.2):
        setup = f"{name} = nn.Sequential(*[{body.name}() for _ in range(2)])"
        return Line(f"{v} = {name}({value})", (setup,), blocks)
    if g.coin(0.2):
        setup = f"{name} = nn.ModuleList({body.name}() for _ in range(2))"
        code = f"{v} = {value}\nfor block in {name}:\n    {v} = block({v})"
        return Line(code, (setup,), blocks)
    calls = ["{m}({v})"]
    if "skip" in body.signature:
        calls += ["{m}({v}, {w})", "{m}({v}, scale=-0.5)", "{m}({v}, skip={w}, scale=0.5)"]
        calls += ["{m}({v}, None, 2.0)", "{m}(x={v}, skip={v})", "{m}({w}, {v}, 0.5)"]
    chosen = [g.rng.choice(calls) for _ in range(g.rng.choice([1, 2]))]
    code = [f"{v} = {chosen[0].format(m=name, v=value, w=other)}"]
    code += [f"{g.fresh('v')} = {call.format(m=name, v=value, w=other)}" for call in chosen[1:]]
    return Line("\n".join(code), (f"{name} = {body.name}()",), blocks)


OPENINGS = (
    "if skip is not None:\n    x = x + skip",
    "x = x * scale",
    "if scale != 1.0:\n    x = x * scale",
    "x = x if skip is None else x - skip",
    "if skip is None:\n    skip = x",
    "x = F.relu(x) if skip is None else skip",
)

KINDS: tuple[Kind, ...] = (
    *(norm, norm, norm, norm, conv, conv, conv, scale, scale, scale, shift, shift, shift),
    *(add, add, add, bend, bend, bend_layer, times, write, write, write, view, view, cut, gather),
    *(part, join, pool, pool_layer, resize, pad, linear, linear_norm, again, again, again),
    *(readers, readers, readers, functional, functional, tied, sequential, branches, block, block),
)
