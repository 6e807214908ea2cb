"""Why a fold would be wrong, or is not worth it: the algebra of the operators themselves."""

from refold.reasons.kind import Reason

BORDERS = (
    Reason(
        "A shift meets zero padding",
        (
            "a shift meets the convolution's zero padding: …",
            "a bias meets the second convolution's zero padding: …",
            "a constant meets zero padding",
            "a constant meets the border zeros that the pool counts",
            "a constant meets the zeros in windows at the border",
            "the shift meets zero padding",
        ),
        "A norm or a bias in front of a padded convolution adds a constant to every pixel, but "
        "not to the zeros around the map. Folded, the constant would reach the border as well, "
        "and outputs there would differ.",
        "Put the norm after the convolution; or pad first and use a convolution without padding; "
        "or pad with the constant's own image, as DBB's `BNAndPad` does. A scale without a shift "
        "folds. In a published network nothing is wrong: the layer stays.",
    ),
    Reason(
        "The second convolution pads between the two",
        (
            "the second convolution pads the map between the two, where …",
            "… padding of what the first convolution computes is not, on every map, …",
        ),
        "Zeros put around the map between two convolutions are not what the first one would "
        "compute beyond the border.",
        "Let the first convolution do all the padding, or make the first one 1×1 without a bias.",
    ),
    Reason(
        "Paddings of two kinds meet",
        (
            "… padding meets … padding",
            "branches pad differently: …",
            "… padding does not add up with the window's own",
            "… padding of a cropped map is not that padding of the map",
            "cropping a …-padded map changes what its border repeats",
            "a crop on one side changes what a circular ring repeats on the other",
            "reflection reaches beyond a map of … positions",
        ),
        "Zeros, reflection, replication and circular padding give the border different values, "
        "and one layer has one kind.",
        "Use one `padding_mode` in all parts that should become one layer.",
    ),
    Reason(
        "A ring around the map holds other values than zeros",
        (
            "the ring is filled with …, not with zeros",
            "a ring of … lies inside a ring of …",
            "the ring's constant would be scaled",
            "what was cropped is filled with zeros again",
            "its border holds other numbers than … makes of 0",
        ),
        "A convolution pads with zeros only. It can neither pad with another constant nor put "
        "zeros where values were cut off. A border behind a norm or a 1×1 convolution folds where "
        "it holds what that makes of zero.",
        "Pad with zeros, or leave the padding to the convolution.",
    ),
    Reason(
        "The size of the map decides where a window ends",
        (
            "ceil_mode makes border windows depend on the input's size",
            "its stride, padding or kernel is computed from the input",
        ),
        "With `ceil_mode=True` the map's size decides by which count a pool divides its last "
        "windows; a stride that is computed from the input differs from input to input. A fold "
        "must hold for every input.",
        "Write `ceil_mode=False` and explicit padding; give strides and kernels as constants.",
    ),
)

BRANCHES = (
    Reason(
        "The branches' windows do not fit together",
        (
            "the branches' outputs do not have the same size for every input: …",
            "strides differ: …",
            "branches have different numbers of spatial axes",
            "kernel … does not fit maps of … with padding …",
            "a branch gives maps of … where the linear layer gives …",
            "maps of … do not have … spatial axes",
            "maps of … change their layout on the way",
        ),
        "Branches become one convolution if they have the same stride and give maps of the same "
        "size. It is not enough that the sizes happen to agree on the example, by rounding.",
        "Give every branch the same stride, and the padding that keeps the size: (kernel - 1) × "
        "dilation / 2.",
    ),
    Reason(
        "The branches' channels do not fit together",
        (
            "branches have different channels (in, out): …",
            "an identity, scale or pooling branch needs equal channels, …",
            "branches read different numbers of channels",
            "… channels do not split into …",
            "channels do not fit",
            "… factors do not fit … channels",
            "… scales do not fit … channels",
            "a choice among … channels does not fit …",
            "weight … does not fit axes …",
        ),
        "A kernel has one number of input channels and one of output channels; a sum that "
        "broadcasts does not add branches.",
        "Let all branches read the same number of channels and give the same number; an identity "
        "branch needs a 1×1 convolution for that.",
    ),
    Reason(
        "No branch has a weight",
        ("no branch holds a weight: pools and slices alone make no convolution",),
        "Pools and slices could be written as a convolution, but it would cost more than they do.",
        "Nothing: they are as cheap as they can be.",
    ),
    Reason(
        "Parallel paths with functions between their layers stay apart",
        (
            "its parallel paths stay apart: what follows would read slices of one path in their "
            "place",
            "its parallel paths stay apart: one path in their place would not be as cheap",
        ),
        "Paths of the same layers and functions become one wide path of grouped convolutions where "
        "all have one width and the join or the layer behind takes in the whole. A sum of their "
        "ends without a layer before it would be a sum of slices.",
        "Give all paths one width, and end them with a convolution before they are added.",
    ),
    Reason(
        "The branches meet after their layout was changed",
        (
            "its terms are laid out before they are added: …",
            "in ways that differ, or may for another input",
        ),
        "A sum of maps that were made rows first (`flatten(2).transpose(1, 2)`) is taken before "
        "that where both surely have one shape, are laid out alike and nobody else reads the rows.",
        "Add the maps, and change the layout of the sum.",
    ),
    Reason(
        "Values are assigned to the slices of a new map",
        (
            "what is assigned to its slices is not laid side by side: …",
            "its slices do not follow on each other from the first channel to the last",
            "… comes before the last of them is assigned",
            "… may be spread over its slice for another input",
            "… may have another precision or device",
        ),
        "`y = x.new_empty(…); y[:, :c] = a; y[:, c:] = b` is a concat where every channel is "
        "written once, by a value of the very shape, precision and device of its slice.",
        "Write `torch.cat((a, b), 1)`; or give the new map the precision and device of what it is "
        "made from (`x.new_empty(…)`) and assign slices without gaps.",
    ),
    Reason(
        "A transposed convolution is among them",
        (
            "a transposed convolution does not add to an ordinary one",
            "transposed convolutions side by side stay apart",
            "a transposed convolution merges with pointwise convolutions only",
            "a shift before a transposed convolution does not reach every output alike",
            "a bias before a transposed convolution does not reach every output alike",
            "a pad before a transposed convolution adds outputs",
            "the merged transposed convolution needs output padding that torch does not have",
        ),
        "A transposed convolution spreads each input over a window, so outputs are sums of "
        "different numbers of inputs; a constant before it does not stay one behind it.",
        "A norm after it folds. What comes before must have no shift; parallel branches must all "
        "be transposed.",
    ),
    Reason(
        "A branch is gated",
        (
            "its branch is multiplied by a factor that is computed from the input",
            "it is multiplied by a gate that is not one number per channel",
            "it is multiplied by a gate that is computed from the input",
            "its weight is computed from the input",
            "its number of groups is computed",
        ),
        "A factor or weight that depends on the input (squeeze and excite, attention, dynamic "
        "convolution) means that the branch is not a fixed linear map.",
        "It must stay. A gate of parameters alone (LayerScale, `x * self.gamma`) folds.",
    ),
    Reason(
        "The merge would cost more",
        ("costlier: …; pass allow_growth=True to merge anyway",),
        "The merge is exact, but the merged layer needs more multiply-adds than its parts, as two"
        " stacked 3×3 convolutions that become one 5×5, or a depthwise and a pointwise one that "
        "become a dense one.",
        "Pass `allow_growth=True` (`--allow-growth`) if fewer layers are worth it on your "
        "machine; `refold bench` tells.",
    ),
    Reason(
        "The branches stay apart, as was asked for",
        ("its branches stay apart, as was asked for",),
        "The tuning file says that these branches, merged, were slower in its runtime.",
        "Convert without `--tuning`, or run `refold tune` again on the machine where the network "
        "will run.",
    ),
    Reason(
        "There is no layer of torch for the result",
        (
            "a grouped linear layer has no torch module",
            "a grouped pointwise convolution has no plain linear form",
            "… has no module of its own",
            "… is not a convolution",
            "AvgPool1d has no divisor",
            "the convolutions do not fit into the matrix as it is laid out",
            "a reshape in between states the number of channels",
        ),
        "The operators have an exact product, but no layer computes it, or code between them says"
        " how many channels there are.",
        "Nothing; if the reshape is yours, write -1 for the number of channels.",
    ),
)

NORMS = (
    Reason(
        "The norm has no neighbour to go into",
        ("no neighbour takes it in: it comes from … and goes to …",),
        "A norm folds into a convolution or linear layer before it, or after it where no padding "
        "is in between; it passes changes of layout, pools and slices on its way. The sentence "
        "names where both ways end: at a function that is not affine, at an input or output of "
        "the network, or at a layer that has to stay, with the reason.",
        "In a pre-activation network (norm, ReLU, convolution) the norm must stay, since its ReLU "
        "comes in between. Elsewhere put the norm right after a convolution.",
    ),
    Reason(
        "Not all readers of the norm take it in",
        ("not all of its readers take it in: …",),
        "A norm whose value several layers read goes into all of them or into none: otherwise it "
        "would still be computed for the rest. The sentence names one that does not take it in.",
        "Let that reader take the value before the norm if that is what you meant; drop outputs "
        "that deployment does not need before you fold.",
    ),
    Reason(
        "The norm stands behind a maximum",
        ("some of its scales are below zero, where the maximum before it would be a minimum",),
        "A norm behind a max pool goes into the layer in front of it where all its scales are "
        "positive; a negative one turns the maximum into a minimum.",
        "Put the norm in front of the pool and train again.",
    ),
    Reason(
        "Something else reads the value",
        (
            "the value of … is also read by …",
            "… reads it as well, and takes in no gain",
            "the code of … asks for the size of …, and the fold would … it",
            "the code asks for the size of …, and the fold would … it",
        ),
        "The convolution's output goes to the norm and to another reader, as a shortcut, a second"
        " head, an auxiliary loss or an output of the network does. The other reader still needs "
        "the value before the norm.",
        "Let the other reader take the value after the norm if that is what you meant; otherwise "
        "the norm must stay. Drop outputs that deployment does not need before you fold.",
    ),
    Reason(
        "The norm is in training mode",
        (
            "the norm is in training mode; call model.eval()",
            "dropout is in training mode; call model.eval()",
            "the model is in training mode, where norms use the batch; call model.eval() first",
            "the model is in training mode; call model.eval() first",
        ),
        "In training mode a norm normalises with the batch it sees, and dropout is random: "
        "neither is a fixed map.",
        "Call `model.eval()` first; look for a `train()` override, or for `training=True` in a "
        "functional call.",
    ),
    Reason(
        "The norm has no running statistics",
        (
            "the norm has no running statistics; it normalises with the batch",
            "a norm without running statistics is not a fixed affine map",
            "… has no running statistics, or more than a norm has",
        ),
        "`track_running_stats=False` (and LayerNorm, GroupNorm or InstanceNorm, by nature) "
        "normalises with the input itself, which is not a fixed map.",
        "Train with `track_running_stats=True`. The gain of a LayerNorm or RMSNorm can still go "
        "into the layer after it.",
    ),
    Reason(
        "The gain of a LayerNorm or GroupNorm stays",
        (
            "its gain stays: …",
            "… is no linear layer along its channels",
            "it differs from place to place, not only from channel to channel",
            "it is computed from the input",
            "… reads it: …",
            "… works along another axis than the norm",
            "the layout changes before … reads it",
            "… cannot take it in: …",
            "it is not a single layer",
        ),
        "Scale and shift of a norm go into the layers that read it, if all of them are linear "
        "along the norm's axis.",
        "The sentence says which reader stands in the way. `elementwise_affine=False` avoids the "
        "gain in the first place.",
    ),
    Reason(
        "The bias of an attention's values stays",
        (
            "its bias stays: …",
            "the mask of the attention may leave a query without keys",
            "dropout is active in the attention",
            "its heads serve several queries each (enable_gqa)",
            "its softmax is computed in a precision of its own",
            "… reads its values as well",
            "its keys have channels of their own",
            "… works along another axis",
            "… decides on the layout",
            "the shapes of the attention are not known",
        ),
        "The weights of an attention add up to one, so that a bias of the values comes out as it "
        "went in and fits into the layer behind. Here nothing proves that they do, or something "
        "else reads the values.",
        "Nothing is wrong: one addition stays. An attention without a mask, or one written with "
        "`softmax`, lets the bias go.",
    ),
    Reason(
        "The folded weight does not fit the precision",
        (
            "the folded … reaches …, beyond the largest … …; fold in float32 or keep this norm",
            "the folded … is not finite: a norm's variance or a weight is NaN or infinite",
        ),
        "A norm with a tiny variance has a huge scale: its product with the weight overflows "
        "float16. Or the checkpoint holds NaN or infinity already.",
        "Fold in float32 and cast afterwards; if a weight is NaN, look at the checkpoint.",
    ),
    Reason(
        "The precision of a new layer is unknown",
        ("the model has no parameter that would tell the precision of new ones",),
        "Folding would make a layer with weights in a model that has none.",
        "Nothing: the model is as cheap as it can be.",
    ),
)

UNKNOWN = (
    Reason(
        "Sizes are unknown without an example",
        (
            "the number of spatial axes is unknown; pass example_inputs",
            "the number of channels is unknown; pass example_inputs",
            "the branches' numbers of channels are unknown; pass example_inputs",
            "the channel axis is unknown; pass example_inputs",
            "whether the sum broadcasts a part depends on the input; pass example_inputs",
            "whether the constant adds channels depends on the input; pass example_inputs",
            "whether the constant adds axes depends on the input; pass example_inputs",
            "whether the norm sees (N, C) or (N, L, C) depends on the input, …; pass "
            "example_inputs",
            "no input that it takes could be made up; give example_inputs",
        ),
        "Without an example only what holds for every shape is folded.",
        "Pass `example_inputs` (`--input-size 3x224x224` on the command line).",
    ),
    Reason(
        "A linear layer's norm means two things",
        ("the network takes (N, C) and (N, L, C), where the norm scales another axis than …",),
        "`BatchNorm1d` scales axis 1, a linear layer mixes the last axis. For (N, C) both are the"
        " channels; for (N, L, C) they are not, and the network takes both kinds of input.",
        "Put a `flatten(1)` in front of the linear layer if inputs are always (N, C).",
    ),
)

FOLDING = (
    ("At the border of the map", BORDERS),
    ("Branches and chains", BRANCHES),
    ("Norms", NORMS),
    ("What is not known", UNKNOWN),
)
