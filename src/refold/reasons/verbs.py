"""Why the other verbs left something: residuals, channels, branches, ONNX files."""

from refold.reasons.kind import Reason

RESIDUALS = (
    Reason(
        "The sum is not a residual of one value",
        (
            "it adds values of different shapes",
            "it adds more than two values",
            "it adds vectors, not maps",
            "its two sides do not start from one value along plain chains",
            "both its sides are nonlinear, so neither can be carried along the other",
            "its two sides have different strides",
            "a step of its branch fuses several layers",
            "… inside its branch is also read by …",
            "its code could not be followed, so its sums stay (…)",
        ),
        "A residual is removed by carrying its shortcut through the branch in channels of its "
        "own. That needs one value, one chain of layers, and a side that is linear.",
        "Dense connections, attention and sums of three stay. A value of the branch that others "
        "read must be taken elsewhere.",
    ),
    Reason(
        "The shortcut is not an identity, a window or a projection",
        (
            "its shortcut cannot be carried: …",
            "its shortcut holds a convolution that cannot be carried",
            "its shortcut is more than one window and one projection",
            "its shortcut holds two projections that are not one",
            "its shortcut's window and projection do not fit in one layer",
            "no convolution of the branch has a window as large as the shortcut's",
            "its shortcut is gated by the input",
            "without its residual the network needs maps whose sides divide by …",
        ),
        "The carried channels go through the branch's own convolutions, which must be able to "
        "apply what the shortcut does.",
        "Use an identity, or a pool and a 1×1 convolution, as the shortcut.",
    ),
    Reason(
        "The branch changes what it carries",
        (
            "… changes negative values, and its shortcut may be negative",
            "… changes every value, so nothing can be carried through it",
            "its branch holds a …, through which nothing can be carried",
            "a convolution of the branch does not read its own position",
        ),
        "ReLU hands on what is not negative, so a shortcut behind a ReLU can be carried; GELU, "
        "SiLU, LayerNorm and pools change every value.",
        "Train with ReLU behind the sum (or the block's own `rm` form); else the residual stays.",
    ),
    Reason(
        "A grouped convolution or a gate mixes the wrong channels",
        (
            "its grouped convolution cannot apply the shortcut's projection",
            "its grouped convolution reads the carried channels in another order",
            "its groups would need carried channels of one another",
            "its gate has no layer that could skip the carried channels",
            "its gate does not end in a function that is 1 for large numbers",
            "its gate reshapes to a fixed number of channels",
            "its gate is not made of dense layers",
        ),
        "Carried channels must pass groups and squeeze-and-excite gates unchanged.",
        "Use as many groups as the carried channels divide into, and gates of two dense layers "
        "that end in a sigmoid.",
    ),
)

PRUNING = (
    Reason(
        "Its channels are read where they cannot go",
        (
            "its channels are an output",
            "more than one layer reads its channels, or asks their number",
            "what reads its channels does not keep them apart",
            "its reader is not a layer",
            "the function behind it is called more than once",
            "the grouped convolution behind it does not keep channels apart",
            "the convolution behind it is not a layer",
            "what is behind it does not keep channels apart",
            "no channel of this network can be dropped: …",
            "the network has no layer whose channels can be dropped",
        ),
        "A channel is dropped from a layer and from all that read it. Sums tie the channels of "
        "several layers together; reshapes, attention and outputs need every one.",
        "`remove_residuals=True` frees the channels of residual networks; the last layer's are "
        "the classes.",
    ),
    Reason(
        "Dropping it would leave a constant behind",
        (
            "its channels would leave a constant, and the next layer pads with 0",
            "… channels are constant but not 0, and the next layer pads with 0",
            "all its channels only hand an input channel on",
        ),
        "A channel whose scale is 0 still adds its shift, which is not the same at a padded "
        "border.",
        "Penalise the shifts as well while training, or fine-tune after `prune`.",
    ),
    Reason(
        "Widths are kept round",
        ("… dead channels fill up a multiple of … (round_to)",),
        "Many processors compute 8 channels as fast as 7.",
        "`round_to=1` drops every one.",
    ),
)

EXPANDING = (
    Reason(
        "The convolution cannot become a block",
        (
            "`where` leaves it out",
            "it is part of a …, which already has branches",
            "the callable returned it unchanged",
            "the block takes no …, and the convolution has …",
            "…: the block does not compute what the convolution did; …",
            "its norm cannot move: …",
            "it is a call of F.batch_norm, not a module",
            "… does more than normalise and call its children",
        ),
        "`expand` puts a block in the place of a convolution and its norm; the block must be able"
        " to compute what they did.",
        "Choose other convolutions with `where`, or another block.",
    ),
    Reason(
        "The block cannot become the old convolution",
        (
            "it no longer has the shape of …",
            "it now adds a bias, and the convolution it came from has neither norm nor bias",
            "its norm belongs at …, which is not in the model; collapse the network that holds "
            "both",
            "a value of the collapsed layers does not fit …",
            "the model has no block made by expand: there is nothing to collapse",
            "the model is one block; collapse a network that holds it",
        ),
        "`collapse` gives back the architecture that `expand` was given, so the result must fit "
        "its layers.",
        "`reparameterize` folds the block all the same, into layers of its own.",
    ),
)

ONNX = (
    Reason(
        "The file is quantized",
        (
            "it is quantized (…): a fold would change what the quantizer measured; fold the float"
            " model, then quantize",
        ),
        "Scales of int8 layers were measured on the layers as they are.",
        "Fold the float model, then quantize it.",
    ),
    Reason(
        "The file writes a layer in a way that is not read",
        (
            "its weight … is also an input of the file, so a caller may replace it",
            "an input of the file decides its weight …",
            "its weights are of a type that nothing is folded in",
            "it has more than 3 spatial axes, or none",
            "it transposes its input first (transA)",
            "its bias differs from row to row",
            "its alpha or beta takes a weight beyond the largest of its type",
            "its output_padding is not below its stride",
            "its output_shape makes a padding that depends on the input's size",
            "its output is larger than its window and stride make it",
            "it normalises with the batch, as in training",
            "it has statistics for every position (spatial=0)",
            "nobody knows how many axes its input has, or they are more than 5",
        ),
        "Such a node is no layer with fixed weights, or what it computes depends on a size that "
        "the file leaves free.",
        "Export in eval mode with weights as initializers that are no inputs; run shape "
        "inference, or give the file's inputs sizes.",
    ),
    Reason(
        "A function is written out in several nodes",
        (
            "runtimes run it and the nodes around it as one function (a layer norm, GELU); folded,"
            " they would not",
        ),
        "A runtime knows a layer norm by its last product and sum, GELU by its factor of a half; "
        "without these it would run every node by itself.",
        "Nothing: it is faster as it is.",
    ),
    Reason(
        "A graph inside a node cannot be checked",
        (
            "its body cannot be run alone on random inputs, so no fold of it could be checked: it "
            "stays",
            "its body gave another answer and stays: …",
        ),
        "The graph inside an `If`, `Loop` or `Scan` is folded as a file of its own, which needs "
        "types and sizes of what it reads from outside, and its own weights inside the file.",
        "Run shape inference on the file first, or fold the network in PyTorch.",
    ),
    Reason(
        "A function of the file is not read",
        (
            "it calls a function of the file whose layers are not read: it imports another opset "
            "than the file",
        ),
        "A function is written out where it is called, which needs one opset for both.",
        "Convert the file to one opset (`onnx.version_converter`), or fold the network in PyTorch.",
    ),
    Reason(
        "ONNX has no node for the result",
        (
            "ONNX has no node for what the fold would make: …",
            "its padding depends on the size of the input",
        ),
        "The opset of the file has no operator for the merged layer, or the layer's padding "
        "(`auto_pad`) follows the size of the input.",
        "Fold the network in PyTorch where you have it, or export it with a newer opset.",
    ),
)

VERBS = (
    ("Residuals that stay (`remove_residuals`)", RESIDUALS),
    ("Channels that stay (`prune`)", PRUNING),
    ("Convolutions and blocks that stay (`expand`, `collapse`)", EXPANDING),
    ("ONNX files", ONNX),
)
