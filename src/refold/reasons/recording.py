"""Why code could not be followed, or would not hold in another run once folded."""

from refold.reasons.kind import Reason

CODE = (
    Reason(
        "The code asks for numbers of its input",
        (
            "its code asks for numbers that depend on the input (…)",
            "its code asks for numbers (…)",
            "its parts ask for numbers that depend on the input",
        ),
        "`if x.sum() > 0`, `x.item()`, `nonzero()` and the like make the code branch on values, "
        "which differ from input to input. That module's own forward stays; each module it calls "
        "is folded separately.",
        "Move the decision out of the module that should fold, or write it with tensor operations"
        " (`torch.where`).",
    ),
    Reason(
        "The code takes another path for another size",
        (
            "its code branches on a size (…)",
            "its code takes another path for an input …",
            "its code looks a size up in a table (…)",
            "every recording calls its modules in another way",
        ),
        "`if x.shape[-1] > 32` or a loop over a size was tried with other sizes, ranks or values,"
        " and took another path, for which the fold would be wrong.",
        "Decide by configuration instead of by the input; or make the branch part of a module of "
        "its own, so that only it stays.",
    ),
    Reason(
        "The code asks for its surroundings",
        ("its code asks for … (…)",),
        '`if torch.is_grad_enabled()`, `y.grad_fn is None`, `os.environ.get("MODE")`, '
        "`time.time()`: another call may find another answer. Other answers were tried where they "
        "are known, and for one of them the fold would be wrong.",
        "Decide by configuration when the module is built, or wrap the network in a module that "
        "deployment needs.",
    ),
    Reason(
        "Another call would need what the fold removes",
        (
            "its optional argument … may be given",
            "its optional arguments … may be given",
            "its optional argument … may be left out",
            "its keyword argument … may be given",
            "its argument … may have another value",
            "its argument … may hold other values",
            "it may be called with … arguments",
            "… may be asked for",
            "its argument … is missing",
        ),
        "The forward has an argument that the example does not use (a mask, "
        "`return_features=True`), and a call that uses it would read a value that the fold takes "
        "away.",
        "Wrap the network in a module whose forward has the arguments of deployment only, and "
        "fold that.",
    ),
    Reason(
        "The code keeps something for the next call",
        (
            "its code sets …, which stays for the next call",
            "its code changes … of a … for the next call",
            "its code changes a tensor in place that stays for the next call",
            "its code reads a value that unseen code keeps",
            "its code reads …, which changes",
            "its code changes …, which is no part of the model, for the next call",
            "its code takes another path at a later call",
            "it changes what it keeps",
        ),
        "Counters, caches and buffers that the forward writes make the next call differ from the "
        "first. Code that only stores a value and never reads it keeps its forward, and its layers "
        "still fold.",
        "Drop the bookkeeping for deployment, or guard it with `if self.training`.",
    ),
    Reason(
        "The code writes into a tensor that the fold would read",
        (
            "its code changes … by assignment",
            "its code calls … with another …",
            "its code changes … in place",
            "its code assigns to the … of …",
            "… changes … in place",
            "… changes the input … in place",
            "… changes the stored tensor … in place",
            "… changes … in place while … reads it",
            "… may change … in place while … reads it",
            "the code of …, which could not be followed, may change it",
            "the code of … sets its …",
            "code outside it sets its …",
        ),
        "`weight.data = …`, `x += …`, `weight.clamp_()` at every call: a folded copy of the "
        "weight would not see the change.",
        "Do it once, after training, instead of in the forward; write `x = x + …` where the value"
        " is read again.",
    ),
    Reason(
        "The caller would get the same value twice",
        (
            "the result would share its memory with an input or with another result",
            "it changes no number, but perhaps the precision of an input",
        ),
        "Without the step, a result is a value of its own, which the caller may change in place. "
        "With it, the result would be the input itself, or another result. "
        "So it is with `x * 1.0`, which makes another type of an integer.",
        "Nothing is wrong: what stays is a copy. Return the value once, or `.clone()` it where two "
        "are needed.",
    ),
    Reason(
        "The code is random",
        ("its code draws random numbers of Python or NumPy",),
        "Two calls may take different paths.",
        "Guard it with `if self.training`.",
    ),
    Reason(
        "The code catches errors",
        ("its code catches an error of a part of it",),
        "What runs depends on which part fails, which may differ on another machine or input.",
        "Write the fallback as a choice made when the module is built.",
    ),
    Reason(
        "A part could not be followed and may run others",
        (
            "the code of …, which could not be followed, may run its parts one by one",
            "other code may run it, as … or in it",
            "a … that is not a registered submodule is called",
        ),
        "Code that could not be followed can reach the module, and may call it, too.",
        "Register the module in one place only; keep no lists of modules outside `nn.ModuleList`.",
    ),
)

MODULES = (
    Reason(
        "The module is called several times",
        (
            "the module is called … times",
            "it is called more than once",
            "… is called more than once",
            "… is called … times",
        ),
        "One layer serves several places (a shared head, a recurrent block). A norm behind one of"
        " the calls cannot go into the weight that all of them use.",
        "Copy the module if each place should have its own weights; otherwise it stays.",
    ),
    Reason(
        "The weight is shared",
        (
            "… is read more than once (…)",
            "… shares its values with …",
            "a parameter of … is tied to …",
            "other code reads the tensors of …",
        ),
        "Two layers hold one tensor, or code outside the layer reads it (weight tying, a "
        "regulariser, a custom norm of weights). Folding one would change the other.",
        "Untie them after training (`layer.weight = nn.Parameter(layer.weight.clone())`) if they "
        "need not stay tied.",
    ),
    Reason(
        "It has hooks",
        ("it has hooks, which see its own input and output",),
        "A hook reads or changes what goes in and out of the layer; after the fold there is no "
        "such value.",
        "Remove hooks before folding (`handle.remove()`); pruning and profiling tools leave them "
        "behind.",
    ),
    Reason(
        "Its class does more than torch's layer",
        (
            "its class … replaces …, which may do more than run forward",
            "its class … replaces …, so that it may not read what it holds",
            "its class … replaces the … of …",
            "its class … computes its … anew at every read",
            "its … is replaced on the instance",
            "the … of … itself was replaced",
            "its train() and eval() put graphs of their own in place",
            "its parameters are parametrized (computed by other modules at every call)",
        ),
        "A subclass or a patch may not compute what the layer it looks like does, so refold does "
        "not trust its type.",
        "Nothing, if its forward is plain torch: that is followed instead. Otherwise replace it "
        "with the plain layer (`torch.nn.utils.parametrize.remove_parametrizations` for "
        "parametrizations).",
    ),
    Reason(
        "It is not Python code that could be followed",
        (
            "it is a TorchScript module",
            "it is compiled",
            "it is an exported graph with guards on its inputs",
            "it runs its network on several devices",
            "it is a recurrent or attention layer with a forward of its own",
            "it has no forward",
            "its code cannot run while it is recorded (…)",
            "its code fails on tensors without storage (…)",
            "its code transforms a function by torch.func or vmap (…)",
        ),
        "TorchScript, `torch.compile`, `DataParallel` and cuDNN's recurrent layers run code that "
        "does not consist of torch calls from Python. Recording uses meta tensors, which some "
        "packages' operators do not support.",
        "Fold the original `nn.Module`, then script, compile or wrap the result. A part that fails "
        "on meta tensors can be folded by itself, with an example of its own input.",
    ),
    Reason(
        "No recorded call runs it",
        (
            "no recorded call runs it; drop_unused=True leaves it out",
            "nobody reads what it gives; drop_unused=True leaves it out",
            "no recorded call runs it",
            "no code that could be traced calls it",
            "the code that calls it cannot be traced: …: …",
        ),
        "The module is there, but the example does not reach it, or the code drops what it gives: "
        "an auxiliary head for training, or a leftover.",
        "`drop_unused=True` (`--drop-unused`) leaves it out of the result.",
    ),
)

WRITING = (
    Reason(
        "The parent's forward cannot be written anew",
        (
            "… cannot get a generated forward: …",
            "its forward has no signature",
            "its call does not fit its signature (…)",
            "it is called through …",
            "it is called through **kwargs",
            "it is called through *args",
            "the default of its argument … cannot be written down",
            "its argument … holds several tensors",
            "it calls … under a context manager",
            "it computes under a context manager (no_grad or autocast)",
            "it reads …, which is not one of its arguments",
            "it uses …, which is not below it",
            "it returns a …",
            "it hands on a …",
            "the fold would read … before it is computed",
        ),
        "After a merge the module above needs a new forward, which is generated from what was "
        "recorded. Something in it cannot be written that way: variable arguments, a context "
        "manager, an object of a class of its own.",
        "Give the forward plain arguments and return tensors, tuples, lists, dicts or "
        "dataclasses; keep `autocast` outside the model.",
    ),
    Reason(
        "The result was compared, and undone",
        (
            "the folded model gives another answer on the example (…); the step was undone",
            "the folded model gives another answer (…); the step was undone",
            "the folded model fails (…); the step was undone",
            "the folded model calls … layers of class …, its graph …; the step was undone",
            "the folded model fails on the example (…); the step was undone",
            "…; every step was undone",
        ),
        "Both forms are run once, and a step that makes them differ is undone. The network does "
        "something that the recording did not show.",
        "The rest is folded, and correct. If the module is plain torch, please report it.",
    ),
    Reason(
        "The fold failed",
        ("the fold failed with …: … (this is a defect of refold; please report it)",),
        "A bug in refold, caught so that the other folds are still made.",
        "Please report it, with the module.",
    ),
    Reason(
        "The example does not run",
        ("the model cannot run on example_inputs of shape …: …",),
        "A network that fails on its example cannot be recorded.",
        "Run `model(*example_inputs)` yourself; it fails with the same error.",
    ),
)

RECORDING = (
    ("What the code does", CODE),
    ("Modules that are not what they seem", MODULES),
    ("Writing the result", WRITING),
)
